from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_monitor.core.filters.parser import Filter, parse
from celery_monitor.core.filters.terms import (
    FIELDS,
    All,
    Any,
    Expression,
    Interval,
    Kind,
    Leaf,
    Limit,
    Match,
    Not,
    Pattern,
    State,
    Unknown,
    ValueRange,
    Word,
    exactly,
    field_of,
    join,
)
from celery_monitor.errors import FilterError
from celery_monitor.records.task import FINISHED_STATES, TaskState
from tests.factories import NOW

DAY = 1_793_491_200.0  # 2026-11-01T00:00Z


def expression(text: str) -> Expression:
    return parse(text, NOW).expression


def interval(text: str) -> Interval:
    found = expression(text)
    assert isinstance(found, ValueRange)
    return found.interval


def states(text: str) -> frozenset[TaskState]:
    found = expression(text)
    assert isinstance(found, State)
    return found.states


def test_empty_text_matches_all() -> None:
    assert parse("  \t", NOW) == Filter(All())
    assert not parse("", NOW)
    assert str(parse("", NOW)) == ""


def test_terms_are_all_required() -> None:
    assert expression("state:failed queue:mail") == All((State("failed"), Match("queue", Pattern(("mail",)))))
    assert expression("state:failed AND queue:mail") == expression("state:failed queue:mail")


def test_or_binds_less_tightly_than_and() -> None:
    a, b, c = (Word(Pattern((each,))) for each in "abc")
    assert expression("a b OR c") == Any((All((a, b)), c))
    assert expression("a (b OR c)") == All((a, Any((b, c))))


def test_negation_takes_a_term_or_a_group() -> None:
    assert expression("-state:failed") == Not(State("failed"))
    assert expression("NOT state:failed") == Not(State("failed"))
    assert expression("-(a OR b)") == Not(Any((Word(Pattern(("a",))), Word(Pattern(("b",))))))
    assert expression("--a") == Word(Pattern(("a",)))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("name:shop.*", ("shop.", "")),
        ("name:*pay*", ("", "pay", "")),
        ("name:a**b", ("a", "b")),
        ('name:"a*b"', ("a*b",)),
        ('name:"a b"*', ("a b", "")),
        (r'name:"say \"hi\" \\ \n"', ('say "hi" \\ \\n',)),
    ],
)
def test_wildcards_and_quotes(text: str, pieces: tuple[str, ...]) -> None:
    assert expression(text) == Match("name", Pattern(pieces))


def test_a_keyword_between_quotes_is_a_word() -> None:
    assert expression('"OR"') == Word(Pattern(("OR",)))
    assert str(expression('"OR"')) == '"OR"'
    assert expression("ORDER") == Word(Pattern(("ORDER",)))
    assert expression("or") == Word(Pattern(("or",)))


def test_single_keyword_argument() -> None:
    assert expression("kwargs.Card:visa") == Match("kwargs", Pattern(("visa",)), "Card")


def test_state_words() -> None:
    assert states("state:succeeded") == {TaskState.SUCCESS}
    assert states("State:FAILURE") == {TaskState.FAILURE}
    assert states("state:unfinished") == frozenset(TaskState) - FINISHED_STATES
    assert str(expression("state:failure")) == "state:failed"


def test_empty_quotes_stand_for_unknown() -> None:
    assert expression('queue:""') == Unknown("queue")
    assert expression('-runtime:""') == Not(Unknown("runtime"))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("runtime:>5s", Limit(5.0, inclusive=False), None),
        ("runtime:<=250ms", None, Limit(0.25, inclusive=True)),
        ("runtime:>=1.5m", Limit(90.0, inclusive=True), None),
        ("runtime:1..2h", Limit(1.0, inclusive=True), Limit(7200.0, inclusive=True)),
        ("wait:..3d", None, Limit(3 * 86400.0, inclusive=True)),
        ("retries:3", Limit(3.0, inclusive=True), Limit(3.0, inclusive=True)),
        ("received:>-1h", Limit(NOW - 3600, inclusive=False), None),
        ("received:2026-11-01", Limit(DAY, inclusive=True), Limit(DAY + 86400, inclusive=False)),
        ("received:>2026-11-01", Limit(DAY + 86400, inclusive=True), None),
        ("received:<2026-11-01", None, Limit(DAY, inclusive=False)),
        ("received:2026-11-01..2026-11-02", Limit(DAY, inclusive=True), Limit(DAY + 2 * 86400, inclusive=False)),
        ("started:2026-11-01T08:30", Limit(DAY + 30600, inclusive=True), Limit(DAY + 30660, inclusive=False)),
        ("sent:>=2026-11-01T08:30:05Z", Limit(DAY + 30605, inclusive=True), None),
        ("finished:<=2026-11-01T00:00:00.25", None, Limit(DAY + 0.25, inclusive=True)),
    ],
)
def test_intervals(text: str, low: Limit | None, high: Limit | None) -> None:
    found = interval(text)
    assert (found.low, found.high) == (low, high)


def test_a_relative_time_moves_with_the_clock_and_stays_the_same_filter() -> None:
    early, late = parse("received:>-1h", NOW), parse("received:>-60m", NOW + 500)
    assert early == late
    assert str(late) == "received:>-1h"
    assert isinstance(late.expression, ValueRange)
    assert late.expression.interval.low == Limit(NOW + 500 - 3600, inclusive=False)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("queue:a colour:red", 9, "no field 'colour'"),
        ("state:broken", 7, "'broken' is not a state"),
        ("state:fail*", 7, "not a state"),
        ("runtime:>5parsecs", 10, "not a duration"),
        ("runtime:5s", 9, "range"),
        ("runtime:>100000d", 10, "ten years"),
        ("retries:many", 9, "not an integer"),
        ("received:>2026-13-01", 11, "not a time"),
        ("received:2026-11-03..2026-11-02", 10, "ends before"),
        ("received:..", 10, "a start or an end"),
        ("received:-1h", 10, "range"),
        ("queue:", 7, "needs a value"),
        ("queue: mail", 7, "needs a value"),
        ("name.x:y", 1, "no field"),
        ("kwargs.:y", 1, "no field"),
        ('a "b', 3, "not closed"),
        ("(a OR b", 1, "not closed"),
        ("a)", 2, "unmatched closing"),
        ("()", 2, "missing"),
        ("a OR", 5, "missing"),
        ("OR a", 1, "missing"),
        ("-", 2, "missing"),
        ("pay()", 4, "parenthesis in quotes"),
        ("http://shop", 1, "Quote it"),
        ('""', 1, "search text is empty"),
        ("id:*f", 4, "at the end"),
        ("kwargs.card:*visa", 13, "at the end"),
        ('id:""', 4, "has a known id"),
        ("job:>3", 5, "one job"),
        ("job:3..4", 5, "one job"),
        ('job:""', 5, "number of a job"),
        ("a\0b", 2, "cannot be in a task"),
        ("a \ud800", 3, "cannot be in a task"),
        ("x" * 2001, 2001, "2000 characters"),
        ("(" * 22 + "a" + ")" * 22, 22, "deep"),
        ("a " * 101, 201, "100 terms"),
    ],
)
def test_what_is_wrong_is_shown_at_its_column(text: str, column: int, words: str) -> None:
    with pytest.raises(FilterError, match=words) as raised:
        parse(text, NOW)
    assert raised.value.column == column
    assert raised.value.detail["column"] == column


def test_an_unknown_field_lists_what_is_known() -> None:
    with pytest.raises(FilterError) as raised:
        parse("colour:red", NOW)
    assert raised.value.known == tuple(FIELDS)
    with pytest.raises(FilterError) as raised:
        parse("state:broken", NOW)
    assert {"failed", "unfinished", "lost"} <= set(raised.value.known)


@pytest.mark.parametrize("known", FIELDS.values(), ids=lambda each: each.name)
def test_every_field_has_an_example_that_is_about_it(known: object) -> None:
    field = next(each for each in FIELDS.values() if each is known)
    assert {field_of(each) for each in parse(field.example, NOW).terms} <= {field.name, "root", "kwargs"}


def test_terms_are_the_conditions_that_must_hold() -> None:
    found = parse("state:failed -queue:mail (name:a OR name:b) (x OR state:lost)", NOW)
    assert [(str(each), field_of(each)) for each in found.terms] == [
        ("state:failed", "state"),
        ("-queue:mail", "queue"),
        ("name:a OR name:b", "name"),
        ("x OR state:lost", None),
    ]
    assert list(map(str, parse("a OR b", NOW).terms)) == ["a OR b"]
    assert parse("", NOW).terms == ()


def test_a_term_can_be_removed() -> None:
    found = parse("state:failed (name:a OR name:b)", NOW)
    assert str(found.without(found.terms[1])) == "state:failed"
    assert found.without_field("name").without_field("state") == Filter()


def test_a_term_is_added_once_and_keeps_the_rest_together() -> None:
    found = parse("a OR b", NOW) & State("failed") & State("failed")
    assert str(found) == "(a OR b) state:failed"
    assert str(found.in_cluster("e u").in_cluster(None)) == '(a OR b) state:failed cluster:"e u"'


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("queue", "mail", "queue:mail"),
        ("name", 'a" b\\*', 'name:"a\\" b\\\\*"'),
        ("queue", "", 'queue:""'),
        ("id", "OR", "id:OR"),
        ("group", 17, "group:17"),
    ],
)
def test_the_condition_of_one_value_reads_back_as_written(field: str, value: str | int, text: str) -> None:
    assert str(exactly(field, value)) == text
    assert parse(text, NOW).expression == exactly(field, value)


def test_patterns_match_the_whole_text() -> None:
    assert Pattern(("a", "b")).matches("a-b")
    assert not Pattern(("ab", "b")).matches("ab")
    assert Pattern(("", "b", "c", "")).matches("abxc!")
    assert not Pattern(("", "c", "b", "")).matches("abxc!")
    assert not Pattern(("a",)).matches("A")
    assert Pattern(("a", "")).prefix == "a"
    assert Pattern(("", "a")).prefix is None


_fragments = st.sampled_from(
    [
        "state:",
        "failed",
        "-",
        "(",
        ")",
        '"',
        "\\",
        "*",
        "OR",
        "AND",
        "NOT",
        "runtime:",
        ">5s",
        "1..2",
        "received:",
        ">-1h",
        "2026-11-01",
        "..",
        "kwargs.k:",
        "group:",
        "job:",
        "7",
        ":",
        "\u202e",
        "é",
        "id:",
        "queue:",
        '""',
        "ms",
    ]
)


def outcome(text: str) -> tuple[Filter | None, int]:
    try:
        return parse(text, NOW), 0
    except FilterError as error:
        return None, error.column


@example('"-"*')
@example('""-\\')
@given(st.one_of(st.text(max_size=60), st.lists(_fragments | st.just(" "), max_size=14).map("".join)))
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    found, column = outcome(text)
    if found is None:
        assert 1 <= column <= len(text) + 1
        return
    assert parse(str(found), NOW) == found
    assert str(parse(str(found), NOW)) == str(found)


_SURROGATES: tuple[Literal["Cs"]] = ("Cs",)
_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=_SURROGATES), max_size=8)


@st.composite
def _patterns(draw: st.DrawFn) -> Pattern:
    first, last = draw(_texts), draw(_texts)
    if draw(st.booleans()):
        return Pattern((first or "x",))
    return Pattern((first, *draw(st.lists(_texts.filter(bool), max_size=2)), last))


@st.composite
def _matches(draw: st.DrawFn) -> Leaf:
    name = draw(st.sampled_from([each.name for each in FIELDS.values() if each.kind in {Kind.NAME, Kind.TEXT}]))
    return Match(name, draw(_patterns()))


_leaves: st.SearchStrategy[Leaf] = st.one_of(
    _patterns().map(Word),
    _matches(),
    st.sampled_from(["failed", "unfinished"]).map(State),
    st.sampled_from(["queue", "runtime", "root"]).map(Unknown),
)


def _wider(terms: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(terms, min_size=2, max_size=4)
    negated = terms.map(lambda each: each.term if isinstance(each, Not) else Not(each))
    return st.one_of(negated, several.map(lambda each: join(All, each)), several.map(lambda each: join(Any, each)))


@pytest.mark.parametrize(
    ("pieces", "printed"),
    [
        (("-", ""), '"-"*'),
        (("-a", "b"), '"-a"*b'),
        (("", "-"), "*-"),
        (('-"',), r'"-\""'),
        (("-\\",), r'"-\\"'),
        (("- a", ""), '"- a"*'),
        (("OR", ""), "OR*"),
    ],
)
def test_a_word_that_begins_with_a_minus_is_quoted_up_to_its_wildcard(pieces: tuple[str, ...], printed: str) -> None:
    word = Word(Pattern(pieces))
    assert str(word) == printed
    assert expression(printed) == word
    assert expression(f"-{printed}") == Not(word)


@example(Word(Pattern(("-", ""))))
@example(All((Word(Pattern(("-\\",))), Not(Word(Pattern(('-"', "x", "")))))))
@given(st.recursive(_leaves, _wider, max_leaves=12))
def test_what_is_printed_reads_back_equal(given_expression: Expression) -> None:
    printed = str(Filter(given_expression))
    assert parse(printed, NOW).expression == given_expression
