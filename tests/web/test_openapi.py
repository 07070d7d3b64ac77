"""The document and the routes say the same, and the application keeps to the document."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis.checks import positive_data_acceptance
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from celery_monitor.control.commands import SIGNALS
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.web.api import OPERATIONS, routes
from celery_monitor.web.api.operation import document
from celery_monitor.web.api.tasks import MEDIA
from tests.web.shop import fill, serving

DOCUMENT = document(OPERATIONS, "/celery")
FILTERS = (
    "",
    "state:failed",
    "-queue:payments runtime:>5s",
    "(name:shop.* OR worker:worker1@shop) received:>-1h",
    '"a b"',
)
# Only we can make a cursor, and one end of a span bounds the other: what fits its type may still be refused.
BEYOND_SCHEMA = {"cursor", "since", "until"}
BEYOND_BODY = {"/api/v1/rules", "/api/v1/channels", "/api/v1/channels/{id}/change"}  # filters, and what a kind has
schemathesis.openapi.format("task-filter", st.sampled_from(FILTERS))


def documented() -> set[tuple[str, str]]:
    return {(path, method.upper()) for path, item in DOCUMENT["paths"].items() for method in item}


def routed() -> set[tuple[str, str]]:
    return {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in routes()
        if isinstance(route, Route) and route.path.startswith("/api/v1/") and route.name != "openapi"
        for method in (route.methods or ())
        if method != "HEAD"
    }


def test_document_and_routes_name_the_same_operations() -> None:
    assert documented() == routed()
    assert ("/api/v1/tasks/{id}/retry", "POST") in documented()


PROMISED = """
tasks tasks/{id} tasks/{id}/retry tasks/{id}/revoke workers queues series actions health clusters
failures failures/{id} failures/{id}/resolve failures/{id}/mute failures/{id}/reopen workflows workflows/{root_id}
bulk bulk/preview bulk/{id} bulk/{id}/abort
schedule schedule/run
views views/save views/{id}/rename views/{id}/delete search export/tasks export/actions
alerts rules rules/mute rules/delete channels channels/{id}/change channels/{id}/delete channels/{id}/test
"""


@pytest.mark.parametrize("path", PROMISED.split())
def test_promised_path_is_there(path: str) -> None:
    assert f"/api/v1/{path}" in DOCUMENT["paths"]


def test_every_operation_says_what_it_answers() -> None:
    for item in DOCUMENT["paths"].values():
        for operation in item.values():
            assert operation["summary"]
            assert {"200", "400", "401", "403", "500", "503"} <= set(operation["responses"])
            for response in operation["responses"].values():
                shape = response["content"].get("application/json")
                if shape is None:  # a file of lines
                    assert set(response["content"]) == set(MEDIA.values())
                    continue
                reference = shape["schema"]["$ref"]
                assert reference.rpartition("/")[2] in DOCUMENT["components"]["schemas"]


def test_every_parameter_is_described() -> None:
    parameters = [each for item in DOCUMENT["paths"].values() for op in item.values() for each in op["parameters"]]
    assert parameters
    assert [each["name"] for each in parameters if not each["description"]] == []


def test_schemas_are_json_schemas() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})
        assert schema["title"] == name


def test_server_is_where_we_are_mounted() -> None:
    assert DOCUMENT["servers"] == [{"url": "/celery"}]
    assert document(OPERATIONS)["servers"] == [{"url": "/"}]


def test_signals_are_those_that_the_commands_know() -> None:
    signal = DOCUMENT["components"]["schemas"]["RevokeBody"]["properties"]["signal"]
    assert sorted(signal["enum"]) == sorted(SIGNALS)


# --- the application keeps to it


class Stage:
    """Stands for the application while tests are collected; a fixture puts it up."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


STAGE = Stage()
schema = schemathesis.openapi.from_dict(document(OPERATIONS))
schema.app = STAGE
schema.location = "/api/v1/openapi.json"


@pytest.fixture
def on_stage(database_url: str, redis_url: str) -> Iterator[None]:
    with put_up(database_url, redis_url):
        yield


@pytest.fixture
def on_sqlite(sqlite_url: str, redis_url: str) -> Iterator[None]:
    with put_up(sqlite_url, redis_url):
        yield


@contextmanager
def put_up(database_url: str, redis_url: str) -> Iterator[None]:
    with serving(Settings(broker=(Broker("shop", redis_url),), trusted_hosts=("testserver",)), database_url) as app:
        fill(app.state.store)
        STAGE.app = app
        yield


def keeps_to_document(case: schemathesis.Case[Any]) -> None:
    beyond_schema = BEYOND_SCHEMA & set(case.query or {}) or case.path in BEYOND_BODY
    case.call_and_validate(excluded_checks=[positive_data_acceptance] if beyond_schema else [])


@pytest.mark.usefixtures("on_stage")
@schema.include(method="GET").parametrize()
@hypothesis_settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_is_read_keeps_to_the_document(case: schemathesis.Case[Any]) -> None:
    keeps_to_document(case)


@pytest.mark.usefixtures("on_sqlite")
@schema.exclude(method="GET").parametrize()
@hypothesis_settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_is_done_keeps_to_the_document(case: schemathesis.Case[Any]) -> None:
    """Redis is real, so a retry that the document allows is sent."""
    keeps_to_document(case)


def test_served_document_is_this_one(on_stage: None) -> None:
    with TestClient(STAGE, base_url="http://testserver") as client:
        assert client.get("/api/v1/openapi.json").json() == document(OPERATIONS)


@pytest.mark.parametrize("mounted", [False, True])
def test_document_names_the_prefix(database_url: str, mounted: bool) -> None:
    with serving(Settings(url_prefix="" if mounted else "/celery"), database_url) as app:
        served = Starlette(routes=[Mount("/celery", app)]) if mounted else app
        client = TestClient(served, base_url="http://127.0.0.1")
        assert client.get("/celery/api/v1/openapi.json").json()["servers"] == [{"url": "/celery"}]
        assert client.get("/celery/api/v1/nothing").json()["error"]["code"] == "not_found"
        assert client.get("/celery/healthcheck").text == "OK"
