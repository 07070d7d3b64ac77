"""Numbers, ages and names in sentences. No I/O, no clock."""

from collections.abc import Sequence

from celery_monitor.records.receiver import Reconciliation

NAMED = 3  # more names than this are counted


def age_words(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2 h``, ``5 days``: one unit, rounded down, for a sentence."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size * (2 if unit == "days" else 1):
            return f"{int(seconds // size)} {unit}"
    return f"{int(max(0.0, seconds))} s"


def number_words(number: int) -> str:
    """Digits, with thin separators from five digits on."""
    return f"{number:,}".replace(",", "\u202f") if number > 9999 else str(number)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 worker``, ``3 workers``."""
    return f"{number_words(number)} {noun if number == 1 else plural or noun + 's'}"


def named(names: Sequence[str]) -> str:
    """``a, b, c and 2 more``."""
    more = f" and {number_words(len(names) - NAMED)} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def reconciliation_words(found: Reconciliation) -> str:
    """What came of a gap, in numbers; of unknown ones, too."""
    if found.together_with is not None:
        return "reconciled together with a later gap"
    parts = [
        f"{found.asked} unended tasks were asked for",
        f"the result backend knew {found.backend} ends",
        f"workers had {found.workers}",
        f"the broker had {found.queue}",
        f"{found.lost} are lost",
        f"{found.unknown} remain unknown",
    ]
    discovered = found.discovered_on_workers + found.discovered_in_queues
    parts += [f"{discovered} tasks were learnt of by asking"] if discovered else []
    parts += [] if found.complete else ["not everybody and everything could be asked"]
    return "; ".join(parts)
