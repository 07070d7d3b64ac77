"""Results as Celery's database backend really writes them; a pickle is never opened."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.app.task import Context

from celery_monitor.brokers.results import read_result
from celery_monitor.core.arguments import from_result
from celery_monitor.core.message import Unreadable
from celery_monitor.errors import StoreUnavailable
from celery_monitor.store.engine import open_store
from celery_monitor.store.foreign import CELERY, ResultTable, read_results

ZONE = "Asia/Tokyo"
REQUEST = Context(task="shop.pay", args=["order 17"], kwargs={"amount": 5}, hostname="till@shop")


class Opened:
    """Leaves a file behind where its pickle is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@contextmanager
def stored(url: str, **conf: object) -> Iterator[tuple[Any, ResultTable]]:
    """A backend of Celery's, in a table of its own."""
    name = f"results_{uuid4().hex[:8]}"
    given = url.replace("postgresql://", "postgresql+psycopg://")
    app = Celery("shop", backend=f"db+{given}", set_as_current=False)
    names = {"task": name, "group": f"{name}_group"}
    app.conf.update({"timezone": ZONE, "result_extended": True, "database_table_names": names, **conf})
    try:
        yield app.backend, ResultTable(url=url, name=name, columns=CELERY, timezone=ZONE)
    finally:
        app.close()


def test_results_are_read_as_celery_stores_them(database_url: str) -> None:
    ok, bad = "ok/ü", str(uuid4())
    with stored(database_url) as (backend, table):
        before = time.time()
        backend.store_result(ok, {"paid": "ü"}, "SUCCESS", request=REQUEST)
        backend.store_result(bad, ValueError("no such order"), "FAILURE", traceback="Traceback\n  in pay")
        found = read_results(table, [ok, bad, "nobody's"])
    assert found.keys() == {ok, bad}
    paid, failed = read_result(found[ok]), read_result(found[bad])
    assert paid is not None
    assert failed is not None
    assert (paid.event, paid.result, paid.worker) == ("task-succeeded", "{'paid': 'ü'}", "till@shop")
    assert before - 1 <= (paid.done or 0) <= time.time() + 1  # it was written in another time zone
    assert (failed.exception, failed.traceback) == ("ValueError('no such order')", "Traceback\n  in pay")
    told = from_result(ok, found[ok])
    assert (told.arguments.args, told.arguments.kwargs, told.name) == ('["order 17"]', '{"amount": 5}', "shop.pay")


def test_pickle_is_never_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/results.db"
    with stored(url, result_serializer="pickle", accept_content=["pickle"]) as (backend, table):
        request = Context(task="shop.pay", args=[Opened(tmp_path / "opened")], kwargs={}, hostname="till@shop")
        backend.store_result("a", Opened(tmp_path / "opened"), "SUCCESS", request=request)
        found = read_results(table, ["a"])["a"]
    assert set(json.loads(found)["unread"]) == {"result", "args", "kwargs"}
    end = read_result(found)
    assert end is not None
    assert (end.event, end.result, end.worker) == ("task-succeeded", None, "till@shop")
    with pytest.raises(Unreadable, match="never opened"):
        from_result("a", found)
    assert not (tmp_path / "opened").exists()


def test_table_of_a_plain_backend_has_no_arguments_and_its_times_may_have_no_zone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/results.db"
    with stored(url, result_extended=False) as (backend, table):
        backend.store_result("a", [1, 2], "SUCCESS")
        found = read_results(table._replace(timezone=None), ["a"])["a"]
    end = read_result(found)
    assert end is not None
    assert (end.result, end.done, end.worker) == ("[1, 2]", None, None)
    with pytest.raises(Unreadable, match="needs result_extended"):
        from_result("a", found)


def test_database_that_is_unreachable_or_lacks_the_table_raises(tmp_path: Path, database_url: str) -> None:
    gone = ResultTable(url=f"sqlite:///{tmp_path}/gone.db", name="celery_taskmeta", columns=CELERY, timezone=None)
    with pytest.raises(StoreUnavailable, match="cannot read results in sqlite:///"):
        read_results(gone, ["a"])
    assert not (tmp_path / "gone.db").exists()
    open_store(database_url).close()
    with pytest.raises(StoreUnavailable, match="no_such_table"):
        read_results(gone._replace(url=database_url, name="no_such_table"), ["a"])
