"""Saved views: one name each, kept for everybody."""

import pytest

from celery_monitor.errors import Conflict, NotFound
from celery_monitor.store import views
from celery_monitor.store.engine import Store
from celery_monitor.store.views import delete_view, read_view, read_views, rename_view, save_view


def save(store: Store, name: str) -> int:
    return save_view(store, name, "/tasks", "q=state%3Afailed", "olga", 7.5).id


def test_views_come_by_name_whatever_their_case(store: Store) -> None:
    for name in ("slow", "Failed", "älter"):
        save(store, name)
    assert [view.name for view in read_views(store)][:2] == ["Failed", "slow"]
    found = read_views(store)[0]
    assert (found.path, found.query, found.actor, found.at) == ("/tasks", "q=state%3Afailed", "olga", 7.5)


def test_a_name_is_given_once(store: Store) -> None:
    first, second = save(store, "failed"), save(store, "slow")
    with pytest.raises(Conflict, match="'failed'"):
        save(store, "failed")
    with pytest.raises(Conflict, match="'failed'"):
        rename_view(store, second, "failed")
    assert rename_view(store, first, "failed").name == "failed"  # its own name is no other's
    assert [view.name for view in read_views(store)] == ["failed", "slow"]


def test_a_deleted_view_is_gone_and_its_name_free(store: Store) -> None:
    number = save(store, "failed")
    assert delete_view(store, number).name == "failed"
    for change in (
        delete_view,
        lambda store, number: rename_view(store, number, "other"),
        read_view,
    ):
        with pytest.raises(NotFound):
            change(store, number)
    save(store, "failed")


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**70])
def test_a_number_that_no_view_can_have_is_not_found(store: Store, number: int) -> None:
    with pytest.raises(NotFound):
        read_view(store, number)


def test_there_is_an_end_to_views(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_VIEWS", 2)
    save(store, "failed")
    save(store, "slow")
    with pytest.raises(Conflict, match="2 saved views"):
        save(store, "one more")
