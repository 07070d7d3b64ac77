"""Sending a task that a worker has registered."""

from typing import Annotated
from typing import Literal

from msgspec import UNSET
from msgspec import Meta
from msgspec import Raw
from msgspec import Struct
from msgspec import UnsetType

from monitor.control.commands import Name
from monitor.control.commands import RequestId
from monitor.control.commands import Seconds
from monitor.control.commands import summary_of
from monitor.control.run import RunTask
from monitor.errors import NotTaken
from monitor.errors import TakenUnknown
from monitor.web.api.acting import ERRORS
from monitor.web.api.acting import cluster_named
from monitor.web.api.acting import done
from monitor.web.api.acting import json_text
from monitor.web.api.acting import outcome
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import InCluster
from monitor.web.api.requests import Why


class RunBody(Why, frozen=True, kw_only=True):
    """A task that a worker has registered."""

    name: Name
    queue: Name
    # Raw: what the caller wrote reaches the worker digit by digit.
    args: Annotated[Raw, Meta(extra_json_schema={"type": "array"})] | UnsetType = UNSET
    kwargs: Annotated[Raw, Meta(extra_json_schema={"type": "object"})] | UnsetType = UNSET
    countdown: Seconds | None = None
    request_id: RequestId | None = None


class Ran(Struct, frozen=True, kw_only=True):
    """The new task."""

    id: str
    outcome: Literal["done", "unconfirmed"]
    message: str


def run_task(call: Call, given: InCluster, body: RunBody) -> Ran:
    command = RunTask(
        cluster=cluster_named(call, given.cluster),
        name=body.name,
        queue=body.queue,
        args=json_text(body.args) or "[]",
        kwargs=json_text(body.kwargs) or "{}",
        countdown=body.countdown,
        reason=body.reason,
        request_id=body.request_id,
    )
    performed = done(call, command)
    return Ran(id=performed.results[0].id, outcome=outcome(performed), message=performed.message)


OPERATIONS = (
    Operation(
        method="POST",
        path=f"/api/v1/{RunTask.route}",
        handle=run_task,
        summary=summary_of(RunTask),
        answer=Ran,
        parameters=InCluster,
        body=RunBody,
        errors=(*ERRORS, NotTaken, TakenUnknown),
    ),
)
