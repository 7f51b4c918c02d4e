"""The Content service message by message, ours and a real containerd's: what Go clients rely on."""

import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from grpclib.const import Cardinality

from carina import context
from carina.api.containerd.services.content.v1 import (
    ContentStub,
    InfoRequest,
    ListContentRequest,
    ReadContentRequest,
    UpdateRequest,
    WriteAction,
    WriteContentRequest,
    WriteContentResponse,
)
from carina.content.client import RemoteContentStore
from carina.content.server import ContentService
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, FailedPrecondition, InvalidArgument, OutOfRange
from carina.rpc.client import Channel, connect
from carina.rpc.server import serve
from contentd.store import LocalContentStore
from support.content import containerd, directory

STAT, WRITE, COMMIT = WriteAction.STAT, WriteAction.WRITE, WriteAction.COMMIT


@pytest.fixture(params=["contentd", pytest.param("containerd", marks=pytest.mark.root)])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    if request.param == "containerd" and shutil.which("containerd") is None:
        pytest.skip("needs containerd")
    with directory() as path, context.within(namespace="test"):
        if request.param == "containerd":
            with containerd(path) as address:
                channel = connect(address)
                yield channel
                channel.close()
            return
        async with own(path) as channel:
            yield channel


class own:
    """Our store behind a socket."""

    def __init__(self, path: Path) -> None:
        self._address = f"unix://{path}/c.sock"
        self._store = LocalContentStore(path / "content")
        self._served = serve(self._address, [ContentService(self._store)], name="contentd", grace=1.0)

    async def __aenter__(self) -> Channel:
        await self._store.__aenter__()
        await self._served.__aenter__()
        self._channel = connect(self._address)
        return self._channel

    async def __aexit__(self, *args: object) -> None:
        self._channel.close()
        await self._served.__aexit__(None, None, None)
        await self._store.__aexit__()


@dataclass
class Talk:
    """The answers of one Write stream, and the error that ended it."""

    answers: list[WriteContentResponse] = field(default_factory=list)
    error: CarinaError | None = None


async def talk(channel: Channel, requests: Sequence[WriteContentRequest]) -> Talk:
    """Send each request when the one before is answered."""
    result = Talk()
    try:
        async with channel.request(
            "/containerd.services.content.v1.Content/Write",
            Cardinality.STREAM_STREAM,
            WriteContentRequest,
            WriteContentResponse,
        ) as stream:
            for index, request in enumerate(requests):
                await stream.send_message(request, end=index == len(requests) - 1)
                answer = await stream.recv_message()
                if answer is None:
                    break
                result.answers.append(answer)
            await stream.recv_trailing_metadata()
    except CarinaError as error:
        result.error = error
    return result


async def test_a_whole_conversation(channel: Channel) -> None:
    """STAT, WRITE and COMMIT are each answered with action, offset, total and digest so far."""
    expected = Digest.of(b"12345678")
    done = await talk(
        channel,
        [
            WriteContentRequest(action=STAT, ref="r", total=8, expected=expected),
            WriteContentRequest(action=WRITE, offset=0, data=b"1234"),
            WriteContentRequest(action=WRITE, offset=4, data=b"56"),
            WriteContentRequest(action=COMMIT, offset=6, data=b"78", total=8, expected=expected, labels={"a": "b"}),
        ],
    )
    assert done.error is None
    assert [(one.action, one.offset, one.digest) for one in done.answers] == [
        (STAT, 0, Digest.of(b"")),
        (WRITE, 4, Digest.of(b"1234")),
        (WRITE, 6, Digest.of(b"123456")),
        (COMMIT, 8, expected),
    ]
    assert done.answers[0].total == 8
    assert done.answers[0].started_at is not None
    info = (await ContentStub(channel).info(InfoRequest(digest=expected))).info
    assert info is not None
    assert (info.size, info.labels) == (8, {"a": "b"})


@pytest.mark.parametrize("offset", [3, 5])
async def test_offset_must_be_the_current_one(channel: Channel, offset: int) -> None:
    """A write elsewhere than at the end is out of range, and changes nothing."""
    done = await talk(
        channel,
        [
            WriteContentRequest(action=WRITE, ref="r", data=b"1234"),
            WriteContentRequest(action=WRITE, offset=offset, data=b"x"),
        ],
    )
    assert len(done.answers) == 1
    assert isinstance(done.error, OutOfRange)
    done = await talk(channel, [WriteContentRequest(action=STAT, ref="r")])
    assert (done.answers[0].offset, done.answers[0].digest) == (4, Digest.of(b"1234"))


async def test_offset_zero_starts_over(channel: Channel) -> None:
    """A write or commit at 0 forgets what was written before."""
    done = await talk(
        channel,
        [
            WriteContentRequest(action=WRITE, ref="r", data=b"1234"),
            WriteContentRequest(action=WRITE, offset=0, data=b"ab"),
            WriteContentRequest(action=COMMIT, offset=0, data=b"xyz"),
        ],
    )
    assert done.error is None
    assert [(one.offset, one.digest) for one in done.answers] == [
        (4, Digest.of(b"1234")),
        (2, Digest.of(b"ab")),
        (3, Digest.of(b"xyz")),
    ]


async def test_first_message_names_a_ref(channel: Channel) -> None:
    """A conversation about nothing is refused."""
    done = await talk(channel, [WriteContentRequest(action=STAT)])
    assert done.answers == []
    assert isinstance(done.error, InvalidArgument)


async def test_expectation_that_is_met_already(channel: Channel) -> None:
    """A stream ends with AlreadyExists as soon as it says that it expects a blob that is there."""
    digest = Digest.of(b"data")
    await talk(channel, [WriteContentRequest(action=COMMIT, ref="r", data=b"data")])
    at_open = await talk(channel, [WriteContentRequest(action=STAT, ref="s", expected=digest)])
    assert at_open.answers == []
    assert isinstance(at_open.error, AlreadyExists)
    later = await talk(
        channel,
        [
            WriteContentRequest(action=STAT, ref="s"),
            WriteContentRequest(action=WRITE, data=b"da", expected=digest),
        ],
    )
    assert len(later.answers) == 1
    assert isinstance(later.error, AlreadyExists)
    assert await RemoteContentStore(channel).statuses() == []


async def test_announced_total_binds_the_commit(channel: Channel) -> None:
    """The total that was announced with the first message holds at commit as well."""
    done = await talk(
        channel,
        [
            WriteContentRequest(action=WRITE, ref="r", total=9, data=b"1234"),
            WriteContentRequest(action=COMMIT, offset=4),
        ],
    )
    assert isinstance(done.error, FailedPrecondition)
    assert [status.offset for status in await RemoteContentStore(channel).statuses()] == [4]


async def test_read(channel: Channel) -> None:
    """A read without size goes to the end, in messages of 1 MiB; one that begins behind the end is out of range."""
    data = bytes(2_500_000)
    await talk(channel, [WriteContentRequest(action=COMMIT, ref="r", data=data)])
    stub = ContentStub(channel)

    async def read(offset: int, size: int) -> list[int]:
        request = ReadContentRequest(digest=Digest.of(data), offset=offset, size=size)
        return [len(answer.data) async for answer in stub.read(request)]

    assert await read(0, 0) == [1 << 20, 1 << 20, 2_500_000 - (2 << 20)]
    assert await read(2_400_000, 0) == [100_000]
    assert await read(2_400_000, 200_000) == [100_000]
    assert await read(5, 10) == [10]
    assert await read(-5, 10) == [10]
    assert await read(2_500_000, 0) == []
    with pytest.raises(OutOfRange):
        await read(2_500_001, 1)


async def test_list_comes_in_blocks(channel: Channel) -> None:
    """A list has at most a hundred blobs in a message."""
    for number in range(101):
        await talk(channel, [WriteContentRequest(action=COMMIT, ref=f"r{number}", data=b"%d" % number)])
    sizes = [len(answer.info) async for answer in ContentStub(channel).list(ListContentRequest())]
    assert sizes == [100, 1]


@pytest.mark.parametrize("digest", ["", "sha256:../../x", "sha256:abc", "md5:" + "a" * 32, "sha256:" + "A" * 64])
async def test_bad_digests(channel: Channel, digest: str) -> None:
    """What is no digest is refused as an argument, wherever it is given."""
    stub = ContentStub(channel)
    with pytest.raises(InvalidArgument):
        await stub.info(InfoRequest(digest=digest))
    with pytest.raises(InvalidArgument):
        _ = [answer async for answer in stub.read(ReadContentRequest(digest=digest))]


async def test_update_of_nothing(channel: Channel) -> None:
    """An update that names no content is refused."""
    if "c.sock" not in channel.address:
        pytest.skip("containerd crashes the call")
    with pytest.raises(InvalidArgument):
        await ContentStub(channel).update(UpdateRequest())
