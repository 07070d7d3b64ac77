"""Numbers, ages and names in sentences. No I/O, no clock."""

from collections.abc import Sequence

from celery_monitor.records.receiver import Reconciliation

NAMED = 3  # more names than this are counted


LONGEST_AGE = 1e10  # seconds


def age_words(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2 h``, ``5 days``: one unit, rounded down, for a sentence."""
    seconds = min(seconds, LONGEST_AGE)
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


def reconciliation_words(result: Reconciliation) -> str:
    """The results of reconciling a gap, in numbers."""
    if result.together_with is not None:
        return "reconciled together with a later gap"
    parts = [
        f"{counted(result.asked, 'unfinished task')} checked",
        f"{result.backend} ended by the result backend",
        f"{result.workers} on workers",
        f"{result.queue} in the broker",
        f"{result.lost} lost",
        f"{result.unknown} unknown",
    ]
    discovered = result.discovered_on_workers + result.discovered_in_queues
    parts += [f"{counted(discovered, 'task')} discovered"] if discovered else []
    parts += [] if result.complete else ["some sources did not answer"]
    return "; ".join(parts)
