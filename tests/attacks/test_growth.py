"""Twice the text is twice the work, whatever the text: of each pattern, and of what is done with a broker's text."""

import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import pytest

from celery_monitor.core import arguments, captures, failures, sanitize, untrusted
from celery_monitor.core.arguments import parse_json
from celery_monitor.core.captures import Lossy, read_repr
from celery_monitor.core.filters.parser import parse
from celery_monitor.core.sanitize import Redactor, Sanitizer
from celery_monitor.errors import FilterError, InvalidInput
from celery_monitor.receiver import decode
from celery_monitor.settings import REDACTED_KEYS
from celery_monitor.web import wording
from tests.attacks.steps import CountingMatcher, CountingPattern, lines_of, steps_of

MOST_GROWTH = 2.5  # of the work, for twice the text; quadratic work grows by 4
FEW = 3000  # steps that are never a problem

UNITS = (
    *("'", '"', "\\", "(", ")", "[", "]", "{", "}", ",", ":", "=", " ", "\n", "a", "A", "1", "0", ".", "-", "/", "@"),
    *("\\'", "\\'\"", ")x", ", ", "://", "a@", "a/", "'a", "\"b'", ".zip/", "/python1", "a:", "1e1", "token", "token="),
    *("token='", "token=(", "'token', ", "token=1 ", "token=\\", '  File "', '  File "a.py", line 1\n', "\u200d", "é"),
)
AROUND = (("", ""), ("'", "x"), ("token='", ""), ("(token=", "x"))

# Patterns that are searched for in a text of any length, and those that are tried at one place only.
SEARCHED = {
    sanitize: {"_BEARER", "_URL", "_QUOTE", "_BRACKET_OR_QUOTE", "_BARE_END", "_BARE_END_QUERY"},
    failures: {"_LIBRARY", "_ARCHIVE", "_BUNDLED", "_WORKER_LOST_CAUSE", "_RELEASE", "_NEEDS_MASK", "_MASK"},
    wording: {"_HIDDEN"},
    arguments: {"_SURROGATE"},
    captures: {"_CONTROL", "_NOT_JSON", "_OPEN", "_CLOSE"},
    decode: set[str](),
}
TRIED = {
    sanitize: {"_PORT", "_AFTER_WORD", "_LITERAL", "_OPEN_BRACKET", "_KEY_GOES_ON", "_KEY_START"},
    failures: {"_ERRNO", "_NAMED", "_HEADER", "_FRAME"},
    wording: {"_FRAME"},
    arguments: set[str](),
    captures: {"DELAY", "DEAD_LETTER"},
    decode: {"_INTEGER", "_FLOAT"},
}


def patterns(table: dict[ModuleType, set[str]]) -> list[tuple[str, re.Pattern[str]]]:
    return [(f"{module.__name__}.{name}", getattr(module, name)) for module in table for name in sorted(table[module])]


def series(length: int, units: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """A unit, and texts of it of about this length and twice that."""
    for unit in units:
        for before, after in AROUND:
            times = max(1, length // len(unit))
            yield unit, before + unit * times + after, before + unit * times * 2 + after


def grows_too_fast(work: Callable[[str], int], length: int, units: Sequence[str] = UNITS) -> list[str]:
    found = []
    for unit, text, twice in series(length, units):
        more = work(twice)
        if more > FEW and more > MOST_GROWTH * work(text):
            found.append(f"{unit!r}: {work(text)} to {more}")
    return found


@pytest.mark.parametrize(
    ("name", "pattern"), patterns(SEARCHED), ids=lambda each: each if isinstance(each, str) else ""
)
def test_search_is_linear(name: str, pattern: re.Pattern[str]) -> None:
    if name.endswith("._MASK"):  # its bounded repeats take up to 64 characters, and it is used on 2048
        assert not grows_too_fast(lambda text: steps_of(pattern, text), 300, ("\\'", "a", "1", "a."))
    else:
        assert not grows_too_fast(lambda text: steps_of(pattern, text), 80), name


@pytest.mark.parametrize(("name", "pattern"), patterns(TRIED), ids=lambda each: each if isinstance(each, str) else "")
def test_match_at_one_place_is_linear(name: str, pattern: re.Pattern[str]) -> None:
    def work(text: str) -> int:
        matcher = CountingMatcher(pattern)
        matcher.match_at(text, 0)
        return matcher.steps

    assert not grows_too_fast(work, 400), name


def test_every_pattern_of_these_modules_is_listed() -> None:
    for module in SEARCHED:
        found = {name for name, value in vars(module).items() if isinstance(value, re.Pattern)}
        assert found == SEARCHED[module] | TRIED[module], module.__name__


@pytest.mark.parametrize(
    "pattern",
    [r"(\\*+)(['\"])", r"[)\]}]++(?=$|,)", r"\.(?:zip|pyz)/(?:.*/)?celery/", r"'(?:[^'\\]|\\.)*+'"],
)
def test_patterns_that_start_again_everywhere_are_found(pattern: str) -> None:
    """As they were once used here."""
    assert grows_too_fast(lambda text: steps_of(re.compile(pattern), text), 80)


def test_counted_steps_find_what_re_finds() -> None:
    text = 'a token=\'x\\\'y\', (b="\\\\") File "/srv/a.zip/celery/b.py", line 7 u@h.de http://a:b@c 1.5e3 12:31:05'
    for _, pattern in (*patterns(SEARCHED), *patterns(TRIED)):
        assert CountingMatcher(pattern).spans(text) == [match.span() for match in pattern.finditer(text)]


def test_masking_is_linear_in_all_its_patterns_together(monkeypatch: pytest.MonkeyPatch) -> None:
    names = SEARCHED[sanitize] | TRIED[sanitize]

    def work(text: str) -> int:
        counting = {name: CountingPattern(getattr(sanitize, name)) for name in names}
        with monkeypatch.context() as patch:
            for name, pattern in counting.items():
                patch.setattr(sanitize, name, pattern)
            Redactor(REDACTED_KEYS).text(text)
        return sum(each.steps for each in counting.values())

    units = ("\\", "'", ")", "(", "\\'", "'a", *(unit for unit in UNITS if "token" in unit))
    assert not grows_too_fast(work, 500, units)  # a key has up to 200 characters after its word


def read(text: str) -> None:
    for call in (read_repr, lambda given: parse_json("args", given), lambda given: parse(given, 0.0)):
        try:
            call(text)
        except (Lossy, InvalidInput, FilterError):
            continue


def decoded(text: str) -> None:
    for kind in ("application/json", "application/x-yaml", "application/x-msgpack"):
        body = decode.to_json(text.encode(), decode.Content(kind))
        decode.decode(body if isinstance(body, bytes) else b"")


@pytest.mark.parametrize(
    "call",
    [
        Sanitizer(1_000, REDACTED_KEYS).text,
        lambda text: failures.signature("shop.pay", text, text),
        lambda text: failures.unwrapped("ExceptionWithTraceback()", text),
        wording.parts,
        wording.exception_line,
        wording.visible,
        wording.short,
        read,
        decoded,
    ],
)
def test_lines_of_python_grow_with_the_text(call: Callable[[str], object]) -> None:
    assert not grows_too_fast(lambda text: lines_of(lambda: call(text)), 500)


def test_text_beyond_the_limit_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut before it is worked on."""
    seen: list[int] = []

    def text_of(_self: Redactor, text: str) -> str:
        seen.append(len(text))
        return text

    monkeypatch.setattr(Redactor, "text", text_of)
    sanitizer = Sanitizer(100, REDACTED_KEYS)
    kept = sanitizer.text("x" * 1_000_000)
    assert seen == [100 + sanitize.SLACK]
    assert kept == "x" * 99 + untrusted.CUT
