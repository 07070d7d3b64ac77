"""Who has which task at this moment: what workers answer, and what lies in the broker.

The broker is looked at first. A task that goes from its queue to a worker meanwhile is then seen twice, not never; one
that goes the other way is missed at most once, so nobody concludes anything from one look.
"""

from collections.abc import Collection
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

from monitor.brokers.remote import Remote
from monitor.brokers.remote import Reply
from monitor.brokers.survey import Seen
from monitor.brokers.survey import survey

ANSWER_SECONDS = 2.0
QUESTIONS: tuple[tuple[str, dict[str, object]], ...] = (("active", {"safe": True}), ("reserved", {}), ("scheduled", {}))


class Held(NamedTuple):
    """A task that a worker has; ``how`` is the question that it answered with it."""

    how: str
    hostname: str
    name: str | None
    args: str | None
    kwargs: str | None
    started: float | None  # by the worker's clock
    eta: str | None
    exchange: str | None
    routing_key: str | None

    @property
    def queue(self) -> str | None:
        """Sent to the default exchange, the key is the queue's name; else nobody says."""
        return self.routing_key if self.exchange == "" else None


class Look(NamedTuple):
    """One look at workers and broker."""

    held: dict[str, Held]
    messages: dict[str, Seen]
    answered: frozenset[str]  # the workers that answered every question
    unheard: frozenset[str]  # those that did not: they may have tasks of which nobody knows
    queues: frozenset[str]  # that were looked into
    whole: bool  # every message was looked at

    @property
    def complete(self) -> bool:
        """Who has a task that is not in this look, is none of the workers that we know."""
        return self.whole and not self.unheard


def look(remote: Remote, hostnames: Collection[str], queues: Collection[str], doubled: Collection[str] = ()) -> Look:
    """Asks these workers, and looks into these queues where that takes nothing. Raises BrokerUnavailable.

    ``doubled`` are names of several processes: one answers for all, so they never count as heard.
    """
    found = survey(remote.broker, remote.settings, queues)
    held: dict[str, Held] = {}
    answered = frozenset(hostnames)
    for question, arguments in QUESTIONS:  # who does not answer one is not asked the next: each costs a wait
        replies = remote.ask(question, arguments, sorted(answered), ANSWER_SECONDS) if answered else {}
        listed = {hostname: _listed(question, replies.get(hostname)) for hostname in answered}
        for tasks in listed.values():
            held = dict(tasks or ()) | held  # what is active is asked for first, and more than reserved
        answered = frozenset(hostname for hostname, tasks in listed.items() if tasks is not None)
    answered -= frozenset(doubled)
    return Look(
        held, found.messages, answered, frozenset(hostnames) - answered, queues=frozenset(queues), whole=found.whole
    )


def _listed(question: str, reply: Reply | None) -> Iterable[tuple[str, Held]] | None:
    """``None`` where the worker did not answer, or not with a list."""
    if reply is None or not isinstance(reply.ok, list):
        return None
    described = [_described(question, reply.worker, each) for each in reply.ok]
    return [each for each in described if each is not None]


def _described(question: str, hostname: str, item: object) -> tuple[str, Held] | None:
    """A task that a worker tells of.

    Arguments are taken from ``active`` alone, where they are the publisher's repr: who sends a task may have hidden
    them from monitors, and the others show them as they are.
    """
    request = request_of(item)
    if request is None or not isinstance(request.get("id"), str):
        return None
    delivery = request.get("delivery_info")
    delivery = delivery if isinstance(delivery, dict) else {}
    active = question == "active"
    started = request.get("time_start")
    held = Held(
        how=question,
        hostname=hostname,
        name=_text(request.get("name")),
        args=_text(request.get("args")) if active else None,
        kwargs=_text(request.get("kwargs")) if active else None,
        started=float(started) if active and isinstance(started, int | float) else None,
        eta=_text(item.get("eta")) if isinstance(item, dict) else None,
        exchange=_text(delivery.get("exchange")),
        routing_key=_text(delivery.get("routing_key")),
    )
    return request["id"], held


def request_of(listed: object) -> dict[str, Any] | None:
    """What a worker says of one task; ``scheduled`` wraps what the others give as it is."""
    request = listed.get("request", listed) if isinstance(listed, dict) else None
    return request if isinstance(request, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
