"""docs/actions.md names every action with the role that it needs."""

import re
from pathlib import Path

from monitor.control.perform import REQUIRED_ROLE

DOCUMENT = Path(__file__).parent.parent / "docs" / "actions.md"


def test_every_action_is_documented_with_its_role() -> None:
    documented: dict[str, str] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            actions, role = line.split("|")[1:3]
            documented |= {action: role.strip() for action in re.findall(r"`([\w.]+)`", actions)}
    assert documented == {action: role.name.lower() for action, role in REQUIRED_ROLE.items()}
