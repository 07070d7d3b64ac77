"""Tells receivers, through the record, that somebody uses the dashboard: they check and store more often then."""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from celery_monitor.errors import StoreUnavailable
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import USE_SECONDS, note_use

log = logging.getLogger(__name__)

NOTE_SECONDS = USE_SECONDS / 3
PROBE = "/api/v1/health"  # load balancers ask for it all day, and its answer is as true while nobody looks


class UseRecorder:
    """Stands behind the guard: every request of a user is a use, and so is every live page while it is open."""

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self.app = app
        self._store = store
        self._due = 0.0
        self._writing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "actor" not in scope or scope["path"].endswith(PROBE):
            await self.app(scope, receive, send)
            return
        self._note()
        open_page = asyncio.create_task(self._keep_noting()) if scope["type"] == "websocket" else None
        try:
            await self.app(scope, receive, send)
        finally:
            if open_page is not None:
                open_page.cancel()

    async def _keep_noting(self) -> None:
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            self._note()

    def _note(self) -> None:
        """Never waits for the database."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + NOTE_SECONDS
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(note_use, self._store)
        except StoreUnavailable as error:  # the pages say that the record cannot be written
            log.debug("the use of the dashboard is not recorded: %s", error)
