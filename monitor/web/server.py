"""The web process: uvicorn and the application on a socket that is bound already."""

import socket
from threading import Event
from threading import Thread

import uvicorn

from monitor.settings import Settings
from monitor.web.app import create_app

CLOSE_SECONDS = 2  # an open /live ends with the process: its page reconnects by itself


def serve(settings: Settings, descriptor: int, stop: Event) -> None:
    """Serves the dashboard on a listening socket, given by its descriptor, until ``stop`` is set or a signal comes."""
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
    server.run(sockets=[socket.socket(fileno=descriptor)])
