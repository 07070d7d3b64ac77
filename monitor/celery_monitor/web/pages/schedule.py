"""The schedule: last, next, missed and late runs of each entry, and their outcomes."""

from celery_monitor.control.run import RunScheduled
from celery_monitor.core.schedule import in_words
from celery_monitor.errors import MonitorError
from celery_monitor.store.health import known_until
from celery_monitor.store.schedule import Scheduled, all_overdue, read_beat_health, read_schedule, schedule_reported_at
from celery_monitor.web.pages import Context, FormRequest, Page, Result, View, part_of
from celery_monitor.web.security.reach import IN_PART

SHOWN_RUNS = 12
SHOWN_UNREAD = 20
SOURCES = {
    "workers": "worker configuration",
    "app": "your application",
    "redbeat": "RedBeat",
    "django": "django-celery-beat",
}


def context(view: View) -> Context:
    clusters = [view.cluster] if view.cluster else list(view.settings.clusters)
    until = known_until(view.store, view.now)
    rows = read_schedule(view.store, view.cluster, view.now, until)
    beats = [read_beat_health(view.store, name) for name in clusters]
    overdue = [row for row in rows if row.standing.surely_overdue]
    part = part_of(view, sorted(rows, key=_order))
    return {
        "part": part,
        "rows": part.items,
        "words": {_key(row): in_words(row.entry) for row in part.items},
        "key": _key,
        "shown_runs": SHOWN_RUNS,
        "overdue": overdue,
        "stopped": _stopped(rows),
        "unknown_since": {name: at for name, at in until.items() if any(row.entry.cluster == name for row in rows)},
        "sources": SOURCES,
        "entry_sources": [each for each in SOURCES if any(row.entry.source == each for row in rows)],
        "beats": beats,
        "unread": [each for beat in beats for each in beat.unread_entries],
        "shown_unread": SHOWN_UNREAD,
        "last_sent": max((row.standing.last_at for row in rows if row.standing.last_at is not None), default=None),
        "unheard": [name for name in clusters if schedule_reported_at(view.store, name) is None],
        "several": len({row.entry.cluster for row in rows}) > 1,
        "may_run": view.may(RunScheduled.action),
        "asked": _asked(view, rows),
    }


def run(view: View, request: FormRequest) -> Result:
    """Sends the task of an entry; the page has shown its arguments."""
    command = RunScheduled(
        cluster=str(request.form.get("of_cluster") or ""), entry=str(request.form.get("entry") or ""), confirm=True
    )
    try:
        performed = request.controller.perform(request.actor, command)
    except MonitorError as error:
        return Result("/schedule", {"cluster": view.cluster}, f"Nothing was sent. {error.message}", "bad")
    sent = performed.results[0].id
    return Result(
        "/schedule", {"cluster": view.cluster}, performed.message, link="/tasks", link_query={"q": f'id:"{sent}"'}
    )


def _asked(view: View, rows: list[Scheduled]) -> Scheduled | None:
    """The entry to confirm before it is run."""
    wanted = (view.query.get("of"), view.query.get("run"))
    may = view.may(RunScheduled.action)
    return next((row for row in rows if may and (row.entry.cluster, row.entry.name) == wanted), None)


def _stopped(rows: list[Scheduled]) -> list[str]:
    """The clusters whose entries are all overdue."""
    clusters = sorted({row.entry.cluster for row in rows})
    return [name for name in clusters if all_overdue([row for row in rows if row.entry.cluster == name])]


def _order(row: Scheduled) -> tuple[bool, bool, str, str]:
    standing = row.standing
    return not standing.surely_overdue, standing.overdue is None, row.entry.name, row.entry.cluster


def _key(row: Scheduled) -> str:
    return f"{row.entry.cluster}\n{row.entry.name}"


PAGE = Page(
    "/schedule",
    "schedule.html",
    context,
    title="Schedule",
    nav="Schedule",
    regions=("schedule",),
    actions={"run": run},
    access=IN_PART,
)
