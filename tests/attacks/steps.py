"""Counting the work that a text causes: steps of a regular expression, and lines of Python. Never time.

``re`` does not say how often it looks at a character, so a pattern is run here by a plain backtracking matcher over the
same parsed pattern as CPython's own. It tries what CPython's tries, in the same order; only the optimisations, which
skip impossible starts, are missing.
"""

import re
import sys
from collections.abc import Callable, Iterator
from re import _constants as code
from re import _parser as parser
from types import FrameType
from typing import Any

_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    code.CATEGORY_DIGIT: str.isdecimal,
    code.CATEGORY_NOT_DIGIT: lambda each: not each.isdecimal(),
    code.CATEGORY_SPACE: str.isspace,
    code.CATEGORY_NOT_SPACE: lambda each: not each.isspace(),
    code.CATEGORY_WORD: lambda each: each.isalnum() or each == "_",
    code.CATEGORY_NOT_WORD: lambda each: not (each.isalnum() or each == "_"),
}
_REPEATS = {code.MAX_REPEAT: "greedy", code.MIN_REPEAT: "lazy", code.POSSESSIVE_REPEAT: "possessive"}
_ONE = frozenset({code.LITERAL, code.NOT_LITERAL, code.ANY, code.IN})


class CountingMatcher:
    """Searches like ``pattern.search``, and counts the characters that it compares in ``steps``."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern
        self._ignore_case = bool(pattern.flags & re.IGNORECASE)
        self._dot_all = bool(pattern.flags & re.DOTALL)
        self._parsed = list(parser.parse(pattern.pattern, pattern.flags))
        self.steps = 0

    def spans(self, text: str) -> list[tuple[int, int]]:
        """As ``finditer`` finds them."""
        found = []
        at = 0
        while at <= len(text):
            end = self.match_at(text, at)
            if end is None:
                at += 1
                continue
            found.append((at, end))
            at = max(end, at + 1)
        return found

    def match_at(self, text: str, at: int) -> int | None:
        groups: dict[int, tuple[int, int]] = {}
        return next(self._sequence(self._parsed, 0, text, at, groups), None)

    def _sequence(self, items: list[Any], number: int, text: str, at: int, groups: Any) -> Iterator[int]:
        if number == len(items):
            yield at
            return
        for end in self._item(items[number], text, at, groups):
            yield from self._sequence(items, number + 1, text, end, groups)

    def _item(self, item: Any, text: str, at: int, groups: Any) -> Iterator[int]:
        kind, given = item
        if kind in _REPEATS:
            least, most, body = given
            yield from self._repeat(_REPEATS[kind], least, most, body, text, at, groups)
        elif kind in _ONE or kind is code.AT or kind in {code.ASSERT, code.ASSERT_NOT}:
            yield from self._test(item, text, at, groups)
        elif kind is code.BRANCH:
            for branch in given[1]:
                yield from self._sequence(list(branch), 0, text, at, groups)
        elif kind is code.SUBPATTERN:
            for end in self._sequence(list(given[3]), 0, text, at, groups):
                groups[given[0]] = (at, end)
                yield end
        elif kind is code.ATOMIC_GROUP:
            first = next(self._sequence(list(given), 0, text, at, groups), None)
            if first is not None:
                yield first
        else:
            raise NotImplementedError(str(kind))

    def _test(self, item: Any, text: str, at: int, groups: Any) -> Iterator[int]:
        kind, given = item
        if kind in _ONE:
            if self._fits(item, text, at):
                yield at + 1
        elif kind is code.AT:
            if self._is_at(given, text, at):
                yield at
        elif self._looks(given, text, at, groups) is (kind is code.ASSERT):
            yield at

    def _repeat(self, how: str, least: int, most: Any, body: Any, text: str, at: int, groups: Any) -> Iterator[int]:
        most = len(text) + 1 if most is code.MAXREPEAT else most
        inner = list(body)
        if len(inner) == 1 and inner[0][0] in _ONE:
            yield from self._repeat_one(how, least, most, inner[0], text, at)
            return
        ends = self._times(how, least, most, inner, text, at, groups)
        if how != "possessive":
            yield from ends
        elif (end := next(ends, None)) is not None:
            yield end

    def _repeat_one(self, how: str, least: int, most: int, item: Any, text: str, at: int) -> Iterator[int]:
        if how == "lazy":
            end = at
            while end - at < least and self._fits(item, text, end):
                end += 1
            if end - at >= least:
                yield end
                while end - at < most and self._fits(item, text, end):
                    end += 1
                    yield end
            return
        end = at
        while end - at < most and self._fits(item, text, end):
            end += 1
        if end - at < least:
            return
        if how == "possessive":
            yield end
            return
        for each in range(end, at + least - 1, -1):
            self.steps += 1
            yield each

    def _times(
        self, how: str, least: int, most: int, inner: list[Any], text: str, at: int, groups: Any
    ) -> Iterator[int]:
        """Depth first with a stack of our own, as a text is longer than the recursion limit."""
        stack: list[tuple[int, int, Iterator[int] | None]] = [(at, 0, None)]
        while stack:
            place, done, ends = stack.pop()
            if ends is None:
                if how == "lazy" and done >= least:
                    yield place
                ends = self._sequence(inner, 0, text, place, groups) if done < most else iter(())
                if how == "possessive":
                    first = next(ends, None)
                    ends = iter(() if first is None else (first,))
            end = next(ends, None)
            if end is not None and (end > place or done < least):
                stack += [(place, done, ends), (end, done + 1, None)]
            elif how != "lazy" and done >= least:
                yield place

    def _looks(self, given: Any, text: str, at: int, groups: Any) -> bool:
        direction, items = given
        inner = list(items)
        if direction > 0:
            return next(self._sequence(inner, 0, text, at, groups), None) is not None
        width = items.getwidth()[0]
        return at >= width and next(self._sequence(inner, 0, text, at - width, groups), None) == at

    def _is_at(self, place: Any, text: str, at: int) -> bool:
        self.steps += 1
        if place in {code.AT_BEGINNING, code.AT_BEGINNING_STRING}:
            return at == 0
        if place is code.AT_END:
            return at == len(text) or (at == len(text) - 1 and text[at] == "\n")
        word = _CATEGORIES[code.CATEGORY_WORD]
        edge = (at > 0 and word(text[at - 1])) != (at < len(text) and word(text[at]))
        return edge if place is code.AT_BOUNDARY else not edge

    def _fits(self, item: Any, text: str, at: int) -> bool:
        self.steps += 1
        if at >= len(text):
            return False
        each = text[at]
        forms = {each, each.lower(), each.upper()} if self._ignore_case else {each}
        return any(self._is(item, form) for form in forms)

    def _is(self, item: Any, each: str) -> bool:
        kind, given = item
        if kind is code.LITERAL:
            return bool(ord(each) == given)
        if kind is code.NOT_LITERAL:
            return bool(ord(each) != given)
        if kind is code.ANY:
            return self._dot_all or each != "\n"
        if kind is code.RANGE:
            return bool(given[0] <= ord(each) <= given[1])
        if kind is code.CATEGORY:
            return _CATEGORIES[given](each)
        assert kind is code.IN
        negated = given[0][0] is code.NEGATE
        return any(self._is(one, each) for one in given[negated:]) is not negated


class CountingPattern:
    """Stands in for a compiled pattern: the same matches, and ``steps`` for all that was compared."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._real = pattern
        self._matcher = CountingMatcher(pattern)
        self.pattern = pattern.pattern

    @property
    def steps(self) -> int:
        return self._matcher.steps

    def match(self, text: str, pos: int = 0, endpos: int = sys.maxsize) -> re.Match[str] | None:
        self._matcher.match_at(text[:endpos], pos)
        return self._real.match(text, pos, endpos)

    def search(self, text: str, pos: int = 0, endpos: int = sys.maxsize) -> re.Match[str] | None:
        found = self._real.search(text, pos, endpos)
        for at in range(pos, (min(len(text), endpos) if found is None else found.start()) + 1):
            self._matcher.match_at(text[:endpos], at)
        return found

    def finditer(self, text: str, pos: int = 0) -> Iterator[re.Match[str]]:
        found = self.search(text, pos)
        while found is not None:
            yield found
            found = self.search(text, max(found.end(), found.start() + 1))

    def sub(self, new: Callable[[re.Match[str]], str], text: str) -> str:
        self._matcher.spans(text)
        return self._real.sub(new, text)


def steps_of(pattern: re.Pattern[str], text: str) -> int:
    """How many characters a search for all matches compares."""
    matcher = CountingMatcher(pattern)
    matcher.spans(text)
    return matcher.steps


def lines_of(call: Callable[[], object]) -> int:
    """How many lines of Python the call runs, once its caches are filled."""
    call()
    count = 0

    def trace(_frame: FrameType, what: str, _given: object) -> Any:
        nonlocal count
        count += what == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
