"""The socket that the dashboard listens on."""

import asyncio
import socket

from celery_monitor.serve import bind


def test_small_answers_do_not_wait_for_an_acknowledgement() -> None:
    async def accepted_without_delay() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bind("127.0.0.1", 0)
        async with await asyncio.start_server(greet, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await asyncio.wait_for(accepted, 60)
            writer.close()
            await writer.wait_closed()
            return found

    assert asyncio.run(accepted_without_delay()) != 0
