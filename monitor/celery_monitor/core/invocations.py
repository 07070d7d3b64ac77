"""Which message each run belongs to, and which messages wait. No I/O, no clock.

One task id may have several messages: retries, replacements by ``self.replace()``, and the same id sent again. Workers
report the content of a message in task-received; senders report it, with its route, in task-sent, by a clock that may
be an hour off. So messages are recognised by their content, and times decide only between equal ones:

==================================================  =================================================================
seen                                                concluded
==================================================  =================================================================
sent and received with the same arguments, retries  one message, whatever the clocks show. The name may differ: a
and parent                                          worker reports the task's shadow name
as many sent as received                            paired in the order of each side's clock
more sent than received                             the rest waits: the task is PENDING again, also after it ended.
                                                    Of one that was received just after it was sent again, the older
                                                    message waits, as it may be gone
fewer sent than received                            redelivery: the runs share the message that was sent last before
                                                    each was received
same name, retries and parent, other arguments      one message if sent before the receipt (or less than a minute after
                                                    it, for skew): a sender may have hidden arguments from one event
an end was concluded (no worker is known), and then  the end is that of the message that waited then; it is taken back
more are sent than received                         where a worker received as many messages as were sent
sent, and a run of which no receipt is recorded     one message, under the same condition
retries = 0 and the task is its own parent          ``self.replace()`` sent it from the run before: REPLACED
retries = 0, and a root task has a parent           the same, through a chain or a chord whose last message has the id
retries = 0, other name and other parent            the same, for a task that is no root
retries = 0, same name, other parent of one root,   the same: the last message of a chain or a chord that the run before
and the run before has started and not ended        sent. A signature with a fixed id that two tasks of a workflow send
                                                    is no replacement, and shows by the end of the run before
retries > 0                                         a retry of the run before, of the same name
same name, none of the above                        redelivered or sent again: the run before is not concluded to have
                                                    ended
==================================================  =================================================================

A replaced run ends when its successor was sent, as that event is stamped on the same machine. Through a chain or a
chord that time is later than the end of the run, so its run time stays unknown.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from celery_monitor.records.event import Event
from celery_monitor.records.task import Invocation, Run

SKEW_SECONDS = 60.0  # by which a sender's clock may be ahead where times decide
JUST_SECONDS = 1.0  # between sending, which is stamped afterwards, and receipt by a free worker
GONE_SECONDS = 45.0  # after which a message that no worker received is searched for
# Of the arguments of an earlier run; more than arguments.MAX_REPR, so a truncated text is never used for a retry.
KEPT_CHARACTERS = 2000
DIRECTLY, THROUGH_OTHERS = 1, 2  # how a message came to replace another one: Run.replacing
_Key = tuple[int, str | None, str | None, int, str | None]


class SentMessage(NamedTuple):
    """One task-sent event."""

    invocation: Invocation
    retries: int | None
    eta: float | None
    replacing: int


def replacing_of(event: Event) -> int:
    """How the message of this event replaces another one of its id; 0 if it does not."""
    if event.parent_id is None or event.retries:
        return 0
    if event.parent_id == event.uuid:
        return DIRECTLY
    return THROUGH_OTHERS if event.root_id == event.uuid else 0


def replaced_by(run: Run, after: Run) -> bool:
    """Whether the next message of the task shows that this run ended by sending it."""
    if after.retries:
        return False
    if after.replacing:
        return True
    one, other = run.invocation, after.invocation
    if one is None or other is None or None in {one.name, other.name} or one.parent_id == other.parent_id:
        return False
    if one.name != other.name:
        return True
    complete = None not in {one.parent_id, other.parent_id, one.root_id}
    return complete and one.root_id == other.root_id and run.started is not None


def is_same(run: Run, other: Run) -> bool:
    """Whether two runs may belong to one message, by its content."""
    one, two = run.invocation, other.invocation
    if one is None or two is None:
        return one is two
    return _key(one, run.retries, run.replacing) == _key(two, other.retries, other.replacing)


def assign_concluded(runs: Sequence[Run], messages: Iterable[SentMessage]) -> list[SentMessage]:
    """Assigns messages to the ends that were concluded for them, unless a worker received the message after all.

    Returns the messages of all other runs.
    """
    sent = _distinct(messages)
    received = [run for run in runs if run.received is not None and run.invocation is not None]
    for run in runs:
        if run.worker is not None or run.invocation is None:
            continue
        message = (run.invocation.sent, run.invocation.client)
        run.invocation = None
        own = [each for each in sent if (each.invocation.sent, each.invocation.client) == message]
        if own and _is_surplus(own[0], received, sent):
            sent.remove(own[0])
            run.invocation = own[0].invocation
            run.retries, run.eta, run.replacing = own[0].retries, own[0].eta, own[0].replacing
    return sent


def _is_surplus(message: SentMessage, received: Iterable[Run], sent: Iterable[SentMessage]) -> bool:
    """Whether more messages with this content were sent than received."""
    key = _key(message.invocation, message.retries, message.replacing)
    receipts = [run for run in received if run.invocation and _key(run.invocation, run.retries, run.replacing) == key]
    equal = [each for each in sent if _key(each.invocation, each.retries, each.replacing) == key]
    return len(equal) > len(receipts)


def pair(runs: Sequence[Run], messages: Iterable[SentMessage]) -> list[Run]:
    """Gives each run the message that was sent for it; returns the other messages as runs that wait."""
    sent = _distinct(messages)
    if not sent:
        return []
    received = sorted((run for run in runs if run.received is not None), key=lambda run: run.received or 0.0)
    left = _pair_equal(received, sent)
    left = _pair_alike([run for run in received if not _is_paired(run)], left)
    left = _pair_without_receipt([run for run in runs if run.received is None and not _is_paired(run)], runs, left)
    return [
        Run(retries=each.retries, eta=each.eta, replacing=each.replacing, invocation=each.invocation) for each in left
    ]


def _distinct(messages: Iterable[SentMessage]) -> list[SentMessage]:
    # A run that only shares a message has no number of retries.
    last_wins = sorted(messages, key=lambda each: (each.replacing, each.retries is not None))
    found = {(each.invocation.sent, each.invocation.client): each for each in last_wins}
    return sorted(found.values(), key=lambda each: each.invocation.sent or 0.0)


def _pair_equal(received: list[Run], sent: list[SentMessage]) -> list[SentMessage]:
    runs: dict[_Key, list[Run]] = {}
    for run in received:
        if run.invocation is not None:
            runs.setdefault(_key(run.invocation, run.retries, run.replacing), []).append(run)
    messages: dict[_Key, list[SentMessage]] = {}
    for each in sent:
        messages.setdefault(_key(each.invocation, each.retries, each.replacing), []).append(each)
    left = []
    for key, given in messages.items():
        equal = given
        theirs = runs.get(key, [])
        if key[3] == DIRECTLY and len(equal) > len(theirs) > 0:
            equal = _latest_first(equal, theirs)
        elif len(equal) > len(theirs) == 1:
            equal = _just_sent_first(equal, theirs[0].received or 0.0)
        if len(equal) >= len(theirs):
            for run, each in zip(theirs, equal, strict=False):
                _assign(run, each)
            left += equal[len(theirs) :]
        else:
            for run in theirs:
                _assign(run, _last_before(equal, run))
    return left


def _latest_first(sent: list[SentMessage], runs: list[Run]) -> list[SentMessage]:
    """The messages of a task that replaces itself, with those of its runs first.

    Each is sent by the run of the previous one, so none from before the last receipt still waits. Both times are by
    the clock of one machine.
    """
    before = [each for each in sent if (each.invocation.sent or 0.0) <= (runs[-1].received or 0.0)]
    received = before[-len(runs) :]
    return [*received, *(each for each in sent if each not in received)] if len(received) == len(runs) else sent


def _just_sent_first(sent: list[SentMessage], received: float) -> list[SentMessage]:
    """With the message sent just before the receipt first, if all others are so old that they may be lost."""
    ages = [received - (each.invocation.sent or 0.0) for each in sent]
    just = [each for each, age in zip(sent, ages, strict=True) if abs(age) < JUST_SECONDS]
    if len(just) != 1 or any(age < GONE_SECONDS for each, age in zip(sent, ages, strict=True) if each is not just[0]):
        return sent
    return [just[0], *(each for each in sent if each is not just[0])]


def _last_before(sent: list[SentMessage], run: Run) -> SentMessage:
    before = [each for each in sent if (each.invocation.sent or 0.0) <= (run.received or 0.0)]
    return before[-1] if before else sent[0]


def _pair_alike(bare: list[Run], sent: list[SentMessage]) -> list[SentMessage]:
    def find(each: SentMessage) -> Run | None:
        return next((run for run in bare if _is_alike(run, each) and _may_precede(each, run.received)), None)

    return _pair_found(bare, sent, find)


def _pair_found(
    bare: list[Run], sent: list[SentMessage], find: Callable[[SentMessage], Run | None]
) -> list[SentMessage]:
    """Gives each message the run that ``find`` selects from ``bare``; returns the other messages."""
    left = []
    for each in sent:
        run = find(each)
        if run is None:
            left.append(each)
        else:
            bare.remove(run)
            _assign(run, each)
    return left


def _is_alike(run: Run, sent: SentMessage) -> bool:
    known = run.invocation
    if known is None or (known.name != sent.invocation.name and None not in {known.name, sent.invocation.name}):
        return False
    key = _key(known, run.retries, run.replacing)
    return (key[0], *key[3:]) == (sent.retries or 0, *_key(sent.invocation, sent.retries, sent.replacing)[3:])


def _pair_without_receipt(bare: list[Run], runs: Sequence[Run], sent: list[SentMessage]) -> list[SentMessage]:
    bare = sorted(bare, key=begin)
    first = min(runs, key=begin, default=None)

    def find(each: SentMessage) -> Run | None:
        fitting = [run for run in bare if _fits(run, each) and not _is_overtaken(each, run, runs)]
        return next((run for run in fitting if not (each.replacing and run is first)), None)

    return _pair_found(bare, sent, find)


def _fits(run: Run, sent: SentMessage) -> bool:
    known = run.invocation
    named = known is None or known.name is None or known.name == sent.invocation.name
    numbered = run.retries is None or run.retries == (sent.retries or 0)
    return named and numbered and _may_precede(sent, begin(run))


def _is_overtaken(sent: SentMessage, run: Run, runs: Sequence[Run]) -> bool:
    """Whether a message that was sent later was received before the run started."""
    at = sent.invocation.sent or 0.0
    return any(at < each.received < begin(run) for each in runs if each.received is not None)


def _may_precede(sent: SentMessage, at: float | None) -> bool:
    return at is not None and sent.invocation.sent is not None and sent.invocation.sent <= at + SKEW_SECONDS


def _assign(run: Run, message: SentMessage) -> None:
    """Route, sender and name are from task-sent, whose name is never a shadow."""
    sent, known = message.invocation, run.invocation
    if known is None:
        run.invocation = sent
    else:
        run.invocation = msgspec.structs.replace(
            known,
            name=sent.name or known.name,
            args=sent.args if known.args is None else known.args,
            kwargs=sent.kwargs if known.kwargs is None else known.kwargs,
            queue=sent.queue or known.queue,
            exchange=sent.exchange if sent.routing_key is not None else known.exchange,
            routing_key=sent.routing_key or known.routing_key,
            client=sent.client,
            sent=sent.sent,
            expires=sent.expires if known.expires is None else known.expires,
            root_id=known.root_id or sent.root_id,
            parent_id=known.parent_id or sent.parent_id,
        )
    if run.received is None:
        run.retries = message.retries if run.retries is None else run.retries
        run.eta = message.eta if run.eta is None else run.eta
        run.replacing = message.replacing


def unsent(known: Invocation) -> Invocation:
    """The message without the facts of its task-sent event."""
    if known.sent is None:
        return known
    return msgspec.structs.replace(known, sent=None, client=None, queue=None, exchange=None, routing_key=None)


def inherit(runs: Sequence[Run]) -> None:
    """Copies the route from the previous run to a message without a task-sent event.

    A run with nothing but a start is of the same message. Celery sends a retry to where the first message came from,
    and so does a broker that redelivers.
    """
    before: Run | None = None
    for run in runs:
        if before is not None and before.invocation is not None:
            run.invocation = _inherited(run, before, before.invocation)
        before = run
    for run, after in zip(reversed(runs[:-1]), reversed(runs[1:]), strict=True):
        run.invocation = run.invocation or after.invocation


def _inherited(run: Run, before: Run, known: Invocation) -> Invocation:
    own = run.invocation
    if own is None:
        return known
    again = run.retries or is_same(run, before)
    if own.sent is not None or own.name != known.name or not again or own.routing_key or own.queue:
        return own
    return msgspec.structs.replace(own, queue=known.queue, exchange=known.exchange, routing_key=known.routing_key)


def bounded(known: Invocation) -> Invocation:
    """The message with shortened arguments, as it is stored for an earlier run."""
    if len(known.args or "") <= KEPT_CHARACTERS >= len(known.kwargs or ""):
        return known
    return msgspec.structs.replace(known, args=_cut(known.args), kwargs=_cut(known.kwargs))


def _is_paired(run: Run) -> bool:
    return run.invocation is not None and run.invocation.sent is not None


def _key(known: Invocation, retries: int | None, replacing: int) -> _Key:
    # A retry or a replacement has the task itself as its parent.
    parent = None if retries or replacing else known.parent_id
    return retries or 0, _cut(known.args), _cut(known.kwargs), replacing, parent


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= KEPT_CHARACTERS else text[:KEPT_CHARACTERS]


def begin(run: Run) -> float:
    """The first time that its worker reported, else when its message was sent."""
    if run.worker is None and run.invocation is not None and run.invocation.sent is not None:
        return run.invocation.sent
    moments = [time for time in (run.received, run.started, run.ended) if time is not None]
    if moments:
        return min(moments)
    return run.invocation.sent or 0.0 if run.invocation is not None else 0.0
