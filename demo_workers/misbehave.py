"""Failures of real life. A monitor has to show them correctly and stay alive."""

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
    """Wraps an error of a deep call."""


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
    """Hangs for ever. Terminate it from its page."""
    while True:
        time.sleep(3600)


@app.task(name="warehouse.power_cut")
def power_cut() -> None:
    """The pool process dies as if out of memory: WorkerLostError."""
    require_pool()
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="warehouse.blackout")
def blackout() -> None:
    """The whole worker is killed: its tasks are lost."""
    require_pool()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@app.task(name="orders.ugly")
def ugly(name: str) -> dict[str, Any]:
    """Returns any text that a customer may type into a form."""
    return {"name": name, "half a pair": "\ud83d", "not a number": float("nan")}


@app.task(name="orders.ugly_failure")
def ugly_failure(name: str) -> None:
    """Raises an exception with any text."""
    raise ValueError(f"no such customer: {name}")


@app.task(name="orders.import_catalogue", ignore_result=True)
def import_catalogue(catalogue: str) -> None:
    """An argument of 3 MB. Better store it in a file and send its path."""
    time.sleep(len(catalogue) / 10_000_000)


def require_pool() -> None:
    """In a solo or threads pool the parent process is not a worker but a shell."""
    if not current_process().name.startswith("ForkPoolWorker"):
        raise RuntimeError("this task kills processes and runs in a prefork pool only")


@worker_process_init.connect
def end_with_the_worker(**_: Any) -> None:
    """A hung pool process outlives a killed worker. On Linux the kernel can kill it with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
