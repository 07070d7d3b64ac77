"""What came of a gap, in words. No I/O, no clock."""

from monitor.records import Reconciliation


def in_words(found: Reconciliation) -> str:
    """The numbers, for a person to read; of unknown ones, too."""
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
    learnt = found.learnt_from_workers + found.learnt_from_queues
    parts += [f"{learnt} tasks were learnt of by asking"] if learnt else []
    parts += [] if found.complete else ["not everybody and everything could be asked"]
    return "; ".join(parts)
