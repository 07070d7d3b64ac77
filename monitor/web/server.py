"""The web process: a bound socket, uvicorn, and the application."""

import socket
from threading import Event
from threading import Thread

import uvicorn

from monitor.errors import SettingsError
from monitor.settings import Settings
from monitor.web.app import create_app

BACKLOG = 512
CLOSE_SECONDS = 2  # an open /live ends with the process: its page reconnects by itself


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises SettingsError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Of a socket without its protocol asyncio lets what is small wait for the other side's acknowledgement, 0.04 s.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError, ValueError) as error:  # the last for a host that cannot be a name
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port, or --port 0 for a free one"
        ) from None
    return listener


def serve(settings: Settings, listener: socket.socket, stop: Event) -> None:
    """Serves the dashboard until ``stop`` is set or a signal comes."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # who asks is decided by the connection, not by a header that anybody can send
            timeout_graceful_shutdown=CLOSE_SECONDS,
            ws="websockets-sansio",
            ws_per_message_deflate=False,  # live.py compresses, once for all who share a view
        )
    )

    def end() -> None:
        stop.wait()
        server.should_exit = True

    Thread(target=end, daemon=True).start()
    server.run(sockets=[listener])
