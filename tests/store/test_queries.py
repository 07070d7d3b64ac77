"""Lists, counts and facets against a plain reading of the same filter in Python, on both databases."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import sqlalchemy as sa

from celery_monitor.core.filters.parser import parse
from celery_monitor.core.filters.terms import (
    FIELDS,
    NO,
    STATES_BY_WORD,
    YES,
    All,
    Any,
    Expression,
    InGroups,
    Kind,
    Leaf,
    Match,
    Not,
    RetriedCondition,
    State,
    Unknown,
    ValueRange,
    Word,
)
from celery_monitor.errors import InvalidInput
from celery_monitor.records.page import Count
from celery_monitor.records.task import Task
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.tasks import facets as task_facets
from celery_monitor.store.tasks import page as task_page
from celery_monitor.store.tasks import plan
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.facets import read_facets
from celery_monitor.store.tasks.keys import Cursor, write_cursor
from celery_monitor.store.tasks.page import count_tasks, find_tasks
from celery_monitor.store.tasks.where import contains
from celery_monitor.store.terms import find_terms
from tests.factories import NOW, make_id
from tests.store.traffic import NAMES, seed

NOW_SEEN = NOW + 300
FILTERS = [
    "",
    "state:failed",
    "state:succeeded",
    "state:unfinished",
    "-state:succeeded",
    "-state:failed -state:retry",
    "state:scheduled OR state:pending",
    "name:shop.pay.charge",
    "name:shop.pay.*",
    "name:*pay* state:failed",
    "name:SHOP.pay.charge",
    "name:nothing",
    "-name:shop.* state:succeeded",
    'name:"100%_sure"',
    "name:100*",
    "queue:payments",
    'queue:""',
    '-queue:""',
    "queue:slow",
    "queue:slow state:failed",
    "-queue:payments worker:worker1@shop",
    "worker:Worker1@shop OR worker:worker2@shop state:failed",
    "worker:*1@shop (state:failed OR queue:mail)",
    "cluster:eu",
    "cluster:nowhere",
    "-cluster:eu state:started name:shop.mail.send",
    f"id:{make_id(8)}",
    f"-id:{make_id(8)} state:failed",
    "id:order-14",
    "id:order-1*",
    "id:00000007-0000-*",
    "id:00000007-0000-0000-0000-00000000000*",
    "id:nothing",
    f"root:{make_id(11)}",
    f"root:{make_id(11)} state:failed",
    "root:00000007-0000-0000-0000-00000000001*",
    f"parent:{make_id(21)}",
    f"parent:{make_id(11)}",
    f"parent:{make_id(71)}",
    'parent:""',
    '-root:""',
    "group:1",
    "group:1 OR group:2",
    "-group:1 state:failed",
    'group:""',
    "args:eur%",
    'args:"(5, "*',
    "kwargs.card:visa_1",
    "kwargs.card:Visa*",
    "kwargs.card:isa_1",
    "kwargs.ard:Visa_1",
    "kwargs:card",
    "result:ok",
    'result:"" state:started',
    "exception:TimeoutError",
    'exception:"TimeoutError("*',
    "-exception:timeout state:failed",
    "exception:card_31",
    "exception:cardx31",
    "traceback:pay1.py",
    "retries:2",
    "retries:>=1 state:failed",
    "runtime:>5s",
    "-runtime:>5s",
    "runtime:100ms..3s name:shop.*",
    'runtime:""',
    "wait:>1s",
    "wait:<=250ms",
    "received:>-1m",
    "-received:>-1m",
    "received:>-4m received:<-2m state:failed",
    "received:-4m..-2m queue:payments",
    'received:""',
    "received:>-1m OR state:failed",
    "sent:>-1m",
    "started:<-2m",
    "finished:>-30s",
    "timeout",
    "Declined",
    "PAY.charge state:failed",
    "shop.*.send",
    "eur%",
    "visa_2",
    "visax2",
    make_id(8),
    make_id(8).upper(),
    "order-2",
    "-timeout -pay",
    "mail OR order-14",
]


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    seed(opened)
    yield opened
    opened.close()


def everything(store: Store) -> list[Task]:
    page = find_tasks(store, parse("", NOW_SEEN), limit=1000)
    return [read_task(store, each.id, each.cluster) for each in page.items]


def text_of(task: Task, leaf: Match) -> str | None:
    names = {"id": "id", "root": "root_id", "parent": "parent_id"}
    value = getattr(task, names.get(leaf.field, leaf.field))
    return None if value is None else str(value)


def retry_is(word: str, task: Task) -> bool:
    if task.retried is None or task.retried.state is None:
        return task.retried is not None and not word
    return bool(word) and task.retried.state in STATES_BY_WORD[word]


def matches(leaf: Leaf, task: Task) -> bool:
    """What the documentation says, in as few words as possible."""
    if isinstance(leaf, State):
        return task.state in leaf.states
    if isinstance(leaf, Word):
        wildcard_free = leaf.pattern.literal
        texts = (task.name, task.args, task.kwargs, task.exception)
        named = wildcard_free and task.id.startswith(leaf.pattern.pieces[0].lower())
        return named or any(each is not None and contains(leaf.pattern, each) for each in texts)
    if isinstance(leaf, RetriedCondition):
        return (leaf.word == NO) == (task.retried is None) if leaf.word in {YES, NO} else retry_is(leaf.word, task)
    if isinstance(leaf, InGroups):
        raise NotImplementedError  # what people decided about groups is no fact of a task
    name = {"group": "failure_group", "root": "root_id", "parent": "parent_id"}.get(leaf.field, leaf.field)
    value = getattr(task, name)
    if isinstance(leaf, Unknown):
        return value is None
    if isinstance(leaf, ValueRange):
        return value is not None and leaf.interval.holds(value)
    if leaf.key is not None:
        entry = f"'{leaf.key}': '{leaf.pattern.pieces[0]}" + ("'" if leaf.pattern.literal else "")
        return entry.lower() in (value or "").lower()
    text = text_of(task, leaf)
    if text is None:
        return False
    return contains(leaf.pattern, text) if FIELDS[leaf.field].kind is Kind.TEXT else leaf.pattern.matches(text)


def holds(expression: Expression, task: Task) -> bool:
    if isinstance(expression, All):
        return all(holds(each, task) for each in expression.terms)
    if isinstance(expression, Any):
        return any(holds(each, task) for each in expression.terms)
    if isinstance(expression, Not):
        return not holds(expression.term, task)
    return matches(expression, task)


def test_every_filter_lists_and_counts_what_it_says(store: Store) -> None:
    known = everything(store)
    assert len({(each.cluster, each.id) for each in known}) == 300
    empty = []
    for text in FILTERS:
        wanted = parse(text, NOW_SEEN)
        expected = [each.pk for each in known if holds(wanted.expression, each)]
        found = find_tasks(store, wanted, limit=1000)
        assert [each.pk for each in found.items] == expected, text
        assert found.count == Count(len(expected)), text
        assert count_tasks(store, wanted) == Count(len(expected)), text
        assert (found.next, found.previous, found.searched) == (None, None, None), text
        empty += [text] * (not expected)
    assert empty == [
        "name:SHOP.pay.charge",
        "name:nothing",
        "queue:slow state:failed",
        "cluster:nowhere",
        "id:nothing",
        "kwargs.card:isa_1",
        "kwargs.ard:Visa_1",
        "exception:cardx31",
        "visax2",
    ]


@pytest.mark.parametrize("sort", ["-received", "received", "-runtime", "runtime", "name", "-worker", "wait", "-state"])
def test_pages_forth_and_back_are_the_whole_list(store: Store, sort: str) -> None:
    for text in ("", "state:unfinished", "name:shop.*", "retries:2", "queue:payments worker:worker1@shop"):
        wanted = parse(text, NOW_SEEN)
        whole = [each.pk for each in find_tasks(store, wanted, sort=sort, limit=1000).items]
        pages = [find_tasks(store, wanted, sort=sort, limit=11)]
        while pages[-1].next is not None and len(pages) < 50:
            pages.append(find_tasks(store, wanted, sort=sort, limit=11, cursor=pages[-1].next))
        assert [each.pk for page in pages for each in page.items] == whole
        assert len(pages) == -(-len(whole) // 11)
        for earlier, later in pairwise(pages):
            back = find_tasks(store, wanted, sort=sort, limit=11, cursor=later.previous)
            assert [each.pk for each in back.items] == [each.pk for each in earlier.items]
            assert (back.previous is None) == (earlier is pages[0])
        assert pages[0].previous is None


def test_sorted_by_a_measure_the_unknown_come_last(store: Store) -> None:
    for sort, sign in (("runtime", 1), ("-runtime", -1)):
        found = [each.runtime for each in find_tasks(store, parse("", NOW_SEEN), sort=sort, limit=1000).items]
        known = [each for each in found if each is not None]
        assert None in found
        assert found == sorted(known, key=lambda each: sign * each) + [None] * (len(found) - len(known))


def test_sorted_by_name_is_by_code_point(store: Store) -> None:
    found = [each.worker or "" for each in find_tasks(store, parse("", NOW_SEEN), sort="worker", limit=1000).items]
    assert found == sorted(found)
    assert {"Worker1@shop", "worker1@shop"} <= set(found)


@pytest.mark.parametrize("cursor", ["", "x", "é", "W10", "WyItcmVjZWl2ZWQiLCJuZXh0IiwxZTk5OSwxXQ", "bnVsbA"])
def test_a_cursor_that_is_none_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="first page"):
        find_tasks(store, parse("", NOW_SEEN), cursor=cursor)


def test_a_cursor_with_a_key_of_the_wrong_kind_is_refused(store: Store) -> None:
    for sort, key in (("-received", "x"), ("name", 5.5), ("name", "a\0b"), ("-received", 2**64)):
        cursor = write_cursor(Cursor(sort, "next", key, 7))
        with pytest.raises(InvalidInput, match="first page"):
            find_tasks(store, parse("", NOW_SEEN), sort=sort, cursor=cursor)


def test_a_cursor_of_another_order_is_refused(store: Store) -> None:
    cursor = find_tasks(store, parse("", NOW_SEEN), limit=5).next
    with pytest.raises(InvalidInput, match="'-received'"):
        find_tasks(store, parse("", NOW_SEEN), sort="name", cursor=cursor)


def test_sorts_and_limits_are_checked(store: Store) -> None:
    with pytest.raises(InvalidInput, match="runtime"):
        find_tasks(store, parse("", NOW_SEEN), sort="colour")
    for limit in (0, 1001):
        with pytest.raises(InvalidInput, match="1 to 1000"):
            find_tasks(store, parse("", NOW_SEEN), limit=limit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "state:failed",
        "queue:payments name:shop.*",
        "retries:>0 state:failed",
        "visa_1",
        "state:failed OR queue:mail",
        "-queue:payments -exception:*Declined* retries:1",
        "exception:*timed*",
        "(worker:Worker1@shop OR name:100%_sure) cluster:shop",
        "received:>-5m -state:succeeded",
    ],
)
def test_each_facet_counts_what_its_term_would_list(store: Store, text: str) -> None:
    wanted = parse(text, NOW_SEEN)
    found = read_facets(store, wanted, ("state", "name", "queue", "worker", "cluster", "exception"))
    assert set(found) == {"state", "name", "queue", "worker", "cluster", "exception"}
    for name, facets in found.items():
        assert facets, name
        for facet in facets:
            narrowed = wanted.without_field(name) & facet.term
            assert facet.count == count_tasks(store, narrowed), facet
    assert {each.value for each in found["exception"]} <= {"TimeoutError", "ReadTimeoutError", "shop.errors.Declined"}


def test_the_names_of_a_filter_are_looked_up_once_for_all_its_facets(store: Store) -> None:
    sent: list[str] = []
    sa.event.listen(store.engine, "before_cursor_execute", lambda _c, _k, sql, *_: sent.append(sql))
    found = read_facets(store, parse("name:shop.pay.* retries:>0 state:failed", NOW_SEEN))
    assert all(found[name] for name in ("state", "name", "queue", "worker", "exception"))
    assert len([sql for sql in sent if "term.kind" in sql]) == 1


def test_facets_of_an_unknown_field_are_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="no facets of colour"):
        read_facets(store, parse("", NOW_SEEN), ("colour",))


def test_a_search_that_does_not_reach_everything_says_so_and_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = parse("args:\"(3, 'EUR%')\"", NOW_SEEN)
    monkeypatch.setattr(plan, "BUDGET", 100)
    first = find_tasks(store, wanted, limit=10)
    assert (first.items, first.count, first.searched) == ([], Count(0, exact=False), Count(100))
    second = find_tasks(store, wanted, limit=10, cursor=first.next)
    third = find_tasks(store, wanted, limit=10, cursor=second.next)
    assert (second.items, [each.args for each in third.items]) == ([], ["(3, 'EUR%')"])
    assert (third.next, third.searched) == (None, None)
    back = find_tasks(store, wanted, limit=10, cursor=third.previous)
    assert (back.items, back.searched) == ([], Count(100))


def test_a_known_id_is_found_however_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BUDGET", 40)
    found = find_tasks(store, parse(make_id(2), NOW_SEEN))
    assert make_id(2) in {each.id for each in found.items}


def test_counts_stop_at_their_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_page, "COUNT_LIMIT", 20)
    assert count_tasks(store, parse("retries:1", NOW_SEEN)) == Count(20, exact=False)
    assert count_tasks(store, parse("name:shop.*", NOW_SEEN)).exact


def test_a_count_beside_a_page_may_end_sooner_than_the_search(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_tasks(store, parse("retries:1", NOW_SEEN), limit=5)
    rare = find_tasks(store, parse("args:\"(3, 'EUR%')\"", NOW_SEEN), limit=5)
    assert whole.count is not None
    monkeypatch.setattr(task_page, "COUNTED_ROWS", 150)
    found = find_tasks(store, parse("retries:1", NOW_SEEN), limit=5)
    assert found.count is not None
    assert (found.items, found.searched) == (whole.items, None)
    assert not found.count.exact
    assert 5 < found.count.value < whole.count.value
    second = find_tasks(store, parse("retries:1", NOW_SEEN), limit=5, cursor=found.next)
    assert second.count == found.count
    again = find_tasks(store, parse("args:\"(3, 'EUR%')\"", NOW_SEEN), limit=5)
    assert ([each.pk for each in again.items], again.count) == ([each.pk for each in rare.items], rare.count)


def test_facets_of_many_rows_say_that_there_are_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_facets, "SCANNED_ROWS", 100)
    found = read_facets(store, parse("retries:1", NOW_SEEN), ("name", "state"))
    assert found["name"]
    assert not any(each.count.exact for values in found.values() for each in values)
    assert all(each.count.exact for each in read_facets(store, parse("", NOW_SEEN), ("name",))["name"])


def test_names_for_autocomplete(store: Store) -> None:
    assert find_terms(store, "name", "SHOP.pay", 5) == ["shop.pay.charge", "shop.pay.refund"]
    assert find_terms(store, "name", "pay", 1) == ["shop.pay.charge"]
    assert find_terms(store, "name", "%") == ["100%_sure"]
    assert set(find_terms(store, "name", "")) == set(NAMES)
    with pytest.raises(InvalidInput, match="queue"):
        find_terms(store, "colour", "")


def test_a_sorted_list_of_many_says_how_many_were_searched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BUDGET", 100)
    wanted = parse("", NOW_SEEN)
    newest = find_tasks(store, wanted, limit=100).items
    first = find_tasks(store, wanted, sort="-runtime", limit=60)
    second = find_tasks(store, wanted, sort="-runtime", limit=60, cursor=first.next)
    assert (first.searched, first.count) == (Count(100), Count(300))
    assert {each.pk for each in (*first.items, *second.items)} >= {each.pk for each in newest}
    assert len(first.items) + len(second.items) <= 101
    assert second.next is None


def test_a_count_of_rare_tasks_is_exact_even_where_the_list_is_not_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "BUDGET", 10)
    wanted = parse("worker:worker2@shop queue:mail -name:shop.mail.send state:succeeded", NOW_SEEN)
    found, seen, cursor = find_tasks(store, wanted), [], None
    assert found.count is not None
    assert found.count.exact
    for _ in range(100):
        page = find_tasks(store, wanted, cursor=cursor)
        seen += [each.pk for each in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == found.count.value > 1
