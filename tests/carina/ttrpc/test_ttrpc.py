"""The ttrpc client and server, against each other and against peers that break the rules."""

import asyncio
import os
import stat
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from carina import context
from carina.api.containerd.task.v2 import StateRequest, StateResponse
from carina.errors import CarinaError, DeadlineExceeded, NotFound, ResourceExhausted, Unavailable, Unimplemented
from carina.ttrpc.client import Client, dial
from carina.ttrpc.frames import MAX_MESSAGE, Frame, Kind, Parser, pack
from carina.ttrpc.server import serve, unary

STATE = "test.Task/State"
SLOW = "test.Task/Slow"


async def _state(request: StateRequest) -> StateResponse:
    if request.id == "absent":
        raise NotFound("task absent: not found")
    if request.id == "broken":
        raise RuntimeError("secret")
    if request.id == "big":
        return StateResponse(id="x" * MAX_MESSAGE)
    remaining = context.current().remaining
    return StateResponse(id=request.id, bundle=context.namespace(), stdin="" if remaining is None else "deadline")


async def _slow(request: StateRequest) -> StateResponse:
    await asyncio.sleep(float(request.id))
    return StateResponse(id=request.id)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    path = tmp_path / "s.sock"
    async with serve(path, {STATE: unary(StateRequest, _state), SLOW: unary(StateRequest, _slow)}):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        made = await dial(str(path))
        with context.within(namespace="test"):
            yield made
        made.close()
    assert not path.exists()


async def test_call(client: Client) -> None:
    """A call carries its message, its namespace and its deadline."""
    answer = await client.call(STATE, StateRequest(id="a"), StateResponse)
    assert (answer.id, answer.bundle, answer.stdin) == ("a", "test", "")
    with context.deadline(5):
        assert (await client.call(STATE, StateRequest(id="a"), StateResponse)).stdin == "deadline"


async def test_calls_overtake(client: Client) -> None:
    """A slow call holds up no other on the same connection."""
    slow = asyncio.create_task(client.call(SLOW, StateRequest(id="0.3"), StateResponse))
    answers = await asyncio.gather(*(client.call(STATE, StateRequest(id=str(n)), StateResponse) for n in range(200)))
    assert [answer.id for answer in answers] == [str(n) for n in range(200)]
    assert not slow.done()
    assert (await slow).id == "0.3"


async def test_errors(client: Client) -> None:
    """Domain errors come back as they were raised; others come without their words."""
    with pytest.raises(NotFound, match="task absent: not found"):
        await client.call(STATE, StateRequest(id="absent"), StateResponse)
    with pytest.raises(Unimplemented):
        await client.call("test.Task/Nothing", StateRequest(), StateResponse)
    with pytest.raises(CarinaError, match="internal error") as caught:
        await client.call(STATE, StateRequest(id="broken"), StateResponse)
    assert "secret" not in str(caught.value)


async def test_deadline(client: Client) -> None:
    """A call ends with its deadline, and its late answer disturbs nobody."""
    with pytest.raises(DeadlineExceeded), context.deadline(0.05):
        await client.call(SLOW, StateRequest(id="0.1"), StateResponse)
    await asyncio.sleep(0.1)
    assert (await client.call(STATE, StateRequest(id="a"), StateResponse)).id == "a"


async def test_too_long(client: Client) -> None:
    """A message over 4 MiB is refused on either side, and the connection goes on."""
    with pytest.raises(ResourceExhausted):
        await client.call(STATE, StateRequest(id="x" * MAX_MESSAGE), StateResponse)
    with pytest.raises(ResourceExhausted):
        await client.call(STATE, StateRequest(id="big"), StateResponse)
    assert (await client.call(STATE, StateRequest(id="a"), StateResponse)).id == "a"


async def test_server_skips_what_is_too_long(tmp_path: Path) -> None:
    """A request whose length is over the limit is skipped unread and answered with an error."""
    path = tmp_path / "s.sock"
    async with serve(path, {STATE: unary(StateRequest, _state)}):
        reader, writer = await asyncio.open_unix_connection(path)
        length = MAX_MESSAGE + 1
        writer.write(struct.pack(">IIBB", length, 1, Kind.REQUEST, 0) + b"x" * length)
        writer.write(pack(2, Kind.REQUEST, b""))
        for stream in (1, 2):
            size, number, kind, _ = struct.unpack(">IIBB", await reader.readexactly(10))
            assert (number, kind) == (stream, Kind.RESPONSE)
            await reader.readexactly(size)
        writer.close()
        await writer.wait_closed()


async def _peer(path: Path, answer: Callable[[int], bytes]) -> asyncio.AbstractServer:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = await reader.readexactly(10)
        writer.write(answer(struct.unpack(">IIBB", header)[1]))
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(talk, path)


async def test_peer_goes_away(tmp_path: Path) -> None:
    """When the peer goes away, the calls in progress and later ones are Unavailable, and the owner is told once."""
    server = await _peer(tmp_path / "s.sock", lambda stream: b"")
    lost: list[str] = []
    client = await dial(str(tmp_path / "s.sock"), lost=lambda: lost.append("lost"))
    for _ in range(2):
        with pytest.raises(Unavailable):
            await client.call(STATE, StateRequest(), StateResponse)
    assert lost == ["lost"]
    server.close()


async def test_peer_talks_nonsense(tmp_path: Path) -> None:
    """An answer that is no message fails its call alone; frames nobody waits for are ignored."""
    stray = pack(99, Kind.RESPONSE, b"") + pack(1, Kind.DATA, b"data")
    server = await _peer(tmp_path / "s.sock", lambda stream: stray + pack(stream, Kind.RESPONSE, b"\xff\xff\xff"))
    client = await dial(str(tmp_path / "s.sock"))
    with pytest.raises(CarinaError, match="not a ttrpc response"):
        await client.call(STATE, StateRequest(), StateResponse)
    client.close()
    server.close()


async def test_nobody_there(tmp_path: Path) -> None:
    """A socket that isn't there or that nobody listens on is Unavailable, not a missing object."""
    with pytest.raises(Unavailable):
        await dial(str(tmp_path / "absent.sock"))
    os.mknod(tmp_path / "stale.sock", stat.S_IFSOCK | 0o600)
    with pytest.raises(Unavailable):
        await dial(str(tmp_path / "stale.sock"))


def test_frames_in_pieces() -> None:
    """Frames are the same however the bytes are cut."""
    whole = pack(1, Kind.REQUEST, b"one") + pack(3, Kind.REQUEST, b"") + pack(5, Kind.DATA, b"five")
    for size in range(1, len(whole)):
        parser, found = Parser(), []
        for start in range(0, len(whole), size):
            found += parser.feed(whole[start : start + size])
        assert found == [
            Frame(1, Kind.REQUEST, b"one"),
            Frame(3, Kind.REQUEST, b""),
            Frame(5, Kind.DATA, b"five"),
        ]
