"""Sockets that the server listens on."""

from __future__ import annotations

import asyncio
import socket

from mlx_qwen3.server.listener import listen_tcp


def test_what_is_sent_goes_out_at_once() -> None:
    """A socket without its protocol is no TCP to asyncio, and then every answer took 40 ms more."""

    async def option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ours = writer.get_extra_info("socket")
            found.set_result(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(connected, sock=listener.socket):
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            try:
                return await found
            finally:
                writer.close()

    listener = listen_tcp("127.0.0.1", 0)
    assert asyncio.run(option()) != 0
