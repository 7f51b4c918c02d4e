"""Every call has a request id that is the same in every process it reaches, and known to whoever made the call."""

import logging
from pathlib import Path

import grpc
import pytest

from carina import context
from carina.api.containerd.services.content.v1 import ContentBase, ContentStub, Info, InfoRequest, InfoResponse
from carina.rpc.client import connect
from carina.rpc.codec import encode
from carina.rpc.headers import Decoder, make
from carina.rpc.server import serve

INFO = "/containerd.services.content.v1.Content/Info"
ID = "x-request-id"


class Content(ContentBase):
    def __init__(self) -> None:
        self.calls: list[context.Call] = []

    async def info(self, message: InfoRequest) -> InfoResponse:
        self.calls.append(context.current())
        if message.digest == "broken":
            raise RuntimeError("a bug")
        return InfoResponse(info=Info(digest=message.digest))


async def _call(address: str, digest: str, given: str = "") -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Status, text and headers that gRPC's own client gets."""
    async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
        call = channel.unary_unary(INFO)(
            encode(InfoRequest(digest=digest)), metadata=((ID, given),) if given else (), timeout=10
        )
        code = await call.code()
        headers = {**dict(await call.initial_metadata() or ()), **dict(await call.trailing_metadata() or ())}
        return code, await call.details() or "", headers


async def test_a_request_id_is_made_at_the_edge_and_told(tmp_path: Path) -> None:
    """Through a gateway, the service knows the call by the id that the gateway made and the client was told."""
    content = Content()
    async with serve(f"unix://{tmp_path}/b.sock", [content], name="b"):
        channel = connect(f"unix://{tmp_path}/b.sock")
        async with serve(f"unix://{tmp_path}/a.sock", [], name="a", route=lambda path: channel):
            told = [(await _call(f"{tmp_path}/a.sock", "x"))[2][ID] for _ in range(3)]
        direct = (await _call(f"{tmp_path}/b.sock", "x"))[2][ID]
        channel.close()

    assert [call.request for call in content.calls] == [*told, direct]
    assert len({*told, direct}) == 4
    assert all(len(id) == 16 for id in told)


async def test_a_request_id_that_is_given_is_kept(tmp_path: Path) -> None:
    """A client's own id is the call's; one that can't be in a log is replaced."""
    content = Content()
    async with serve(f"unix://{tmp_path}/b.sock", [content], name="b"):
        channel = connect(f"unix://{tmp_path}/b.sock")
        async with serve(f"unix://{tmp_path}/a.sock", [], name="a", route=lambda path: channel):
            await _call(f"{tmp_path}/a.sock", "x", "mine-1")
            await _call(f"{tmp_path}/a.sock", "x", "sixteen-letters-")
            headers = (await _call(f"{tmp_path}/a.sock", "x", "too long " * 40))[2]
        channel.close()

    assert [call.request for call in content.calls[:2]] == ["mine-1", "sixteen-letters-"]
    assert content.calls[2].request == headers[ID]


async def test_calls_made_for_a_call_carry_its_id(tmp_path: Path) -> None:
    """What a service calls to answer is known there by the same id; where there is no call, one is made each time."""
    content = Content()
    async with serve(f"unix://{tmp_path}/b.sock", [content], name="b"):
        channel = connect(f"unix://{tmp_path}/b.sock")
        stub = ContentStub(channel)
        for request in ("a" * 16, "b" * 16, "short"):
            with context.use(context.Call(request=request)):
                await stub.info(InfoRequest(digest="x"))
        await stub.info(InfoRequest(digest="x"))
        channel.close()

    assert [call.request for call in content.calls[:3]] == ["a" * 16, "b" * 16, "short"]
    assert content.calls[3].request not in (None, "a" * 16, "b" * 16, "short")


async def test_a_bug_is_found_by_the_request_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The text of an internal error holds the request id under which the log has it."""
    caplog.set_level(logging.ERROR)
    async with serve(f"unix://{tmp_path}/b.sock", [Content()], name="b"):
        code, text, headers = await _call(f"{tmp_path}/b.sock", "broken")

    assert (code, text) == (grpc.StatusCode.UNKNOWN, f"internal error, id {headers[ID]}")
    assert headers[ID] in caplog.text


def test_headers_that_differ_in_their_id_alone_are_read_once() -> None:
    """The id at the end of a block is taken off it, and what is left is remembered: no other reading results."""
    base = make((":path", "/x"), ("containerd-namespace", "n"))
    decoder = Decoder()
    for number in range(3):
        id = f"{number:016x}".encode()
        sent = base.identified(id)
        found = decoder.decode(sent.block)

        assert found.pairs == sent.pairs == (*base.pairs, (b"x-request-id", id))
        assert found.get(ID) == id.decode()
        assert (found.valid, found.size) == (True, sent.size)
        assert Decoder().decode(sent.block).pairs == found.pairs
        assert Decoder().decode(found.block).pairs == found.pairs
    assert decoder.decode(base.block).pairs == base.pairs


def test_a_value_that_looks_like_an_id_is_not_one() -> None:
    """Bytes of an id at the end of another header's value are that value's."""
    tail = make((ID, "f" * 16)).block
    odd = make((":path", "/x"), ("odd", "v" + tail.decode("latin-1")))
    decoder = Decoder()
    for _ in range(2):
        assert decoder.decode(odd.block).pairs == odd.pairs


def test_an_id_with_a_line_break_makes_the_headers_invalid() -> None:
    """No id gets past what every other header's value must be."""
    base = make((":path", "/x"))
    decoder = Decoder()
    decoder.decode(base.identified(b"0" * 16).block)

    assert not decoder.decode(base.identified(b"0" * 14 + b"\r\n").block).valid
