"""The calls that Flower and our dashboard are compared by.

``{worker}``, ``{side}`` (of two things, one for each) and the names of sent tasks stand in addresses and forms.
``differs`` is the name of a deliberate difference in docs/flower.md.
"""

from dataclasses import dataclass, field
from typing import Any

ADD = "basic.add"
NOBODY = "nobody@nowhere"


@dataclass(frozen=True)
class Call:
    """One request, to both."""

    path: str
    method: str = "GET"
    form: dict[str, str] | None = None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    differs: str = ""
    any_tasks: bool = False  # which tasks are listed differs, as their order does

    def __str__(self) -> str:
        given = self.form if self.body is None else self.body
        return f"{self.method} {self.path}{f' {given}' if given else ''}"


def get(path: str, differs: str = "", **headers: str) -> Call:
    return Call(path, headers=headers, differs=differs)


def post(path: str, differs: str = "", **form: str) -> Call:
    return Call(path, "POST", form, differs=differs)


def send(path: str, body: Any, differs: str = "") -> Call:
    return Call(path, "POST", body=body, differs=differs)


READS = [
    get("/healthcheck", differs="healthcheck-type"),
    get("/api/workers"),
    get("/api/workers?status=1"),
    get("/api/workers?status=true"),
    get("/api/workers?refresh=1"),
    get("/api/workers?refresh=no"),
    get("/api/workers?refresh=1&workername={worker}"),
    get("/api/workers?workername={worker}"),
    get("/api/workers?workername=nobody@nowhere"),
    get("/api/workers?refresh=maybe"),
    get("/api/workers?status=2"),
    get("/api/task/types"),
    get("/api/queues/length", differs="queues"),
    get("/api/tasks"),
    Call("/api/tasks?limit=2", any_tasks=True),
    get("/api/tasks?limit=0"),
    get("/api/tasks?limit=-3"),
    Call("/api/tasks?limit=2&offset=1", any_tasks=True),
    Call("/api/tasks?limit=5&offset=-1", any_tasks=True),
    get("/api/tasks?limit=2&offset=1&sort_by=-received"),
    get("/api/tasks?offset=1000"),
    get("/api/tasks?limit=many"),
    get("/api/tasks?limit="),
    get("/api/tasks?offset=x"),
    get("/api/tasks?sort_by=name"),
    get("/api/tasks?sort_by=-name&limit=3"),
    get("/api/tasks?sort_by=state"),
    get("/api/tasks?sort_by=-state"),
    get("/api/tasks?sort_by=received"),
    get("/api/tasks?sort_by=-received"),
    get("/api/tasks?sort_by=started"),
    get("/api/tasks?sort_by=uuid"),
    get("/api/tasks?workername={worker}"),
    get("/api/tasks?workername=All"),
    get("/api/tasks?workername=nobody@nowhere"),
    get("/api/tasks?taskname=basic.add"),
    get("/api/tasks?taskname=basic.unknown"),
    get("/api/tasks?state=SUCCESS"),
    get("/api/tasks?state=FAILURE"),
    get("/api/tasks?state=RECEIVED"),
    get("/api/tasks?state=All"),
    get("/api/tasks?state=NONSENSE"),
    get("/api/tasks?received_start=2020-01-01+00:00"),
    get("/api/tasks?received_start=2020-01-01+00:00&received_end=2020-01-02+00:00"),
    get("/api/tasks?received_end=2120-01-01+00:00"),
    get("/api/tasks?received_start=yesterday"),
    get("/api/tasks?received_end=2020-01-01"),
    get("/api/tasks?search=basic.add"),
    get("/api/tasks?search=name:echo"),
    get("/api/tasks?search=state:failure"),
    get("/api/tasks?search=%22card+refused%22"),
    get("/api/tasks?search=kwargs:order%3D17"),
    get("/api/tasks?search=args:refused+OR+state:FAILURE"),
    get("/api/tasks?search=(args:refused+OR+name:fail)+AND+state:SUCCESS"),
    get("/api/tasks?search={added}"),
    get("/api/tasks?search=zzzzz"),
    get("/api/tasks?search=ab"),
    get("/api/tasks?search=%22open"),
    get("/api/tasks?search=-name:add"),
    get("/api/tasks?search=NOT+name:add"),
    get("/api/tasks?search=state:"),
    get("/api/tasks?search=()"),
    get("/api/tasks?search=(name:add"),
    get("/api/tasks?search=name:add)"),
    get("/api/tasks?search=OR"),
    get("/api/tasks?search=name:add+OR"),
    get("/api/task/info/{added}"),
    get("/api/task/info/{failed}"),
    get("/api/task/info/{later}"),
    get("/api/task/info/{parent}"),
    get("/api/task/info/unknown-id"),
    get("/api/task/info/"),
    get("/api/task/result/{added}"),
    get("/api/task/result/{failed}"),
    get("/api/task/result/{echoed}?timeout=5"),
    get("/api/task/result/unknown-id"),
    get("/api/task/result/unknown-id?timeout=0.2"),
    get("/api/task/result/{added}?timeout=soon"),
    get("/api/nothing", differs="unknown-paths"),
    post("/api/tasks", differs="empty-errors"),
    get("/api/worker/shutdown/{worker}", differs="empty-errors"),
]
CHANGES = [
    post("/api/worker/pool/shrink/{worker}"),
    post("/api/worker/pool/grow/{worker}"),
    post("/api/worker/pool/grow/{worker}", n="2"),
    post("/api/worker/pool/grow/{worker}?n=1"),
    post("/api/worker/pool/grow/{worker}", n="two"),
    post("/api/worker/pool/grow/nobody@nowhere"),
    post("/api/worker/pool/shrink/nobody@nowhere", n="1"),
    post("/api/worker/pool/autoscale/{worker}", min="1", max="3", differs="refusals"),
    post("/api/worker/pool/autoscale/{worker}", max="3"),
    post("/api/worker/pool/autoscale/{worker}", min="1"),
    post("/api/worker/pool/autoscale/{worker}", min="one", max="3"),
    post("/api/worker/pool/autoscale/nobody@nowhere", min="1", max="3"),
    post("/api/worker/pool/restart/nobody@nowhere"),
    post("/api/worker/queue/add-consumer/{worker}", queue="{side}-extra"),
    post("/api/worker/queue/add-consumer/{worker}", queue="{side}-extra"),
    post("/api/worker/queue/add-consumer/{worker}"),
    post("/api/worker/queue/add-consumer/{worker}", queue=""),
    post("/api/worker/queue/add-consumer/nobody@nowhere", queue="extra"),
    post("/api/worker/queue/cancel-consumer/{worker}", queue="{side}-extra"),
    post("/api/worker/queue/cancel-consumer/{worker}"),
    post("/api/worker/queue/cancel-consumer/nobody@nowhere", queue="extra"),
    post("/api/worker/queue/add-consumer/{worker}", queue="{side}-&amp", differs="escaping"),
    post("/api/task/rate-limit/basic.add", workername="{worker}", ratelimit="50/s"),
    post("/api/task/rate-limit/basic.add?workername={worker}&ratelimit=0"),
    post("/api/task/rate-limit/basic.add", workername="{worker}", ratelimit="fast", differs="refusals"),
    post("/api/task/rate-limit/basic.add", workername="{worker}"),
    post("/api/task/rate-limit/basic.add", ratelimit="5/m"),
    post("/api/task/rate-limit/basic.add", workername=NOBODY, ratelimit="5/m"),
    post("/api/task/rate-limit/basic.unknown", workername="{worker}", ratelimit="5/m"),
    post("/api/task/timeout/basic.sleep", workername="{worker}", soft="30", hard="60"),
    post("/api/task/timeout/basic.sleep", workername="{worker}", hard="60.5"),
    post("/api/task/timeout/basic.sleep", workername="{worker}"),
    post("/api/task/timeout/basic.sleep", workername="{worker}", soft="long"),
    post("/api/task/timeout/basic.sleep", soft="30"),
    post("/api/task/timeout/basic.sleep", workername=NOBODY, soft="30"),
    post("/api/task/timeout/basic.unknown", workername="{worker}", soft="30"),
    send("/api/task/apply/basic.add", {"args": [1, 2]}),
    send("/api/task/apply/basic.echo", {"kwargs": {"order": 7}, "timeout": 20}),
    send("/api/task/apply/basic.fail", {"args": ["no card"]}),
    send("/api/task/apply/basic.sleep", {"args": [2], "timeout": 0.2}),
    send("/api/task/apply/basic.unknown", {"args": []}),
    send("/api/task/apply/basic.add", {"args": 3}),
    send("/api/task/apply/basic.add", {"args": [1, 2], "timeout": "soon"}),
    send("/api/task/apply/basic.add", {"args": [1, 2], "countdown": "soon"}),
    send("/api/task/apply/basic.add", [1, 2]),
    send("/api/task/apply/basic.add", b"{not json", differs="json-errors"),
    send("/api/task/async-apply/basic.add", {"args": [1, 2], "queue": "{side}-nobody"}),
    send("/api/task/async-apply/basic.add", {"args": [1, 2], "countdown": 600, "expires": 900}),
    send("/api/task/async-apply/basic.add", {"args": [1, 2], "eta": "tomorrow"}),
    send("/api/task/async-apply/basic.unknown", {}),
    send("/api/task/async-apply/basic.add", {"args": "12"}),
    send("/api/task/send-task/basic.add", {"args": [5, 6], "queue": "{side}-nobody"}),
    send("/api/task/send-task/basic.unknown", {"args": [5, 6], "queue": "{side}-nobody"}),
    send("/api/task/send-task/basic.add", {"args": {"x": 1}}),
    send("/api/task/send-task/basic.add", {"args": [5, 6], "colour": "red"}, differs="unknown-options"),
    send("/api/task/send-task/basic.add", {"args": [5, 6], "eta": "tomorrow"}, differs="send-task-options"),
    post("/api/task/abort/{later}"),
    post("/api/task/abort/{side}-unknown"),
    post("/api/task/revoke/{later}"),
    post("/api/task/revoke/{side}-unknown"),
    post("/api/task/revoke/{side}-unknown", terminate="true", signal="SIGKILL"),
    post("/api/task/revoke/{side}-unknown", terminate="perhaps"),
    post("/api/task/revoke/{side}-unknown", terminate="1", signal="SIGFOO", differs="signals"),
    post("/api/worker/pool/restart/{worker}"),
    post("/api/worker/pool/shrink/{worker}", n="100", differs="last-process"),
    post("/api/worker/shutdown/nobody@nowhere"),
]
CALLS = [*READS, *CHANGES]
