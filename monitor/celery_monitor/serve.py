"""The commands ``serve``, ``receive`` and ``web``: one receiver per broker and one web process, kept alive."""

import http.client
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import NoReturn

import msgspec

from celery_monitor.alerts.rules_file import read_rules_file
from celery_monitor.brokers.connection import check_brokers, with_application
from celery_monitor.errors import SettingsError, StoreUnavailable
from celery_monitor.files import unnamed_file
from celery_monitor.records.receiver import ReceiverEnding
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import connect_only, database_without_password, open_store
from celery_monitor.store.receivers import save_ending
from celery_monitor.supervise import ChildCall, ChildJob, Ending, Listening, SupervisorPlan, become_supervisor, job_of
from celery_monitor.web.security.access import check_bind

log = logging.getLogger(__name__)

Announce = Callable[[str], object]
ANSWER_SECONDS = 1.0
BACKLOG = 512


def with_brokers(settings: Settings) -> Settings:
    """Settings with at least one broker: the given ones, else the application's.

    Raises SettingsError, and Unsupported for a broker that can never be monitored.
    """
    settings = with_application(settings)
    if settings.broker:
        check_brokers(settings)
        return settings
    raise SettingsError(
        "no broker to monitor; give --broker redis://localhost:6379/0, --broker amqp://localhost or -A your_app, "
        "or try celery-monitor demo first"
    )


def start_afresh(settings: Settings, *command: str) -> NoReturn:
    """Goes on as a program that holds none of the user's modules, and no secret in its arguments.

    The settings are passed in memory: others could read a command line or an environment.
    """
    descriptor = unnamed_file(msgspec.json.encode(settings))
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: a module of the project that has the name of ours is not taken for it.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "celery_monitor", *command, str(descriptor)])  # noqa: S606


def handed_over(descriptor: int) -> Settings:
    """The settings from ``start_afresh``. Raises SettingsError where there are none."""
    try:
        with open(descriptor, "rb") as file:
            file.seek(0)
            return msgspec.json.decode(file.read(), type=Settings)
    except (OSError, ValueError):
        raise SettingsError("this command is for celery-monitor itself; start celery-monitor serve") from None


def run_serve(settings: Settings, stop: Event) -> None:
    """Receivers and the web process, until a signal ends them."""
    settings = with_brokers(settings)
    _run(settings, receiver_calls(settings), stop)


def run_web(settings: Settings, stop: Event) -> None:
    """The web process alone."""
    settings = with_application(settings)
    check_brokers(settings)
    _run(settings, [], stop)


def run_receive(settings: Settings, stop: Event) -> None:
    """The receivers alone."""
    settings = with_brokers(settings)
    prepare_store(settings)
    shown = database_without_password(settings.database)
    text = f"receiving events of {', '.join(settings.clusters)} into {shown}"
    if not stop.is_set():
        become_supervisor(SupervisorPlan(settings.log_level, receiver_calls(settings), text))


def _run(settings: Settings, calls: Sequence[ChildCall], stop: Event) -> None:
    check_access(settings)
    with _listening(settings) as listener:
        prepare_store(settings)
        settings = with_port(settings, listener)
        text = f"celery-monitor is at {url_of(settings)} (Ctrl-C to stop)"
        if not stop.is_set():
            plan = SupervisorPlan(
                settings.log_level, [web_call(settings, listener), *calls], text, _listening_at(settings)
            )
            become_supervisor(plan)


def _listening_at(settings: Settings) -> Listening:
    file = settings.unix_socket
    address = str(file) if file is not None else (_reachable(settings.host), settings.port)
    return Listening(address, f"{settings.url_prefix.rstrip('/')}/healthcheck", None if file is None else str(file))


def check_access(settings: Settings) -> None:
    """Raises SettingsError where other machines could act without signing in."""
    with closing(connect_only(settings.database)) as store:
        check_bind(settings, store)


def prepare_store(settings: Settings) -> None:
    """Opens and migrates the database once, so that a wrong address is an error before anything starts.

    So is a mistake in the rules file.
    """
    if settings.rules:
        read_rules_file(settings.rules)
    open_store(settings.database).close()


def receiver_jobs(settings: Settings) -> list[ChildJob]:
    return [job_of(call, settings.log_level) for call in receiver_calls(settings)]


def receiver_calls(settings: Settings) -> list[ChildCall]:
    return [_receiver_call(settings, broker) for broker in settings.broker]


def _receiver_call(settings: Settings, broker: Broker) -> ChildCall:
    arguments = (settings, broker)
    noting = ("celery_monitor.serve:note_ending", (settings.database, broker.cluster))
    name, function = f"receiver of {broker.cluster}", "celery_monitor.receiver.process:run"
    return ChildCall.of(name, settings.log_level, function, arguments, ended=noting)


def note_ending(database: str, cluster: str, ending: Ending, _stop: Event) -> None:
    """Records that a receiver ended unexpectedly, for the pages: a killed receiver cannot."""
    noted = ReceiverEnding(
        cluster=cluster, error=ending.cause, since=ending.since, failures=ending.failures, at=time.time()
    )
    with closing(connect_only(database)) as store:
        try:
            save_ending(store, noted)
        except StoreUnavailable as error:
            log.warning("pages cannot show that the receiver of %s ended: %s", cluster, error)


def web_job(settings: Settings, listener: socket.socket) -> ChildJob:
    return job_of(web_call(settings, listener), settings.log_level)


def web_call(settings: Settings, listener: socket.socket) -> ChildCall:
    """The listener outlives the web process: browsers wait in its backlog for the next one."""
    descriptor = listener.fileno()
    arguments = (settings, descriptor)
    return ChildCall.of("web", settings.log_level, "celery_monitor.web.app:serve", arguments, files=(descriptor,))


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket; a socket file is removed at the end. Raises SettingsError."""
    if settings.unix_socket is None:
        with closing(bind(settings.host, settings.port)) as listener:
            yield listener
        return
    file = Path(settings.unix_socket)
    with closing(bind_file(file)) as listener:
        try:
            yield listener
        finally:
            file.unlink(missing_ok=True)


def bind_file(file: Path) -> socket.socket:
    """A listening socket file for our user and group. Raises SettingsError where another process listens on it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if file.is_socket() and listener.connect_ex(str(file)) != 0:
            file.unlink()  # left by a process that was killed
            listener.close()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            listener.bind(str(file))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {file}: {error.strerror or error}; choose another --unix-socket"
        ) from None
    return listener


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises SettingsError if the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is given; else small packets wait 0.04 s for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError, ValueError) as error:  # the last for a host that cannot be a name
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port, or --port 0 for a free one"
        ) from None
    return listener


def with_port(settings: Settings, listener: socket.socket) -> Settings:
    """The port that ``--port 0`` got."""
    if settings.unix_socket is not None:
        return settings
    return replace(settings, port=int(listener.getsockname()[1]))


def url_of(settings: Settings) -> str:
    """The address that a browser on this machine can open; of a socket file, what a proxy is given."""
    if settings.unix_socket is not None:
        return f"unix:{settings.unix_socket}"
    host = _reachable(settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}{settings.url_prefix.rstrip('/')}/"


def is_connected(settings: Settings) -> bool:
    """Whether the web process answers, and every receiver is connected to its broker."""
    body = _get(settings, "/api/v1/health")
    if body is None:
        return False
    items = json.loads(body)["items"]
    return bool(items) and all(each["connected"] for each in items)


def _get(settings: Settings, path: str) -> bytes | None:
    client = http.client.HTTPConnection(_reachable(settings.host), settings.port, timeout=ANSWER_SECONDS)
    with closing(client):
        try:
            if settings.unix_socket is not None:
                client.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                client.sock.settimeout(ANSWER_SECONDS)
                client.sock.connect(settings.unix_socket)
            client.request("GET", f"{settings.url_prefix.rstrip('/')}{path}")
            return client.getresponse().read()
        except OSError:
            return None


def _reachable(host: str) -> str:
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))  # noqa: S104
