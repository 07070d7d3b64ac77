import math

import pytest

from celery_monitor.core.words import age_words
from celery_monitor.records.page import Count
from celery_monitor.web.wording import (
    TracebackPart,
    brief,
    counted,
    duration,
    exception_line,
    moment,
    number,
    parts,
    short,
    since_receipt,
    visible,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0.0002, "<1 ms"),
        (0.34, "340 ms"),
        (2.13, "2.1 s"),
        (59.97, "1 m 0 s"),
        (192, "3 m 12 s"),
        (7500, "2 h 5 m"),
        (273600, "3 d 4 h"),
        (-0.34, "−340 ms"),
    ],
)
def test_duration_is_written_as_people_say_it(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


ODD = (math.inf, -math.inf, math.nan, 1e308, -1e308, 1e30, 10**400, -(10**400), 2**63, 5e-324, -0.0)


@pytest.mark.parametrize("value", ODD)
def test_every_number_is_written_shortly(value: float) -> None:
    for text in (duration(value), number(value), brief(value), since_receipt(value), age_words(value)):  # type: ignore[arg-type]
        assert len(text) < 30
    assert "<" in moment(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.inf, "over 100000 d"), (math.nan, "unknown"), (1e10, "over 100000 d"), (-1e308, "−over 100000 d")],
)
def test_duration_beyond_all_lives_is_rounded(value: float, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(1e308, "over 1e15"), (-(10**400), "−over 1e15"), (math.nan, "unknown")])
def test_number_beyond_all_counts_is_rounded(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "unknown"), (9999, "9999"), (12345, "12\u202f345"), (7654321, "7\u202f654\u202f321")]
)
def test_long_numbers_get_thin_separators(value: int | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(731, "731"), (9731, "9.7 k"), (9960, "9.9 k"), (731_000, "731 k"), (1_249_000, "1.2 M"), (31_000_000, "31 M")],
)
def test_brief_count_has_five_characters_at_most(value: int, text: str) -> None:
    assert brief(value) == text


def test_count_that_stopped_carries_a_plus() -> None:
    assert counted(Count(10_000, exact=False)) == "10\u202f000+"
    assert counted(Count(31)) == "31"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a␀b"),
        ("\x1b[31m", "␛[31m"),
        ("\u202eexe", "⟦U+202E⟧exe"),
        ("zero\u200bwidth", "zero⟦U+200B⟧width"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("a\u200db", "a⟦U+200D⟧b"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\udc80", "⟦U+DC80⟧"),
    ],
)
def test_hidden_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_moment_is_escaped_and_does_not_depend_on_now() -> None:
    attributes = 'datetime="2026-05-28T20:26:40.250Z" data-time="ago" title="2026-05-28 20:26:40 UTC"'
    assert moment(1_780_000_000.25) == f"<time {attributes}>May 28 20:26:40</time>"
    assert "unknown" in moment(None)
    assert "impossible" in moment(1e20)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("KeyError('sku-7')", ("KeyError", "sku-7")),
        ("shop.errors.Declined(31, 'EUR')", ("shop.errors.Declined", "31, 'EUR'")),
        ("just words", ("just words", "")),
        ("", ("unknown", "")),
    ],
)
def test_exception_is_told_as_type_and_message(text: str, told: tuple[str, str]) -> None:
    assert exception_line(text) == told


def test_short_marks_what_it_cut() -> None:
    assert short("abc\ndef  ghi", 20) == "abc def ghi"
    assert short("x" * 70_000, 8) == "xxxxxxx…"
    assert short(None) == "unknown"


TRACEBACK = """Traceback (most recent call last):
  File "/venv/lib/python3.12/site-packages/celery/app/trace.py", line 453, in trace_task
    R = fun(*args)
  File "/venv/lib/python3.12/site-packages/celery/app/trace.py", line 736, in __protected_call__
    return self.run(*args)
  File "/srv/shop/pay.py", line 7, in charge
    gateway.send(order)
    ~~~~~~~~~~~~^^^^^^^
  File "/srv/shop/gateway.py", line 9, in send
    raise Declined
shop.errors.Declined: card
 second line of the message
"""


def test_library_frames_fold_together_and_each_of_the_applications_stands_alone() -> None:
    found = parts(TRACEBACK)
    assert [(part.kind, part.frames) for part in found] == [
        ("text", 0),
        ("library", 2),
        ("frame", 1),
        ("frame", 1),
        ("text", 0),
    ]
    assert found[2].text.endswith("~~~~~~~~~~~~^^^^^^^")
    assert found[4].text == "shop.errors.Declined: card\n second line of the message"


def test_nothing_is_lost() -> None:
    assert "\n".join(part.text for part in parts(TRACEBACK)) == TRACEBACK.rstrip("\n")


def test_text_that_is_no_traceback_stays_text() -> None:
    assert parts("broken <b>") == [TracebackPart("text", "broken <b>")]
