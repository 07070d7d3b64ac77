"""What is wrong with a broker for Celery and for the monitor, and the mend. No I/O, no clock."""

import re
from collections.abc import Iterable

from monitor.diagnosis import BrokerFacts
from monitor.diagnosis import Finding
from monitor.diagnosis import RecordFacts

PUBSUB_BYTES = 32 * 1024**2  # Redis's own default; below it a burst cuts the receiver off
PUBSUB_MEND = "CONFIG SET client-output-buffer-limit 'pubsub 256mb 64mb 60', and the same in redis.conf"
FULL_SHARE = 0.9
VISIBILITY_SECONDS = 3600.0  # kombu's default on Redis


def judge_transport(facts: BrokerFacts, record: RecordFacts | None) -> list[Finding]:
    """Everything about the broker itself."""
    return [*_redis(facts), *_visibility(facts, record), *_queues(facts)]


def _redis(facts: BrokerFacts) -> Iterable[Finding]:
    if facts.transport != "redis":
        return
    told = facts.redis or {}
    limit, used = _whole(told.get("maxmemory")), _whole(told.get("used_memory"))
    policy = told.get("maxmemory_policy")
    if limit is None or policy is None:
        yield Finding(
            "memory of Redis", "unknown", "Redis does not tell its limits to this user.", "Give it the right to INFO."
        )
    elif limit and policy != "noeviction":
        yield Finding(
            "memory of Redis",
            "wrong",
            f"maxmemory-policy is {policy}: when memory is full, Redis throws queues away.",
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        )
    elif limit and used is not None and used > FULL_SHARE * limit:
        yield Finding(
            "memory of Redis",
            "wrong",
            f"{used / limit:.0%} of maxmemory are in use; beyond it no task can be sent.",
            "Raise maxmemory, or empty queues.",
        )
    else:
        yield Finding("memory of Redis", "ok", "Nothing is thrown away." if limit else "No limit is set.")
    yield _pubsub(told.get("pubsub_limit"))


def _pubsub(limit: object) -> Finding:
    found = re.search(r"pubsub (\d+) (\d+) (\d+)", str(limit))
    if found is None:
        return Finding("bursts", "unknown", "Redis does not tell client-output-buffer-limit to this user.")
    hard, soft, seconds = map(int, found.groups())
    if (hard and hard < PUBSUB_BYTES) or (soft and soft < PUBSUB_BYTES // 4):
        return Finding(
            "bursts",
            "wrong",
            f"client-output-buffer-limit pubsub is {hard} {soft} {seconds}: a burst of events cuts the receiver off.",
            PUBSUB_MEND,
        )
    return Finding("bursts", "ok", "client-output-buffer-limit pubsub leaves room.")


def _visibility(facts: BrokerFacts, record: RecordFacts | None) -> Iterable[Finding]:
    if facts.transport != "redis" or not facts.conf:
        return
    given = [
        options.get("visibility_timeout")
        for conf in facts.conf.values()
        if isinstance(options := conf.get("broker_transport_options"), dict)
    ]
    numbers = [float(each) for each in given if isinstance(each, int | float)]
    timeout = min(numbers, default=VISIBILITY_SECONDS)
    longest = max(record.longest_run or 0.0, record.longest_eta or 0.0) if record else 0.0
    if longest > timeout:
        yield Finding(
            "visibility_timeout",
            "wrong",
            f"It is {timeout:.0f} s, and tasks run or wait for their ETA up to {longest:.0f} s: Redis delivers them "
            "a second time.",
            f"broker_transport_options = {{'visibility_timeout': {int(longest * 2)}}}, the same everywhere",
        )
    else:
        seen = "longer than any run or ETA seen" if longest else "no long run or ETA was seen"
        yield Finding("visibility_timeout", "ok", f"{timeout:.0f} s; {seen}.")


def _queues(facts: BrokerFacts) -> Iterable[Finding]:
    if facts.queues is None:
        return
    abandoned = [queue for queue in facts.queues if not queue.consumers]
    for queue in abandoned:
        ours = queue.name == facts.own_queue
        mend = (
            "Start the receiver, or delete the queue."
            if ours
            else f"Delete it if nobody will read it: rabbitmqctl delete_queue {queue.name}"
        )
        yield Finding(
            "event queues", "wrong", f"{queue.name} keeps {queue.messages} messages and has no consumer.", mend
        )
    if not abandoned:
        yield Finding("event queues", "ok", "None is without a consumer.")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
