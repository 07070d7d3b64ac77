"""Flower's language of ``search``, in our filters."""

import pytest
from flower.utils.search import QuerySyntaxError, parse_query

from celery_monitor.core.filters.terms import All
from celery_monitor.web.flower.tasks import LONGEST, NOTHING, SearchError, parse_search


def test_empty_search_matches_everything() -> None:
    assert parse_search("  ") == All()


@pytest.mark.parametrize(
    ("search", "condition"),
    [
        ("name:add", "name:*add*"),
        ("NAME:add", "name:*add*"),
        ("state:success", "state:succeeded"),
        ("state:FAILURE", "state:failed"),
        ("state:received", "state:received OR state:scheduled"),
        ("kwargs:order=17", "kwargs.order:17"),
        ('args:"card refused"', 'args:"card refused"'),
        ("name:add AND result:seven", "name:*add* result:seven"),
        ("name:add result:seven", "name:*add* result:seven"),
        ("name:add result:seven OR worker:web", "name:*add* result:seven OR worker:*web*"),
        ("name:add (result:seven OR worker:web)", "name:*add* (result:seven OR worker:*web*)"),
        ("name:add OR (name:fail OR name:echo)", "name:*add* OR name:*fail* OR name:*echo*"),
        (r"args:a\"b", r'args:"a\"b"'),
    ],
)
def test_search_is_a_filter(search: str, condition: str) -> None:
    assert str(parse_search(search)) == condition


def test_bare_text_is_looked_for_everywhere() -> None:
    found = str(parse_search("charge"))
    assert found == "id:charge* OR name:*charge* OR worker:*charge* OR args:charge OR kwargs:charge OR result:charge"
    assert str(parse_search("fail")).endswith("OR state:failed")


def test_unknown_state_matches_nothing() -> None:
    assert parse_search("state:nonsense") == NOTHING


@pytest.mark.parametrize(
    ("search", "error"),
    [
        ('"open', "Unterminated quoted phrase at position 0."),
        ('name:add "open', "Unterminated quoted phrase at position 9."),
        ('name:add""" ', "Unterminated quoted phrase at position 0."),
        ('""', "Empty search term at position 0."),
        ("NOT name:add", "NOT is not supported at position 0."),
        ("-name:add", "Negation with '-' is not supported at position 0."),
        ("state:", "Search qualifier requires a value at position 0."),
        ("ab", "Substring search terms must contain at least 3 characters at position 0."),
        ("kwargs:ab", "Substring search terms must contain at least 3 characters at position 0."),
        ("()", "Empty group at position 0."),
        ("(name:add", "Missing closing parenthesis at position 0."),
        ("name:add)", "Unexpected ')' at position 8."),
        ("OR", "Expected a search term at position 0."),
        ("name:add OR", "OR must be followed by a search term at position 9."),
        ("name:add AND OR name:x", "AND must be followed by a search term at position 9."),
        ("(((((((name:add)))))))", "Query nesting exceeds 5 levels at position 5."),
        ("name:add " * 129, "Query exceeds 128 tokens."),
        ("x" * (LONGEST + 1), "Query exceeds 2048 characters."),
    ],
)
def test_error_is_flowers(search: str, error: str) -> None:
    with pytest.raises(SearchError) as caught:
        parse_search(search)
    assert str(caught.value) == error
    with pytest.raises(QuerySyntaxError) as theirs:
        parse_query(search)
    assert str(theirs.value) == error
