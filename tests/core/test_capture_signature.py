"""Signatures: what a worker signs is what the monitor checks, and every changed field shows."""

import base64
from typing import Any

import celery_monitor_capture
import msgspec
import pytest

from celery_monitor.core.captures import is_signed
from celery_monitor.records.event import Message, Signature
from tests.factories import make_id, make_message

ID, KEY = make_id(51), "k3y of the shop"


def signed(key: str = KEY, **fields: Any) -> Message:
    """Signed by the plug-in's own function, from the fields that it sends."""
    message = make_message(ID, **fields)
    described = {**msgspec.structs.asdict(message), "signature": None}
    described["body"] = None if message.body is None else base64.b64encode(message.body).decode()
    given = celery_monitor_capture.sign(described, ID, str(message.worker), key.encode())
    return msgspec.structs.replace(message, signature=Signature(**given))


def test_plug_in_and_monitor_sign_the_same_text() -> None:
    assert is_signed(signed(), ID, (KEY,))
    assert is_signed(signed(body=b"\x80\x04\xff", content_type="application/x-python-serialize"), ID, (KEY,))
    assert is_signed(signed(exchange=None, queue=None, chain=2, chord="shop.süm"), ID, (KEY,))


def test_any_of_several_keys_signs() -> None:
    assert is_signed(signed("old"), ID, ("new", "old"))
    assert not is_signed(signed("older"), ID, ("new", "old"))
    assert not is_signed(signed(), ID, ())


@pytest.mark.parametrize(
    "changed",
    [
        {"worker": "worker2@shop"},
        {"why": "revoked"},
        {"headers": '{"id": 1}'},
        {"properties": "{}"},
        {"body": b"[]"},
        {"body": None},
        {"size": 7},
        {"content_type": "application/x-yaml"},
        {"content_encoding": "binary"},
        {"exchange": "shop"},
        {"routing_key": "admin"},
        {"queue": "admin"},
        {"as_sent": False},
        {"chain": 9},
        {"chord": "shop.sum"},
        {"signature": None},
        {"signature": Signature(time=0.0, mac="é\ud800")},
    ],
    ids=str,
)
def test_every_changed_field_breaks_the_signature(changed: dict[str, Any]) -> None:
    assert not is_signed(msgspec.structs.replace(signed(), **changed), ID, (KEY,))


def test_signature_holds_for_one_task_and_one_time() -> None:
    message = signed()
    assert message.signature is not None
    assert not is_signed(message, make_id(52), (KEY,))
    later = msgspec.structs.replace(message.signature, time=message.signature.time + 60)
    assert not is_signed(msgspec.structs.replace(message, signature=later), ID, (KEY,))


def test_plug_in_reads_the_first_key_of_its_file(tmp_path: Any) -> None:
    file = tmp_path / "key"
    file.write_text("# since May\n\n new \nold\n")
    assert celery_monitor_capture.read_key(str(file)) == b"new"
    empty = tmp_path / "empty"
    empty.write_text("\n# none\n")
    with pytest.raises(ValueError, match="has no key"):
        celery_monitor_capture.read_key(str(empty))
