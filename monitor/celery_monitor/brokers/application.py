"""The user's Celery application: loaded in a separate process, and what its configuration means for us."""

import logging
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import msgspec
from celery import Celery

from celery_monitor.addresses import check_broker
from celery_monitor.brokers import read_application as reader
from celery_monitor.core.untrusted.values import NotJson, decode_json, plain_value
from celery_monitor.errors import SettingsError
from celery_monitor.records.application import Application
from celery_monitor.settings import Settings
from celery_monitor.settings.values import DEFAULT_CLUSTER, Broker

log = logging.getLogger(__name__)

LIMIT_SECONDS = 60
POLL_MILLISECONDS = 50
HINT = "write module:attribute, as for celery -A"


def application_of(settings: Settings) -> Application | None:
    """The application that the settings name; read once. Raises SettingsError."""
    if settings.application is not None or settings.app is None:
        return settings.application
    return _read_once(settings.app)


def with_application(settings: Settings) -> Settings:
    """Settings with their application, and with its broker if none is given. Raises SettingsError."""
    application = application_of(settings)
    if application is None:
        return settings
    for name, why in application.unusable.items():
        log.warning("%s of %s cannot be used here: %s", name, application.title, why)
    for why in application.problems.values():
        log.warning("%s: %s", application.title, why)
    broker = settings.broker or (broker_of(application),)
    return replace(settings, application=application, broker=broker)


def loaded(app: Celery, name: str | None) -> Application:
    """The Application record of an app that is already imported here. Raises SettingsError."""
    try:
        return _application(reader.document_of(app), name)
    except Exception as error:  # noqa: BLE001 - user code runs here
        raise _failed(name or "", reader.explained(name or "", error)) from None


def broker_of(application: Application) -> Broker:
    """The broker from which the application's workers read. Raises SettingsError for an address that can never work."""
    try:
        check_broker(application.broker_read_url)
    except SettingsError as error:
        name = "broker_read_url" if application.setting("broker_read_url") else "broker_url"
        raise SettingsError(f"the broker address of {application.title}: {error.message}; check its {name}") from None
    return Broker(DEFAULT_CLUSTER, application.broker_read_url)


def applies_to(application: Application, broker: Broker, settings: Settings) -> bool:
    """Whether the application belongs to this cluster; with several clusters the broker's address decides."""
    return len(settings.broker) <= 1 or broker.url == application.broker_read_url


def configured_queues(broker: Broker, settings: Settings) -> frozenset[str]:
    """The queues that the application configures, before any worker has answered."""
    application = application_of(settings)
    if application is None or not applies_to(application, broker, settings):
        return frozenset()
    return frozenset(application.queues)


def read_application(name: str, seconds: int = LIMIT_SECONDS) -> Application:
    """Imports the user's code in a separate process. Raises SettingsError with a one-line reason."""
    with TemporaryFile() as output:
        text = _run(name, seconds, output)
        try:
            document = decode_json(text)
        except NotJson:
            raise _failed(name, f"reading it ended without an answer{_last_line(output)}") from None
    if "error" in document:
        raise _failed(name, document["error"])
    return _application(document, name)


_read_once = lru_cache(maxsize=8)(read_application)


def _application(document: dict[str, Any], name: str | None) -> Application:
    return msgspec.convert({**plain_value(document), "name": name}, Application)


def _failed(name: str, why: str) -> SettingsError:
    return SettingsError(f"app {name!r} cannot be loaded: {why}; {HINT}")


def _run(name: str, seconds: int, output: IO[bytes]) -> bytes:
    """What the process writes to its pipe. Everything that is printed there goes to ``output``."""
    read, write = os.pipe()
    command = [sys.executable, "-P", str(Path(reader.__file__)), name, str(write), str(seconds + 5)]
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            pass_fds=(write,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(write)
        try:
            return _received(process, read, name, seconds)
        finally:
            with suppress(ProcessLookupError, PermissionError):  # and processes that the user's modules started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        os.close(read)


def _received(process: "subprocess.Popen[bytes]", pipe: int, name: str, seconds: int) -> bytes:
    """Everything that the process writes until it exits: its children may keep the pipe open for longer."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    deadline = time.monotonic() + seconds
    parts = []
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if poll.poll(POLL_MILLISECONDS):
            part = os.read(pipe, 1 << 20)
            parts.append(part)
            ended = not part
        if ended:
            return b"".join(parts)
    raise _failed(name, f"importing it did not end within {seconds} s")


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1].strip()[:200]}" if lines else ""
