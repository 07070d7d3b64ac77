"""The receiver of the tests of the receiver."""

from tests.receiver.conftest import receiving, store

__all__ = ["receiving", "store"]
