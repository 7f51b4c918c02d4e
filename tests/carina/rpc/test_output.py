"""What a connection writes, when its transport goes away under it."""

import asyncio
from pathlib import Path
from typing import Any, cast

from carina.rpc.output import Output


class Greeter(asyncio.Protocol):
    """Writes twice as soon as it is connected."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        output = Output(cast(asyncio.Transport, transport), asyncio.get_running_loop())
        output.write(b"PRI")
        output.write(b"SM")


async def test_a_cancelled_connect_is_silent(tmp_path: Path) -> None:
    """Whichever turn of the loop a connect is cancelled in, what was already collected for it is dropped."""
    loop = asyncio.get_running_loop()
    said: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: said.append(context))
    path = str(tmp_path / "sock")
    server = await loop.create_unix_server(asyncio.Protocol, path)
    for turns in range(8):
        connecting = asyncio.create_task(loop.create_unix_connection(Greeter, path), name="connect")
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        done = await asyncio.gather(connecting, return_exceptions=True)
        if not isinstance(done[0], BaseException):
            done[0][0].abort()
        for _ in range(8):
            await asyncio.sleep(0)
    server.close()
    assert not said
