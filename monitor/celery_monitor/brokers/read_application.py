"""Reads a Celery application into one JSON document, in a process of its own that then ends.

Started by path with the application's name and a descriptor to write to. Nothing of ours is imported here, so that a
project with a module of one of our names is read like any other, and the project's imports, threads, memory and prints
end with this process.
"""

import enum
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import PurePath
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlencode

from celery import Celery
from celery.app.utils import find_app
from celery.schedules import schedule as interval

# Every setting that celery and kombu read on our behalf, or that we read ourselves.
USED = (
    "accept_content",
    "beat_enable_remote_control",
    "beat_scheduler",
    "broker_failover_strategy",
    "broker_login_method",
    "broker_transport_options",
    "broker_use_ssl",
    "control_exchange",
    "control_queue_durable",
    "control_queue_exclusive",
    "control_queue_expires",
    "control_queue_ttl",
    "database_table_names",
    "database_table_schemas",
    "database_url",
    "enable_utc",
    "event_exchange",
    "event_queue_prefix",
    "event_serializer",
    "redis_backend_health_check_interval",
    "redis_backend_use_ssl",
    "redis_client_name",
    "redis_db",
    "redis_host",
    "redis_password",
    "redis_port",
    "redis_username",
    "result_accept_content",
    "result_backend_transport_options",
    "result_extended",
    "result_serializer",
    "task_default_queue",
    "task_protocol",
    "task_send_sent_event",
    "task_serializer",
    "timezone",
)
REDBEAT = ("redbeat_key_prefix", "redbeat_redis_url")  # Celery has no defaults for them
DJANGO_RESULTS = (
    "django-db",
    "django_celery_results.backends:DatabaseBackend",
    "django_celery_results.backends.database:DatabaseBackend",
)
CALL_OPTIONS = ("queue", "priority", "expires", "compression", "time_limit", "soft_time_limit", "ignore_result")
MISSING = object()


class NotCarriedError(Exception):
    """A value that the document cannot contain; the text is its type."""


class EntryError(Exception):
    """An invalid entry of a schedule; the text is the reason."""


def main(name: str, descriptor: int, seconds: int) -> None:
    """Writes the document of the application, or ``{"error": ...}``."""
    signal.alarm(seconds)  # in case the parent, which has a time limit, is gone
    sys.path.insert(0, str(os.getcwd()))  # noqa: PTH109 - as celery does for -A
    try:
        document = document_of(found_app(name))
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, SystemExit included
        document = {"error": explained(name, error)}
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:
        json.dump(document, pipe)
    os._exit(0)  # despite threads that the user's modules have started


def found_app(name: str) -> Celery:
    app = find_app(name)
    if not isinstance(app, Celery):
        raise TypeError(f"{name} is {_kind(app)}, not a Celery application")
    return app


def document_of(app: Celery) -> dict[str, Any]:
    """What the product uses of a loaded application."""
    conf = app.conf
    conf.finalize()
    problems = _load_tasks(app)
    carried: dict[str, Any] = {}
    unusable: dict[str, str] = {}
    for name in (*USED, *REDBEAT):
        value = _setting(conf, name)
        if value is not MISSING:
            _carry(name, value, carried, unusable)
    entries, unread = schedule_of(conf.beat_schedule)
    backend = app.backend_cls or conf.result_backend
    _carry("result_backend", backend, carried, unusable)
    return {
        "conf": carried,
        "unusable": unusable,
        "broker_read_url": _address(app, conf.broker_read_url),
        "broker_write_url": _address(app, conf.broker_write_url),
        "queues": _queues(conf, unusable),
        "tasks": {str(name): _call_options(app, task) for name, task in app.tasks.items()},
        "entries": entries,
        "unread": unread,
        "databases": databases(backend, problems),
        "problems": problems,
    }


def _load_tasks(app: Celery) -> dict[str, str]:
    """Imports the task modules, as beat does: they often add entries to the schedule."""
    try:
        app.loader.import_default_modules()
        app.finalize(auto=True)
    except Exception as error:  # noqa: BLE001 - the configuration is read all the same
        return {"tasks": f"not all of its task modules can be imported: {_words(error)}{_place(error)}"}
    return {}


def _call_options(app: Celery, task: Any) -> dict[str, Any]:
    """The options with which ``apply_async`` of this task sends it, its queue by the routes of the application."""
    options = {name: getattr(task, name, None) for name in CALL_OPTIONS}
    try:
        queue = app.amqp.router.route(dict(options), task.name).get("queue")
    except Exception:  # noqa: BLE001 - routers are user code, and may need the arguments
        queue = None
    options["queue"] = getattr(queue, "name", queue)
    return {name: each for name, each in options.items() if isinstance(each, (str, int, float))}


def _setting(conf: Any, name: str) -> Any:
    for each in (name, name.upper()):
        try:
            return getattr(conf, each)
        except (AttributeError, KeyError):
            continue
    return MISSING


def _address(app: Celery, given: Any) -> str:
    """The setting if it is an address, else built by kombu from host, user and so on."""
    if isinstance(given, (list, tuple)):
        return ";".join(map(str, given))
    if isinstance(given, str) and "://" in given:
        return given
    return str(app.connection_for_read(given).as_uri(include_password=True))


def _queues(conf: Any, unusable: dict[str, str]) -> list[str]:
    """The names of the queues that workers of this application consume."""
    given = conf.task_queues
    if not given:
        return [str(conf.task_default_queue)]
    names = list(given) if isinstance(given, Mapping) else [getattr(each, "name", each) for each in given]
    if not all(isinstance(each, str) for each in names):
        unusable["task_queues"] = "it contains something that is neither a queue nor a name"
    return [str(each) for each in names if isinstance(each, str)]


# Values


def _carry(name: str, value: Any, carried: dict[str, Any], unusable: dict[str, str]) -> None:
    """Members of a dictionary are converted one by one, so that a bad one does not make the others unusable.

    The names of options are texts; within one, keys may be numbers, as those of ``socket_keepalive_options``.
    """
    if isinstance(value, Mapping):
        within = "." in name
        pairs = []
        for key, member in value.items():
            one: dict[str, Any] = {}
            _carry(f"{name}.{key}", member, one, unusable)
            pairs += [[key if isinstance(key, int) and within else str(key), each] for each in one.values()]
        carried[name] = {"mapping": pairs}
        return
    try:
        carried[name] = _plain(value)
    except NotCarriedError as error:
        unusable[name] = str(error)


def _plain(value: Any) -> Any:
    """Scalars unchanged; others as an object whose only key is the type (see ``records.application``)."""
    if isinstance(value, enum.Enum):
        if type(value).__module__ == "ssl":
            return {"ssl": value.name}
        return _plain(value.value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, PurePath)):
        return str(value)
    if isinstance(value, timedelta):
        return {"seconds": value.total_seconds()}
    for kind, types in (("list", list), ("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, types):
            return {kind: [_plain(each) for each in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[_plain(key), _plain(each)] for key, each in value.items()]}
    if type(value).__module__.startswith("django.utils.functional"):  # a lazily translated text
        return str(value)
    if hasattr(value, "utcoffset") and hasattr(value, "dst"):  # a time zone, whose text is its name
        return str(value)
    raise NotCarriedError(f"it is {_kind(value)}")


def _kind(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    name = getattr(value, "__qualname__", None)
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    if isinstance(value, type):
        return f"the class {kind.__module__}.{kind.__qualname__}"
    if callable(value) and name:
        return f"the function {name}"
    return f"an object of {kind.__module__}.{kind.__qualname__}"


# The schedule


def schedule_of(given: Any) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The valid entries, and the name and reason of each invalid one."""
    entries, unread = [], []
    if not isinstance(given, Mapping):
        return [], [{"name": "beat_schedule", "reason": f"it is {_kind(given)}, not a dictionary"}] if given else []
    for name, entry in given.items():
        try:
            entries.append(_entry(str(name), entry))
        except EntryError as error:
            unread.append({"name": str(name), "reason": str(error)})
        except Exception as error:  # noqa: BLE001 - the user's __repr__ may raise anything
            unread.append({"name": str(name), "reason": _words(error)})
    return entries, unread


def _entry(name: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise EntryError(f"the entry is {_kind(entry)}, not a dictionary")
    task, args, kwargs = entry.get("task"), entry.get("args") or (), entry.get("kwargs") or {}
    if not isinstance(task, str):
        raise EntryError("its task is not a name")
    if not isinstance(args, (list, tuple)):
        raise EntryError(f"its args are of type {type(args).__name__}, not a list")
    if not isinstance(kwargs, Mapping):
        raise EntryError(f"its kwargs are of type {type(kwargs).__name__}, not a dictionary")
    options = entry.get("options")
    queue = options.get("queue") if isinstance(options, Mapping) else None
    queue = getattr(queue, "name", queue)
    return {
        "name": name,
        "task": str(task),
        "args": repr(tuple(args)),
        "args_json": _json(list(args)),
        "kwargs": repr(dict(kwargs)),
        "kwargs_json": _json(dict(kwargs)),
        "queue": str(queue) if isinstance(queue, str) else None,
        "schedule": _when(entry.get("schedule")),
    }


def _when(schedule: Any) -> Any:
    """Seconds where it is an interval, else its text."""
    if type(schedule) is interval:
        schedule = schedule.run_every
    if isinstance(schedule, timedelta):
        return {"seconds": schedule.total_seconds()}
    if isinstance(schedule, (int, float)) and not isinstance(schedule, bool):
        return schedule
    if schedule is None:
        raise EntryError("it has no schedule")
    return schedule if isinstance(schedule, str) else repr(schedule)


def _json(value: Any) -> str | None:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return None


# Django


def databases(backend: Any, problems: dict[str, str]) -> dict[str, dict[str, str]]:
    """The databases of Django's result backend and schedule."""
    found: dict[str, dict[str, str]] = {}
    configured = getattr(sys.modules.get("django.conf"), "settings", None)
    if configured is None or not configured.configured:
        return found
    wanted = {}
    if str(backend).partition("://")[0] in DJANGO_RESULTS:
        wanted["results"] = ("django_celery_results", "TaskResult")
    if "django_celery_beat" in configured.INSTALLED_APPS:
        wanted["beat"] = ("django_celery_beat", "PeriodicTask")
    for use, (label, model) in wanted.items():
        try:
            found[use] = _database_of(label, model, configured)
        except Exception as error:  # noqa: BLE001 - a router or a database's back end may raise anything
            problems[f"{use} database"] = f"its database cannot be found: {_words(error)}"
    return found


def _database_of(label: str, model: str, configured: Any) -> dict[str, str]:
    apps = import_module("django.apps").apps
    database = import_module("django.db")
    if not apps.ready:
        import_module("django").setup()
    kind = apps.get_model(label, model)
    connection = database.connections[database.router.db_for_read(kind)]
    zone = "UTC" if configured.USE_TZ else str(configured.TIME_ZONE)
    return {"url": _database_url(connection), "table": kind._meta.db_table, "timezone": zone}


def _database_url(connection: Any) -> str:
    """An address as SQLAlchemy reads it."""
    given, vendor = connection.settings_dict, connection.vendor
    name = str(given["NAME"] or "")
    if vendor == "sqlite":
        return f"sqlite:///{name}"
    user = quote(str(given.get("USER") or ""), safe="")
    password = quote(str(given.get("PASSWORD") or ""), safe="")
    who = f"{user}:{password}@" if password else f"{user}@" if user else ""
    host, port = str(given.get("HOST") or ""), str(given.get("PORT") or "")
    more = {key: value for key, value in (given.get("OPTIONS") or {}).items() if isinstance(value, (str, int))}
    if host.startswith("/"):
        more["host" if vendor == "postgresql" else "unix_socket"], host = host, ""
    if vendor != "postgresql":
        more = {key: value for key, value in more.items() if key == "unix_socket"}
    else:
        more.pop("pool", None)
    where = f"{host}:{port}" if host and port else host
    return f"{vendor}://{who}{where}/{quote(name, safe='')}" + (f"?{urlencode(more)}" if more else "")


# Errors


def explained(name: str, error: BaseException) -> str:
    """What is wrong with the application, and where, in one line."""
    module = name.partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and error.name is None and name in str(error):
        return f"{module} has no {name.partition(':')[2]!r}"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name!r} in {os.getcwd()} or on PYTHONPATH"  # noqa: PTH109
    if isinstance(error, TypeError) and str(error).startswith(f"{name} is "):
        return str(error)
    if isinstance(error, AttributeError) and _is_ours(error):
        return f"{module} has no Celery application ({_words(error)})"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    return f"importing it raised {_words(error)}{_place(error)}"


def _words(error: BaseException) -> str:
    """Class and first words of an error, without the password of an address."""
    text = " ".join(str(error).split())
    text = re.sub(r"(\w://)[^\s/'\"]*@", r"\1**@", text)[:400]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_ours(error: BaseException) -> bool:
    """Whether Celery's search for the application raised it, not the user's modules."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith((f"{os.sep}utils.py", f"{os.sep}imports.py"))


def _place(error: BaseException) -> str:
    """The line of the user's code that raised it."""
    libraries = (__file__, "<", os.path.dirname(os.__file__))  # noqa: PTH120
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "site-packages" not in each.filename and not each.filename.startswith(libraries)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
