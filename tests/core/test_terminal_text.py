"""No text from outside moves the cursor, colours, hides or reorders what a terminal shows."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core.untrusted import printable, printable_lines

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"


def test_escape_sequences_and_overrides_are_shown_as_escapes() -> None:
    assert printable("\x1b[2Jé\x9b31m\r\n\x07\x7f\u202e\ud800") == (r"\x1b[2Jé\x9b31m\r\n\x07\x7f\u202e\ud800")


def test_line_ends_stay_only_where_they_are_ours() -> None:
    assert printable_lines("a\n\tb\r\x1b") == "a\n\tb\\r\\x1b"
    assert printable("a\nb") == "a\\nb"


def test_ordinary_text_is_kept() -> None:
    assert printable("Ünï 注文 – \\x1b 😀") == "Ünï 注文 – \\x1b 😀"


@given(st.text(alphabet=st.one_of(st.characters(max_codepoint=0xFF), st.sampled_from(BIDI), st.characters())))
def test_nothing_that_controls_a_terminal_is_left(text: str) -> None:
    shown = printable(text)
    assert not [each for each in shown if unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} or each in BIDI]
