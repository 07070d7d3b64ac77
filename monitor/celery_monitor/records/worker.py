"""Workers, their processes and their starts."""

from enum import StrEnum

import msgspec


class WorkerStatus(StrEnum):
    """Whether a worker is up."""

    ONLINE = "online"
    SILENT = "silent"  # no heartbeat for over two intervals; it may only be busy
    OFFLINE = "offline"  # sent worker-offline, was replaced by a new process, or is silent for long


class WorkerProcess(msgspec.Struct, frozen=True, kw_only=True):
    """Another process that sent events under a worker's name, beside or before its present one."""

    pid: int
    first_seen: float
    last_heartbeat: float  # our clock
    offline_at: float | None = None  # when it sent worker-offline: it finishes its running tasks, and ends
    freq: float | None = None
    skew: float = 0.0
    active: int | None = None
    processed: int | None = None
    pool: str | None = None


class Worker(msgspec.Struct, kw_only=True):
    """One worker, by its node name. Fields from inspect are ``None`` until the worker has answered."""

    cluster: str
    hostname: str
    status: WorkerStatus
    pid: int | None = None
    first_seen: float | None = None
    last_heartbeat: float | None = None  # our clock at arrival
    offline_at: float | None = None
    freq: float | None = None
    skew: float | None = None  # our clock minus the worker's
    jump: float = 0.0  # seconds by which its clock was set forward while it ran; its times are corrected by them
    active: int | None = None
    processed: int | None = None
    loadavg: tuple[float, ...] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None
    queues: tuple[str, ...] | None = None  # active_queues
    pool: str | None = None  # prefork, threads, ...
    pool_size: int | None = None
    prefetch: int | None = None
    rusage: dict[str, float] | None = None
    inspected_at: float | None = None
    events_enabled: bool | None = None  # False: it answers, but sends no task events
    since: float | None = None  # first event of this process
    # It is offline because it sent worker-offline; under the name that is stored.
    sent_offline: bool = msgspec.field(default=False, name="said_goodbye")
    others: tuple[WorkerProcess, ...] = ()  # earlier ones, or a second one of the same name by mistake


class WorkerStart(msgspec.Struct, frozen=True, kw_only=True):
    """A worker started with a new process."""

    cluster: str
    hostname: str
    at: float
