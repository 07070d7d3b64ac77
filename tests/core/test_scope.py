"""Scopes: what their text means, and what is refused."""

import pytest

from celery_monitor.core.filters.scope import UNLIMITED, Limits, limits_of, parse_scope
from celery_monitor.errors import InvalidInput
from celery_monitor.records.user import Actor, Role


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("queue:emails", "queue:emails"),
        ("cluster:eu  queue:emails,mail-*", "cluster:eu (queue:emails OR queue:mail-*)"),
        ("(queue:a OR queue:b) name:shop.*", "(queue:a OR queue:b) name:shop.*"),
        ('queue:"a,b" OR queue:"c (d)"*', '(queue:"a,b" OR queue:"c (d)"*)'),
    ],
)
def test_the_text_of_a_scope_is_read_as_a_filter(text: str, canonical: str) -> None:
    scope = parse_scope(text)
    assert str(scope) == canonical
    assert parse_scope(canonical) == scope


@pytest.mark.parametrize(
    "text",
    [
        "emails",
        "-queue:emails",
        "state:failed",
        "args:x",
        "queue:a OR name:b",
        'queue:""',
        "queue:a,,b",
        "queue:",
        "(queue:a",
        "queue:" + "x" * 1000,
    ],
)
def test_anything_but_choices_of_clusters_queues_and_names_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="scope"):
        parse_scope(text)


def test_all_conditions_have_to_hold() -> None:
    scope = parse_scope("cluster:eu queue:emails,mail-* name:shop.mail.*")
    assert scope.has_task("eu", "shop.mail.send", "mail-7")
    assert not scope.has_task("us", "shop.mail.send", "mail-7")
    assert not scope.has_task("eu", "shop.pay", "emails")
    assert not scope.has_task("eu", "shop.mail.send", "Emails")
    assert not scope.has_task("eu", "shop.mail.send", None)  # unknown is outside
    assert not scope.has_task("eu", None, "emails")
    assert not scope.covers("eu")
    assert not scope.has_queue("eu", "emails")  # other tasks may wait there


def test_a_scope_of_clusters_has_all_of_each() -> None:
    scope = parse_scope("cluster:eu-*")
    assert scope.covers("eu-1")
    assert scope.has_task("eu-1", None, None)
    assert scope.has_queue("eu-1", "emails")
    assert not scope.covers("us")
    assert not scope.covers(None)  # everything
    assert parse_scope("").covers(None)


def test_limits_name_the_user_only_where_something_is_of_the_user_alone() -> None:
    assert limits_of(Actor("vera", Role.VIEWER)) == UNLIMITED
    assert limits_of(Actor("vera", Role.VIEWER, "", sees_arguments=False)) == Limits(arguments=False)
    assert limits_of(Actor("sam", Role.OPERATOR, "queue:a")) == Limits(parse_scope("queue:a"), actor="sam")
    with pytest.raises(InvalidInput):
        limits_of(Actor("sam", Role.OPERATOR, "damaged"))  # never everything
