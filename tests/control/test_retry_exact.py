"""What changes in a message that is sent again, and what does not."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from celery_monitor.brokers.publish import Route
from celery_monitor.control.retry import copy_of, route_of
from celery_monitor.errors import Conflict
from tests.factories import make_id, make_message

OLD, NEW = make_id(31), make_id(32)
ROUTE = Route("", "payments")
DELAY = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1."


def test_the_id_changes_wherever_it_is_and_deliveries_are_forgotten() -> None:
    headers = {
        "parent_id": OLD,
        "retries": 3,
        "eta": "2026-11-01T00:00:00+00:00",
        "expires": "2026-11-01T00:00:00+00:00",
        "redelivered": True,
        "x-death": [{"count": 1}],
        "x-first-death-queue": "q",
        "x-delivery-count": 2,
        "x-tenant": "acme",
        "group": OLD,
    }
    copy = copy_of(make_message(OLD, headers=headers), OLD, NEW, ROUTE)
    assert copy.headers == {
        "id": NEW,
        "task": "shop.pay.charge",
        "root_id": NEW,
        "parent_id": NEW,
        "retries": 0,
        "eta": None,
        "expires": None,
        "x-tenant": "acme",
        "group": OLD,
        "argsrepr": "(31,)",
        "kwargsrepr": "{'card': 'visa'}",
    }
    assert copy.properties == {"priority": 4, "delivery_mode": 1, "correlation_id": NEW}


def test_another_root_stays() -> None:
    assert copy_of(make_message(OLD, headers={"root_id": "r7"}), OLD, NEW, ROUTE).headers["root_id"] == "r7"


def test_a_countdown_is_an_eta() -> None:
    eta = copy_of(make_message(OLD), OLD, NEW, ROUTE, countdown=90).headers["eta"]
    assert 80 < (datetime.fromisoformat(eta) - datetime.now(UTC)).total_seconds() < 91


def test_properties_of_one_delivery_are_left_out_and_a_message_ttl_is_kept() -> None:
    properties = {"user_id": "guest", "expiration": "61500", "reply_to": "r7", "cluster_id": "x"}
    copy = copy_of(make_message(OLD, properties=properties), OLD, NEW, ROUTE)
    assert copy.properties["expiration"] == 61.5
    assert copy.properties["reply_to"] == "r7"
    assert not {"user_id", "cluster_id"} & copy.properties.keys()


def test_typed_arguments_replace_those_of_the_body_and_nothing_else() -> None:
    links = {"callbacks": [{"task": "shop.mail"}], "chain": [{"task": "shop.book"}]}
    body = json.dumps([[31], {}, links]).encode()
    copy = copy_of(make_message(OLD, body=body), OLD, NEW, ROUTE, edited=([32], {"card": "amex"}))
    assert json.loads(copy.body) == [[32], {"card": "amex"}, links]
    assert (copy.headers["argsrepr"], copy.headers["kwargsrepr"]) == ("[32]", "{'card': 'amex'}")


def test_typed_arguments_do_not_go_into_what_cannot_be_opened() -> None:
    pickled = make_message(OLD, body=b"\x80\x04", content_type="application/x-python-serialize")
    with pytest.raises(Conflict, match="not opened here"):
        copy_of(pickled, OLD, NEW, ROUTE, edited=([1], {}))


@pytest.mark.parametrize(
    ("fields", "route"),
    [
        ({"exchange": "shop", "routing_key": "pay.eu"}, Route("shop", "pay.eu")),
        ({"exchange": "", "routing_key": "payments"}, Route("", "payments")),
        ({"exchange": "celery_delayed_delivery", "routing_key": f"{DELAY}pay.eu"}, Route("", "payments")),
        ({"exchange": "eu_celery_delayed_0", "routing_key": f"{DELAY}pay.eu", "queue": None}, Route("", "pay.eu")),
    ],
)
def test_native_delayed_delivery_is_mapped_back(fields: dict[str, Any], route: Route) -> None:
    assert route_of(make_message(OLD, **fields)) == route
