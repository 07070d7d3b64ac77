"""Every setting in one table: name, type, default, parser, help. Options and environment variables follow from it.

A value comes from an option, else ``CELERY_MONITOR_<NAME>``, else the TOML file, else the default. An unknown name
raises SettingsError.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from celery_monitor.addresses import transport_of
from celery_monitor.core.untrusted import SECRET_KEYS
from celery_monitor.errors import MonitorError, SettingsError
from celery_monitor.records.application import Application
from celery_monitor.settings.values import (
    DEFAULT_CLUSTER,
    METRIC_BUCKETS,
    Broker,
    NamedUrl,
    checked_options,
    parse_backend,
    parse_beat_database,
    parse_bool,
    parse_broker,
    parse_broker_options,
    parse_bucket,
    parse_choice,
    parse_count,
    parse_database,
    parse_float,
    parse_header_name,
    parse_http,
    parse_int,
    parse_issuer,
    parse_name,
    parse_network,
    parse_ping,
    parse_port,
    parse_prefix,
    parse_redbeat,
    parse_scope_of,
    quoted,
)

ENVIRONMENT_PREFIX = "CELERY_MONITOR_"
ADDRESSES = ("result_backend", "redbeat", "beat_database")  # each of one cluster
REDACTED_KEYS = SECRET_KEYS


def _setting(
    default: Any,
    parse: Callable[[str], Any],
    help: str,  # noqa: A002
    *,
    multiple: bool = False,
    metavar: str = "",
    secret: bool = False,
) -> Any:
    metadata = {"parse": parse, "help": help, "multiple": multiple, "metavar": metavar, "secret": secret}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """One value per setting. --help, docs/settings.md and the TOML reader use the metadata."""

    broker: tuple[Broker, ...] = _setting(
        (),
        parse_broker,
        "broker to monitor, may be given several times",
        multiple=True,
        metavar="[NAME=]URL",
        secret=True,
    )
    app: str | None = _setting(
        None, str, "Celery application (module:attribute) whose configuration to use; imports your code", metavar="APP"
    )
    result_backend: tuple[Broker, ...] = _setting(
        (),
        parse_backend,
        "result backend to read arguments (where it is extended) and missed ends from, redis://... or "
        "db+postgresql://...; else that of --app; may be given several times",
        multiple=True,
        metavar="[NAME=]URL",
        secret=True,
    )
    database: str = _setting(
        "sqlite:///celery-monitor.db",
        parse_database,
        "database for the record: sqlite:/// or postgresql://",
        metavar="URL",
        secret=True,
    )
    host: str = _setting(
        "127.0.0.1", str, "address to listen on; anything but loopback needs authentication", metavar="ADDRESS"
    )
    port: int = _setting(5555, parse_port, "port to listen on; 0 picks a free one", metavar="PORT")
    unix_socket: str | None = _setting(
        None, str, "socket file to listen on instead of --host and --port, for a proxy on this machine", metavar="FILE"
    )
    url_prefix: str = _setting(
        "", parse_prefix, "path under which the dashboard is served, such as /celery", metavar="PATH"
    )
    basic_auth: tuple[str, ...] = _setting(
        (),
        str,
        "user:role:password or user:role:argon2-hash; without a role a viewer; a role may have a scope, as in "
        "operator[queue:emails]; may be given several times",
        multiple=True,
        metavar="USER:HASH",
        secret=True,
    )
    oidc_provider: str = _setting(
        "oidc",
        parse_choice("oidc", "google", "github", "gitlab", "okta", "keycloak"),
        "identity provider to sign in with: oidc (any, with --oidc-issuer), google, github, gitlab, okta, keycloak",
        metavar="NAME",
    )
    oidc_issuer: str | None = _setting(
        None, parse_issuer, "address of the identity provider; google, github and gitlab have one", metavar="URL"
    )
    oidc_client_id: str | None = _setting(
        None, str, "client id at the identity provider; turns signing in there on", metavar="TEXT"
    )
    oidc_client_secret: str | None = _setting(
        None, str, "client secret at the identity provider", metavar="TEXT", secret=True
    )
    oidc_role_claim: str | None = _setting(
        None, str, "claim whose values the three settings below may name, such as groups", metavar="CLAIM"
    )
    oidc_admins: tuple[str, ...] = _setting(
        (),
        str,
        "who is admin: an address (ada@example.com), a domain (@example.com) or a value of --oidc-role-claim; may be "
        "given several times",
        multiple=True,
        metavar="WHO",
    )
    oidc_operators: tuple[str, ...] = _setting(
        (), str, "who is operator; as --oidc-admins", multiple=True, metavar="WHO"
    )
    oidc_viewers: tuple[str, ...] = _setting((), str, "who is viewer; as --oidc-admins", multiple=True, metavar="WHO")
    oidc_default_role: str = _setting(
        "none", parse_choice("none", "viewer"), "role of anybody else who can sign in there", metavar="ROLE"
    )
    oidc_scopes: tuple[str, ...] = _setting(
        (),
        parse_scope_of,
        "WHO=SCOPE: what users who sign in there may see and act on, as in mail-team=queue:emails; WHO as for "
        "--oidc-admins; the first match applies; may be given several times",
        multiple=True,
        metavar="WHO=SCOPE",
    )
    auth_proxy_header: str | None = _setting(
        None, parse_header_name, "header by which a trusted proxy names the user who signed in there", metavar="HEADER"
    )
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        parse_network,
        "address or network of a proxy whose X-Forwarded-For, X-Forwarded-Proto and --auth-proxy-header are trusted; "
        "may be given several times",
        multiple=True,
        metavar="ADDRESS",
    )
    session_idle_hours: float = _setting(
        24.0, parse_float, "hours after which a session that is not used ends", metavar="HOURS"
    )
    session_days: float = _setting(30.0, parse_float, "days after which any session ends", metavar="DAYS")
    viewer_sees_arguments: bool = _setting(
        True,
        parse_bool,
        "show viewers arguments, results and errors of tasks, not only operators and admins",
    )
    metrics_need_token: bool = _setting(
        False, parse_bool, "require a user or API token for /metrics, such as a token of the role metrics"
    )
    read_only: bool = _setting(False, parse_bool, "refuse every action on the cluster")
    secret_key: str | None = _setting(
        None,
        str,
        "key that signs page tokens; by default generated and stored in the database",
        metavar="TEXT",
        secret=True,
    )
    trusted_hosts: tuple[str, ...] = _setting(
        (),
        str,
        "host names of the dashboard, besides loopback and --host",
        multiple=True,
        metavar="HOST",
    )
    source: str = _setting(
        "auto",
        parse_choice("auto", "kombu", "redis", "amqp", "queue"),
        "how events are read: auto, kombu, redis, amqp, or queue for the queue of celery_monitor_capture",
        metavar="NAME",
    )
    event_queue: str = _setting(
        "celery-monitor-events",
        str,
        "queue to which celery_monitor_capture sends events where the broker carries none: SQS, Kafka, Azure, SQL ...",
        metavar="NAME",
    )
    broker_options: dict[str, object] = _setting(
        {}, parse_broker_options, "kombu transport options as JSON", metavar="JSON", secret=True
    )
    broker_api: str | None = _setting(
        None,
        parse_http,
        "RabbitMQ management API, such as http://guest:guest@localhost:15672/api/",
        metavar="URL",
        secret=True,
    )
    redbeat: tuple[Broker, ...] = _setting(
        (),
        parse_redbeat,
        "Redis with RedBeat's entries, if not the broker; may be given several times",
        multiple=True,
        metavar="[NAME=]URL",
        secret=True,
    )
    redbeat_key_prefix: str = _setting("redbeat:", str, "RedBeat's redbeat_key_prefix", metavar="TEXT")
    beat_database: tuple[Broker, ...] = _setting(
        (),
        parse_beat_database,
        "database of django-celery-beat, sqlite:/// or postgresql://; only read; may be given several times",
        multiple=True,
        metavar="[NAME=]URL",
        secret=True,
    )
    node_id: str = _setting(
        "celery-monitor",
        parse_name,
        "name of the receiver's queue on the broker; two receivers need two names",
        metavar="NAME",
    )
    event_queue_ttl: float = _setting(
        86400.0, parse_float, "seconds that RabbitMQ keeps events while no receiver runs", metavar="SECONDS"
    )
    event_queue_max: int = _setting(
        2_000_000, parse_count, "events that RabbitMQ keeps at most while no receiver runs", metavar="N"
    )
    event_queue_max_bytes: int = _setting(
        2 * 1024**3, parse_count, "bytes of events that RabbitMQ keeps at most while no receiver runs", metavar="BYTES"
    )
    enable_events: bool = _setting(True, parse_bool, "turn task events on at workers that have them off")
    batch_seconds: float = _setting(
        0.1,
        parse_float,
        "longest time events gather before they are stored; beyond 2 the receiver counts as behind",
        metavar="SECONDS",
    )
    batch_events: int = _setting(10_000, parse_count, "most events stored in one transaction", metavar="N")
    buffer_bytes: int = _setting(
        16 * 1024 * 1024,
        parse_count,
        "bytes of unread events kept in memory; beyond half of it they go to disk if the broker keeps none",
        metavar="BYTES",
    )
    spool_bytes: int = _setting(
        4 * 1024**3,
        parse_int,
        "bytes of events that may wait on disk for a burst to end or the database to return; 0 keeps none there",
        metavar="BYTES",
    )
    spool_dir: str | None = _setting(
        None,
        str,
        "folder where events wait; by default beside an SQLite file, else in the working directory",
        metavar="DIR",
    )
    sample_seconds: float = _setting(
        1.0,
        parse_float,
        "how often queues are measured; 5 times as long while nobody uses the dashboard, 20 if nothing happens",
        metavar="SECONDS",
    )
    inspect_seconds: float = _setting(
        30.0, parse_float, "how often workers are queried for queues and statistics", metavar="SECONDS"
    )
    max_text: int = _setting(
        65536, parse_count, "characters kept of each args, kwargs, result, exception and traceback", metavar="N"
    )
    redact: tuple[str, ...] = _setting(
        REDACTED_KEYS,
        str,
        "keys whose values are masked before storage; replaces the built-in list",
        multiple=True,
        metavar="KEY",
    )
    capture: bool = _setting(
        True, parse_bool, "store the messages that workers with celery_monitor_capture send, for exact retries"
    )
    capture_key: tuple[str, ...] = _setting(
        (),
        str,
        "key that workers sign captured messages with; unsigned ones are then never exact; several while it is changed",
        multiple=True,
        metavar="TEXT",
        secret=True,
    )
    max_message_bytes: int = _setting(
        1024 * 1024,
        parse_int,
        "longest message body that is stored; of longer ones only the size is",
        metavar="BYTES",
    )
    keep_message_days: float = _setting(
        7.0, parse_float, "days that captured messages are kept; never longer than their task", metavar="DAYS"
    )
    keep_message_bytes: int = _setting(
        4 * 1024**3, parse_int, "bytes of captured messages kept at most per cluster", metavar="BYTES"
    )
    keep_tasks: int = _setting(10_000_000, parse_count, "tasks kept at most per cluster", metavar="N")
    keep_succeeded_days: float = _setting(7.0, parse_float, "days that succeeded tasks are kept", metavar="DAYS")
    keep_failed_days: float = _setting(30.0, parse_float, "days that all other tasks are kept", metavar="DAYS")
    keep_action_days: float = _setting(
        365.0, parse_float, "days that actions, sign-ins and exports are kept in the trail", metavar="DAYS"
    )
    metrics_by_worker: bool = _setting(
        False, parse_bool, "count tasks for /metrics by worker, too: one series for each task name on each worker"
    )
    task_runtime_metric_buckets: tuple[float, ...] = _setting(
        METRIC_BUCKETS[:14],
        parse_bucket,
        "bounds of flower_task_runtime_seconds in seconds; may be given several times",
        multiple=True,
        metavar="SECONDS",
    )
    purge_offline_workers: float = _setting(
        86400.0, parse_float, "seconds after which a worker that is gone leaves /metrics", metavar="SECONDS"
    )
    public_url: str | None = _setting(
        None,
        parse_http,
        "address at which people open the dashboard, with its path, for links in messages",
        metavar="URL",
    )
    rules: str | None = _setting(
        None, str, "TOML file with rules of alerts; they replace rules of the same name", metavar="FILE"
    )
    ping_url: str | None = _setting(
        None,
        parse_http,
        "URL to request each minute while the record is complete and no critical alert fires: a dead man's switch",
        metavar="URL",
        secret=True,
    )
    ping_entry: tuple[NamedUrl, ...] = _setting(
        (),
        parse_ping,
        "URL to request when a run of a schedule entry has succeeded; may be given several times",
        multiple=True,
        metavar="ENTRY=URL",
        secret=True,
    )
    log_level: str = _setting(
        "info", parse_choice("debug", "info", "warning", "error"), "least severe log line to print", metavar="LEVEL"
    )
    # Not a setting: the application of ``app``, read once for all processes.
    application: Application | None = field(default=None, repr=False, compare=False)

    @property
    def has_sign_in(self) -> bool:
        """Whether somebody can sign in, beside users that are stored."""
        return bool(self.basic_auth or self.auth_proxy_header or self.oidc_client_id)

    @property
    def clusters(self) -> tuple[str, ...]:
        return tuple(broker.cluster for broker in self.broker)

    def address_of(self, name: str, cluster: str) -> Broker | None:
        """The value of one of ADDRESSES for a cluster; with a single broker it needs no name."""
        given: tuple[Broker, ...] = getattr(self, name)
        only = self.clusters in {(cluster,), ()}
        return next(
            (each for each in given if each.cluster == cluster or (only and each.cluster == DEFAULT_CLUSTER)), None
        )

    @property
    def spool_directory(self) -> Path:
        """Where events wait on disk, with a folder per cluster."""
        if self.spool_dir is not None:
            return Path(self.spool_dir)
        kind, _, file = self.database.partition(":///")
        return Path(f"{file.partition('?')[0] if kind.startswith('sqlite') else 'celery-monitor'}.spool")


SETTINGS = {f.name: f for f in fields(Settings) if f.metadata}
FILE_SUFFIX = "_file"
SECRET_FILES = {f"{name}{FILE_SUFFIX}": name for name, f in SETTINGS.items() if f.metadata["secret"]}


REMOVED = {"shard": "one receiver serves a whole broker; remove the setting and run one receiver for each broker"}


def load(
    options: Mapping[str, object],
    environ: Mapping[str, str],
    file: Path | None = None,
    below: Mapping[str, object] = MappingProxyType({}),
) -> Settings:
    """Options override the environment, which overrides the TOML file, then ``below``, then the defaults.

    A setting that may hold a secret can be read from a file of its own instead, which ``<name>_file`` names. An option
    of ``None`` or an empty tuple is not set. Raises SettingsError.
    """
    given = dict(below)
    given |= _read_files(_from_file(file)) if file else {}
    given |= _read_files(_from_environment(environ))
    given |= _read_files(
        {_checked(name): value for name, value in options.items() if value is not None and value != ()}
    )
    values = {name: _parsed(name, value) for name, value in given.items()}
    settings = Settings(**values)  # type: ignore[arg-type]
    _check_clusters(settings)
    _check_source(settings)
    return settings


def _read_files(given: dict[str, object]) -> dict[str, object]:
    """The same with each ``<name>_file`` replaced by what the file holds: one value, or a value on each line."""
    read: dict[str, object] = {}
    for name, value in given.items():
        secret = SECRET_FILES.get(name)
        if secret is None:
            read[name] = value
            continue
        if secret in given:
            raise SettingsError(f"{secret} and {name} are both set; remove one")
        try:
            lines = [line.strip() for line in Path(str(value)).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise SettingsError(f"{name}: cannot read {value}: {reason}") from None
        values = tuple(line for line in lines if line and not line.startswith("#"))
        if not values or (len(values) > 1 and not SETTINGS[secret].metadata["multiple"]):
            wanted = "one value a line" if SETTINGS[secret].metadata["multiple"] else "one line"
            raise SettingsError(f"{name}: {value} has {len(values)} lines with a value; it must have {wanted}")
        read[secret] = values if SETTINGS[secret].metadata["multiple"] else values[0]
    return read


def _checked(name: str) -> str:
    if name not in SETTINGS and name not in SECRET_FILES:
        near = get_close_matches(name, SETTINGS, 1)
        hint = REMOVED.get(name) or (
            f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(SETTINGS))}"
        )
        raise SettingsError(f"there is no setting {quoted(name)}; {hint}")
    return name


def _from_file(file: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from None
    return {_checked(name): value for name, value in table.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    given: dict[str, object] = {}
    for variable, text in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = _checked(variable.removeprefix(ENVIRONMENT_PREFIX).lower())
            multiple = name in SETTINGS and SETTINGS[name].metadata["multiple"]
            given[name] = tuple(text.split()) if multiple else text
    return given


def _parsed(name: str, value: object) -> object:
    metadata = SETTINGS[name].metadata
    parse: Callable[[str], object] = metadata["parse"]
    if metadata["multiple"]:
        values = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(_parse_one(name, parse, each) for each in values)
    return _parse_one(name, parse, value)


def _parse_one(name: str, parse: Callable[[str], object], value: object) -> object:
    if isinstance(value, Broker | NamedUrl):
        return value
    is_table = isinstance(value, dict) and parse is parse_broker_options
    if not is_table and not isinstance(value, (str, int, float)):  # a list, a table or a date of TOML
        raise SettingsError(f"{name}: a {type(value).__name__} is not a value for this setting")
    try:
        if isinstance(value, dict):
            return checked_options(value)
        return parse(value if isinstance(value, str) else str(value))
    except MonitorError as error:
        raise type(error)(f"{name}: {error.message}") from None


def _check_source(settings: Settings) -> None:
    """Raises SettingsError if the source cannot read from a broker."""
    for broker in settings.broker:
        if settings.source not in {"auto", "kombu", "queue", transport_of(broker.url)}:
            raise SettingsError(
                f"source {settings.source} cannot read from {transport_of(broker.url)} ({broker.cluster}); "
                "leave it auto, or write kombu"
            )


def _check_clusters(settings: Settings) -> None:
    names = settings.clusters
    for setting in ADDRESSES if names else ():
        for cluster in {each.cluster for each in getattr(settings, setting)} - {*names}:
            if cluster != DEFAULT_CLUSTER or len(names) > 1:
                raise SettingsError(
                    f"{setting} of {cluster!r}: the brokers are called {', '.join(names)}; write NAME=URL"
                )
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(
                f"two brokers have the name {name!r}; name them, as in --broker shop=redis://... --broker mail=amqp://..."
            )
