"""Bulk jobs, their previews and the outcome of each task."""

from enum import StrEnum
from typing import Literal

import msgspec


class JobState(StrEnum):
    """The state of a bulk job."""

    PREPARING = "preparing"  # its tasks are being chosen
    PREVIEW = "preview"  # its tasks are chosen, and nobody has confirmed it
    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"  # aborted, but a batch is still being sent
    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in {JobState.DONE, JobState.ABORTED, JobState.FAILED}


class JobOutcome(StrEnum):
    """The outcome of one task of a job."""

    WAITING = "waiting"
    SENDING = "sending"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNCONFIRMED = "unconfirmed"  # it may have been sent, so it is not sent again


class JobReason(msgspec.Struct, frozen=True, kw_only=True):
    """The number of tasks of a job with this outcome and reason."""

    outcome: JobOutcome
    reason: str
    count: int


class JobTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a job. ``new_id`` is the id of its retry."""

    id: str
    outcome: JobOutcome
    reason: str | None = None
    new_id: str | None = None


class JobPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a job would do. With ``estimated``, numbers are extrapolated from ``judged`` tasks, evenly chosen."""

    judged: int = 0
    estimated: bool = False
    sendable: int = 0
    fidelity: dict[str, int] = {}
    skipped: dict[str, int] = {}  # by reason
    retried: int = 0  # tasks that were retried before, skipped or not; never estimated
    samples: list[dict[str, str]] = []
    warnings: list[str] = []


class Job(msgspec.Struct, kw_only=True):
    """A bulk job on the tasks that matched a query at one moment. ``rate`` is in tasks per second."""

    id: int
    token: str
    cluster: str
    verb: Literal["retry", "revoke"]
    query: str
    at: float
    actor: str
    reason: str | None = None
    rate: float | None = None
    include_retried: bool = False  # tasks that were retried before are sent too
    state: JobState
    total: int = 0
    position: int = 0
    preview: JobPreview = JobPreview()
    started: float | None = None
    ended: float | None = None
    message: str | None = None
    batch: str | None = None
    reasons: tuple[JobReason, ...] = ()

    def count(self, outcome: JobOutcome) -> int:
        """The number of tasks with this outcome."""
        return sum(each.count for each in self.reasons if each.outcome is outcome)

    @property
    def left(self) -> int:
        """The number of tasks without an outcome yet."""
        return self.total - sum(each.count for each in self.reasons)
