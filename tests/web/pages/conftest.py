"""The whole application on a small record, and a client that is this machine's own browser."""

import re
from collections.abc import Iterator
from html import unescape

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store
from celery_monitor.web.app import create_app
from tests.web import shop


class Browser(TestClient):
    """Sends forms as a browser does: with the token of the page that has them."""

    def token(self, path: str) -> str:
        found = re.search(r'data-token="([^"]+)"', self.get(path).text)
        assert found
        return unescape(found.group(1))

    def submit(self, page: str, action: str, **fields: str | list[str]) -> str:
        """The page that a form leads to, as text."""
        data = {"csrf_token": self.token(page), **fields}
        headers = {"Origin": shop.BASE, "Sec-Fetch-Site": "same-origin"}
        return self.post(action, data=data, headers=headers).text


@pytest.fixture
def app(sqlite_url: str, redis_url: str) -> Iterator[Starlette]:
    application = create_app(Settings(broker=(Broker("shop", redis_url),), database=sqlite_url, port=5757))
    store: Store = application.state.store
    shop.fill(store)
    yield application
    store.close()


@pytest.fixture
def browser(app: Starlette) -> Iterator[Browser]:
    with Browser(app, base_url=shop.BASE, client=("127.0.0.1", 50123)) as browser:
        yield browser
