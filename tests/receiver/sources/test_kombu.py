"""Brokers that only kombu speaks to."""

from pathlib import Path

import pytest

from celery_monitor.errors import BrokerUnavailable
from tests.receiver.sources.conftest import MakeSource
from tests.receiver.traffic import numbered, publisher, read_all, read_dropping, wait_until_read
from tests.servers import free_port, running_redis


def test_filesystem(tmp_path: Path, source_of: MakeSource) -> None:
    messages, written, control = (tmp_path / name for name in ("messages", "written", "control"))
    for folder in (messages, written, control):
        folder.mkdir()
    options = {"data_folder_in": str(messages), "data_folder_out": str(written), "control_folder": str(control)}
    source = source_of("filesystem://", broker_options=options)
    assert (source.name, source.keeps_events) == ("kombu", False)
    with publisher("filesystem://", **options) as publish:
        publish.send_numbered(1, 3)
    for file in written.iterdir():  # whole: kombu reads a file also while it is written
        file.rename(messages / file.name)
    # Files of one millisecond have no order.
    assert {event.clock for event in read_all(source, 3)} == {1, 2, 3}


def test_sentinel(tmp_path: Path, source_of: MakeSource) -> None:
    with running_redis(tmp_path) as master:
        watch = f"sentinel monitor shop 127.0.0.1 {master.port} 1"
        with running_redis(tmp_path, sentinel=watch) as sentinel:
            url = f"sentinel://127.0.0.1:{sentinel.port}/4"
            source = source_of(url, broker_options={"master_name": "shop"})
            assert source.name == "kombu"
            with publisher(url, master_name="shop") as publish:
                publish.send_numbered(11, 13)
            assert [event.clock for event in read_all(source, 3)] == [11, 12, 13]
            source.close()


def test_what_the_buffer_cannot_hold_is_dropped_and_counted(redis_url: str, source_of: MakeSource) -> None:
    source = source_of(redis_url, source="kombu", buffer_bytes=50_000, spool_bytes=0)
    with publisher(redis_url) as publish:
        for number in range(500):
            publish.send("task.multi", f"[{numbered(number)}, {numbered(number)}]")
    wait_until_read(redis_url)
    events, dropped = read_dropping(source, 1000)
    assert events + dropped == 1000
    assert 50 < events < 900


def test_several_addresses_of_redis_are_tried_in_turn(redis_url: str, source_of: MakeSource) -> None:
    source = source_of(f"redis://127.0.0.1:{free_port()}/1;{redis_url}")
    assert source.name == "kombu"
    with publisher(redis_url) as publish:
        publish.send_numbered(31, 31)
    assert [event.clock for event in read_all(source, 1)] == [31]


def test_no_broker_is_reported(source_of: MakeSource) -> None:
    with pytest.raises(BrokerUnavailable, match="Check that the broker runs"):
        source_of(f"redis://127.0.0.1:{free_port()}/1", source="kombu")
