"""Workers, their processes and their starts."""

from enum import StrEnum

import msgspec


class WorkerStatus(StrEnum):
    """Whether a worker can be counted on."""

    ONLINE = "online"
    SILENT = "silent"  # no heartbeat for over two intervals, and it may only be busy
    OFFLINE = "offline"  # said goodbye, was replaced by a new process, or stayed silent for long


class WorkerProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that sent events under a node name beside, or before, the one that stands for the worker."""

    pid: int
    first_seen: float
    last_heartbeat: float  # our clock
    offline_at: float | None = None  # when it sent worker-offline: it finishes what it runs, and ends
    freq: float | None = None
    skew: float = 0.0
    active: int | None = None
    processed: int | None = None
    pool: str | None = None


class Worker(msgspec.Struct, kw_only=True):
    """One worker, by its node name. Inspect's answers stay ``None`` until the worker has given them."""

    cluster: str
    hostname: str
    status: WorkerStatus
    pid: int | None = None
    first_seen: float | None = None
    last_heartbeat: float | None = None  # our clock at arrival
    offline_at: float | None = None
    freq: float | None = None
    skew: float | None = None  # our clock minus the worker's
    jump: float = 0.0  # by which its clock was set forward while it ran; its times are as if it had not been
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
    events_enabled: bool | None = None  # False: it answers and sends no task events
    since: float | None = None  # when the first event of this process came
    said_goodbye: bool = False  # it is offline because it sent worker-offline
    others: tuple[WorkerProcess, ...] = ()  # of the same name: earlier ones, or a second one by mistake


class WorkerStart(msgspec.Struct, frozen=True, kw_only=True):
    """A worker came up again with a new process."""

    cluster: str
    hostname: str
    at: float
