"""Numbers, ages and names in sentences. No I/O, no clock."""

from collections.abc import Sequence

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
