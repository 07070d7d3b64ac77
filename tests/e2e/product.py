"""The product as a user starts it: ``python -m celery_monitor serve`` as a process of its own, ended with all it
started."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen
from uuid import uuid4

from amqp.exceptions import ChannelError
from celery import Celery

from tests.test_cli import members
from tests.workers import ROOT, wait_for

START_SECONDS = 60
STOP_SECONDS = 60
CLUSTER = "shop"


@dataclass
class Product:
    """A running dashboard, its address and what it printed."""

    process: subprocess.Popen[bytes]
    output: Path
    address: str = ""

    @property
    def log_text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def health(self) -> dict[str, object]:
        with urlopen(f"{self.address}api/v1/health", timeout=60) as response:
            (item,) = json.load(response)["items"]
        return dict(item)

    def get(self, path: str) -> str:
        """A page as text."""
        with urlopen(f"{self.address}{path}", timeout=60) as response:
            return str(response.read().decode())

    def count(self, query: str) -> int:
        """How many tasks a query finds."""
        return int(json.loads(self.get(f"api/v1/tasks?limit=1&q={quote(query)}"))["count"]["value"])

    @property
    def heard(self) -> int:
        """Events that have been received."""
        return int(str(self.health()["events_total"]))

    def web_pid(self) -> int:
        """The web process: the one whose connections come from the dashboard's own port."""
        port = int(self.address.rstrip("/").rpartition(":")[2])
        established = _established(port)
        processes = members(self.process.pid)
        for pid in processes:
            if established & _sockets(pid):
                return pid
        raise LookupError(f"none of {processes} has a connection at port {port}")


def _established(port: int) -> set[str]:
    """The inodes of established connections at a local port."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    return {f"socket:[{each[9]}]" for each in fields if int(each[1].split(":")[1], 16) == port and each[3] == "01"}


def _sockets(pid: int) -> set[str]:
    found = set()
    with suppress(FileNotFoundError):  # ended, or closed, since it was listed
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(str(link.readlink()))
    return found


@contextmanager
def serving(broker_url: str, directory: Path, *options: str) -> Iterator[Product]:
    """The dashboard of one broker on a database in ``directory``, connected and ready."""
    node = f"test-{uuid4().hex[:12]}"
    command = [sys.executable, "-m", "celery_monitor", "serve", "--broker", f"{CLUSTER}={broker_url}", "--port", "0"]
    command += ["--database", f"sqlite:///{directory}/record.db", "--node-id", node, "--event-queue-ttl", "60"]
    command += ["--sample-seconds", "1", "--inspect-seconds", "3", *options]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_MONITOR_")}
    output = directory / "serve.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    product = Product(process, output)
    try:
        _wait_until_ready(product)
        yield product
    finally:
        _stop(process)
        _delete_queues(broker_url, f"celeryev.{node}", node)


def _wait_until_ready(product: Product) -> None:
    def address() -> str | None:
        if product.process.poll() is not None:
            raise RuntimeError(f"serve ended with {product.process.returncode}:\n{product.log_text}")
        found = re.search(r"celery-monitor is at (http://\S+)", product.log_text)
        return found.group(1) if found else None

    def connected() -> bool:
        try:
            return bool(product.health()["connected"])
        except HTTPError as error:
            error.close()
            return error.code == 401  # only who signs in sees more
        except (URLError, ValueError):  # the receiver has not written its health yet
            return False

    product.address = wait_for(address, START_SECONDS, "the address of serve")
    wait_for(connected, START_SECONDS, "the receiver's connection")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C; what is left of its process group after that is killed."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


def _delete_queues(broker_url: str, *names: str) -> None:
    if not broker_url.startswith("amqp"):
        return
    with Celery("clean", broker=broker_url, set_as_current=False).connection_for_write(connect_timeout=2) as connection:
        for name in names:
            with suppress(ChannelError), connection.channel() as channel:
                channel.queue_delete(name)


def stopped(pid: int) -> bool:
    """Whether a process is gone (or waits to be reaped)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def kill(pid: int) -> None:
    """``kill -9``, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: stopped(pid), what=f"the end of process {pid}")
