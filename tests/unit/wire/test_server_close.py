"""A closing server answers who has connected already: its next life gets the listening socket, not the connection."""

import asyncio
import socket

from aiohttp import web

from rbee.wire.http.server import Server


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


async def test_a_request_on_a_connection_accepted_right_before_the_close_is_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = web.Application()
        app.router.add_get("/", hello)
        server = Server(app, [listening.dup()], 5.0)
        await server.start()
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0.03)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        await closing
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200 "), answer
