"""What the tests of the store share."""

from collections.abc import Iterator

import pytest

from celery_monitor.store.engine import Store, open_store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An empty record, on SQLite and on PostgreSQL."""
    opened = open_store(database_url)
    yield opened
    opened.close()
