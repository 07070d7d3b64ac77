"""A small shop's events, the same in each run: every state, two clusters, unknown queues, trees, ugly text."""

from collections.abc import Iterator
from random import Random

from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id

NAMES = ("shop.pay.charge", "shop.pay.refund", "shop.mail.send", "shop.report.daily", "100%_sure")
QUEUES = ("payments", "mail", None)
WORKERS = ("worker1@shop", "worker2@shop", "Worker1@shop")
EXCEPTIONS = ("TimeoutError('read timed out')", "ReadTimeoutError('TimeoutError(')", "shop.errors.Declined('card_31')")
ENDS = (
    "succeeded",
    "succeeded",
    "succeeded",
    "failed",
    "failed",
    "retried",
    "revoked",
    "rejected",
    "running",
    "received",
)
_random = Random(7)


def events_of(number: int) -> Iterator[Event]:
    """The life of one task, received ``number`` seconds after NOW; every fifth with its neighbour at the same time."""
    random = Random(number)
    at = NOW + number - number % 5 % 2
    task: dict[str, object] = {
        "uuid": make_id(number) if number % 7 else f"order-{number}",
        "hostname": random.choice(WORKERS),
    }
    queue = random.choice(QUEUES)
    body: dict[str, object] = {
        "name": random.choice(NAMES),
        "args": f"({number}, 'EUR%')",
        "kwargs": f"{{'card': 'Visa_{number % 4}'}}",
    }
    body |= {"retries": number % 3, "root_id": make_id(number - number % 10 + 1), "parent_id": None}
    if number % 10:
        body["parent_id"] = make_id(number - number % 10 + 1)
    if queue is not None or number % 13 == 0:
        sent = {**task, **body, "hostname": "gen8@web", "queue": queue or "slow"}
        yield make_event("task-sent", timestamp=at - 0.5, **sent)
    if number % 13 == 0:
        return
    eta = "2099-01-01T00:00:00+00:00" if number % 17 == 0 else None
    yield make_event("task-received", timestamp=at, eta=eta, **task, **body)
    end = random.choice(ENDS)
    if eta or end == "received":
        return
    yield make_event("task-started", timestamp=at + random.choice((0.25, 3.0)), **task)
    runtime = random.choice((0.125, 2.5, 7.0))
    if end == "succeeded":
        yield make_event("task-succeeded", timestamp=at + 4 + runtime, result="'OK'", runtime=runtime, **task)
    elif end in {"failed", "retried"}:
        trace = f"Traceback:\n  File shop/pay{number % 2}.py"
        failure = {"exception": random.choice(EXCEPTIONS), "traceback": trace}
        yield make_event(f"task-{end}", timestamp=at + 4 + runtime, **failure, **task)
    elif end != "running":
        yield make_event(f"task-{end}", timestamp=at + 5, terminated=True, expired=False, requeue=False, **task)


def seed(store: Store, tasks: int = 300) -> None:
    """Writes the traffic through the writer: every third task to the cluster ``eu``, the others to ``shop``."""
    for cluster, wanted in (("shop", (1, 2)), ("eu", (0,))):
        events = [event for number in range(tasks) if number % 3 in wanted for event in events_of(number)]
        Writer(store, cluster, Settings()).write([Delivery(events, NOW + tasks)])
