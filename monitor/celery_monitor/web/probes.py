"""What machines ask: probes of Kubernetes, metrics for Prometheus, and how long our own answers take. No login."""

import time
from collections import defaultdict
from collections.abc import Callable

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_monitor.errors import StoreUnavailable
from celery_monitor.metrics import OPENMETRICS, TEXT, Family, collect, labels_of, render, spooled_bytes
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store, is_migrated
from celery_monitor.store.health import read_receivers
from celery_monitor.store.rollups.totals import Histogram
from celery_monitor.web.security.reach import EVERYBODY, Access, LimitedRoute

READY_LAG_SECONDS = 60.0
WEB_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0)
ELSEWHERE = "(other)"
METRICS = Access(masked=True, role=Role.METRICS)  # they count every task


class Check(msgspec.Struct, frozen=True):
    """One check: whether it passed, and what was found."""

    ok: bool
    message: str


class Readiness(msgspec.Struct, frozen=True):
    """``ready`` if every check passed."""

    ready: bool
    checks: dict[str, Check]


def routes() -> list[BaseRoute]:
    return [
        LimitedRoute("/healthcheck", healthcheck, name="healthcheck", access=EVERYBODY),
        LimitedRoute("/livez", healthcheck, name="livez", access=EVERYBODY),
        LimitedRoute("/readyz", readyz, name="readyz", access=EVERYBODY),
        LimitedRoute("/metrics", metrics, name="metrics", access=METRICS),
    ]


def healthcheck(_: Request) -> PlainTextResponse:
    """The web process is up."""
    return PlainTextResponse("OK")


def readyz(request: Request) -> Response:
    """200 if the record can be read and is not behind, else 503; with each check. The broker is not asked."""
    state = request.app.state
    found = readiness(state.store, state.settings)
    return Response(msgspec.json.encode(found), 200 if found.ready else 503, media_type="application/json")


def readiness(store: Store, settings: Settings) -> Readiness:
    checks = {"database": _check(lambda: _database(store)), "migrations": _check(lambda: _migrations(store))}
    checks["receiver"] = _check(lambda: _receiver(store))
    checks["spool"] = _spool(settings)
    return Readiness(all(each.ok for each in checks.values()), checks)


def _check(run: Callable[[], Check]) -> Check:
    try:
        return run()
    except StoreUnavailable:  # its text may name the server, which is nobody's business here
        return Check(ok=False, message="the database cannot be read")


def _database(store: Store) -> Check:
    with store.read():
        return Check(ok=True, message="can be read")


def _migrations(store: Store) -> Check:
    if is_migrated(store):
        return Check(ok=True, message="of this version")
    return Check(ok=False, message="the tables are of another version of celery-monitor")


def _receiver(store: Store) -> Check:
    """One cluster that is behind is enough; before the first report there is nothing to be behind of."""
    now = time.time()
    for health in read_receivers(store, now):
        lag = health.lag(now)
        if health.unwritten is not None:
            return Check(ok=False, message=f"{health.cluster}: the record cannot be written")
        if lag is not None and lag > READY_LAG_SECONDS:
            return Check(ok=False, message=f"{health.cluster}: {lag:.0f} s behind, more than {READY_LAG_SECONDS:.0f} s")
    return Check(ok=True, message="not behind")


def _spool(settings: Settings) -> Check:
    waiting = sum(spooled_bytes(settings, cluster) or 0 for cluster in settings.clusters)
    full = settings.spool_bytes > 0 and waiting >= settings.spool_bytes
    return Check(ok=not full, message=f"{waiting} of {settings.spool_bytes} bytes")


async def metrics(request: Request) -> Response:
    """In the format of OpenMetrics for who asks for it."""
    state = request.app.state
    wants_openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
    own = state.latencies.family()

    def text() -> bytes:
        return render([*collect(state.store, state.settings), own], openmetrics=wants_openmetrics)

    return Response(await run_in_threadpool(text), headers={"Content-Type": OPENMETRICS if wants_openmetrics else TEXT})


class Latencies:
    """How long this process takes to answer, by route. The middleware and what it has counted."""

    def __init__(self) -> None:
        self._routes: defaultdict[str, Histogram] = defaultdict(Histogram)

    def family(self) -> Family:
        family = Family("celery_monitor_web_request_seconds", "histogram", "Time to answer a request, of this process")
        for route, histogram in self._routes.items():
            family.add_histogram(histogram, WEB_BUCKETS, labels_of({"route": route}))
        return family

    def observe(self, route: str, seconds: float) -> None:
        self._routes[route].add([seconds])


class MeasureLatency:
    """Measures each request until its answer begins: a download may take as long as its reader likes."""

    def __init__(self, app: ASGIApp, latencies: Latencies) -> None:
        self.app = app
        self.latencies = latencies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", ELSEWHERE)
                self.latencies.observe(route, time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, send_measured)
