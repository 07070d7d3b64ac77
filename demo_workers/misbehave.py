"""What goes wrong in real life. A monitor has to show all of it truthfully and stay alive."""

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

from billiard import current_process
from celery.signals import worker_process_init

from demo_workers.app import app

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HOSTILE_NAME = '<img src=x onerror="document.title=1"> \u202egpj.exe \x00 \x1b[31m \U0001f9e8'


class SupplierError(Exception):
    """What every step of a long call makes of the error below it."""


@app.task(name="warehouse.import_prices")
def import_prices(supplier: str, depth: int = 30) -> None:
    """A long traceback with a chain of causes."""
    if depth:
        import_prices(supplier, depth - 1)
    try:
        json.loads('{"price": 12,50}')
    except ValueError as error:
        raise SupplierError(f"price list of {supplier} cannot be read") from error


@app.task(name="warehouse.jam")
def jam(shelf: str) -> None:
    """Stuck: it waits for something that never comes. Revoke it with *terminate*."""
    while True:
        time.sleep(3600)


@app.task(name="warehouse.power_cut")
def power_cut() -> None:
    """The pool process dies as if out of memory: WorkerLostError."""
    insist_on_pool()
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="warehouse.blackout")
def blackout() -> None:
    """The whole worker dies without a goodbye: its tasks are lost."""
    insist_on_pool()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@app.task(name="orders.ugly")
def ugly(name: str) -> dict[str, Any]:
    """Everything that a customer may type into a form comes back as a result."""
    return {"name": name, "half a pair": "\ud83d", "not a number": float("nan")}


@app.task(name="orders.ugly_failure")
def ugly_failure(name: str) -> None:
    """... and stands in an exception."""
    raise ValueError(f"no such customer: {name}")


@app.task(name="orders.import_catalogue", ignore_result=True)
def import_catalogue(catalogue: str) -> None:
    """3 MB of argument: better kept in a file, and its address sent. People do it all the same."""
    time.sleep(len(catalogue) / 10_000_000)


def insist_on_pool() -> None:
    """In a solo or threads pool the parent is not a worker but somebody's shell."""
    if not current_process().name.startswith("ForkPoolWorker"):
        raise RuntimeError("this task kills processes and runs in a prefork pool only")


@worker_process_init.connect
def end_with_the_worker(**_: Any) -> None:
    """A pool process that is stuck outlives a killed worker, for ever; on Linux the kernel can be asked to end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
