"""docs/finding.md names the keys that the page's own help names."""

import re
from pathlib import Path

from tests.web.pages.conftest import Browser

DOCUMENT = Path(__file__).parents[3] / "docs" / "finding.md"


def test_every_key_is_documented_in_the_words_of_the_help(browser: Browser) -> None:
    page = browser.get("/tasks").text.partition('id="help"')[2].partition("</dialog>")[0]
    helped = {
        tuple(re.findall(r"<kbd>([^<]+)<", keys)): words
        for keys, words in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    }
    documented = {
        tuple(re.findall(r"`([^`]+)`", line.split("|")[1])): line.split("|")[2].partition(" (")[0].strip()
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    }
    assert documented == helped
    assert len(helped) == 9
