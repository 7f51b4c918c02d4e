"""Stream processors: programs of the configuration that turn layers of other types into ones that can be applied."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from carina.api.google.protobuf import Any as WireAny
from carina.content import Info
from carina.descriptor import Descriptor
from carina.diff.client import RemoteDiffer
from carina.diff.server import DiffService
from carina.digest import Digest
from carina.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from carina.layer import Limits
from carina.layer.compression import OCI_LAYER
from carina.rpc.client import connect
from carina.rpc.codec import encode
from carina.rpc.server import serve
from imaged.differ import LocalDiffer
from imaged.processors import MEDIA_TYPE_VARIABLE, StreamProcessor, stream_processors
from support.layers import Layer, bind
from support.stores import MemoryContent

pytestmark = pytest.mark.root

SECRET = "application/x.secret"
REVERSED = "application/x.reversed"


def _put(store: MemoryContent, data: bytes, media_type: str) -> Descriptor:
    digest = Digest.of(data)
    store.blobs[digest], store.infos[digest] = data, Info(digest=digest, size=len(data))
    return Descriptor(media_type=media_type, digest=digest, size=len(data))


def _processor(code: str, *, accepts: str = SECRET, returns: str = OCI_LAYER) -> StreamProcessor:
    return StreamProcessor(id="p", accepts=(accepts,), returns=returns, path="/bin/sh", args=("-c", code), env=("A=b",))


def _scrambled(data: bytes) -> bytes:
    return data.translate(bytes(range(255, -1, -1)))


SCRAMBLE = (
    "exec python3 -c 'import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(bytes(255 - b for b in d))'"
)


async def test_processors_in_a_row_make_a_layer(tmp_path: Path) -> None:
    """What one returns, the next accepts, until it is a layer; each is told the type of what it reads."""
    (tmp_path / "tree").mkdir()
    archive = Layer().file("f", b"data").bytes()
    seen = tmp_path / "seen"
    tell = f'echo "${MEDIA_TYPE_VARIABLE} $A" >> {seen}; '
    processors = [
        _processor(tell + SCRAMBLE, accepts=SECRET, returns=REVERSED),
        _processor(tell + "exec cat", accepts=REVERSED),
    ]
    store = MemoryContent()
    differ = LocalDiffer(store, scratch=tmp_path / "scratch", processors=processors)
    applied = await differ.apply(_put(store, _scrambled(archive), SECRET), [bind(tmp_path / "tree")], sync_fs=False)
    assert applied.digest == Digest.of(archive)
    assert (tmp_path / "tree/f").read_bytes() == b"data"
    assert seen.read_text() == f"{SECRET} b\n{REVERSED} b\n"
    assert os.listdir(tmp_path / "scratch") == []


async def test_a_processor_gets_its_payload(tmp_path: Path) -> None:
    """What the caller of Apply has for a processor is on its descriptor 3, as containerd hands it over; nothing is
    there for one that the caller does not name."""
    (tmp_path / "tree").mkdir()
    seen = tmp_path / "seen"
    processors = [
        _processor(f"cat <&3 > {seen}; " + SCRAMBLE, returns=REVERSED),
        replace(_processor(f"[ -e /dev/fd/3 ] || echo none >> {seen}; exec cat", accepts=REVERSED), id="q"),
    ]
    store = MemoryContent()
    layer = _put(store, _scrambled(Layer().file("f").bytes()), SECRET)
    own = LocalDiffer(store, scratch=tmp_path / "scratch", processors=processors)
    payload = encode(WireAny(type_url="carina.test/key", value=b"the key"))
    address = f"unix://{tmp_path}/diff.sock"
    async with serve(address, [DiffService(own)], name="imaged"):
        channel = connect(address)
        try:
            await RemoteDiffer(channel).apply(
                layer, [bind(tmp_path / "tree")], sync_fs=False, payloads={"p": payload, "other": payload}
            )
        finally:
            channel.close()
    assert seen.read_bytes() == payload + b"none\n"
    assert os.listdir(tmp_path / "tree") == ["f"]


async def test_types_that_no_processor_accepts_are_unimplemented(tmp_path: Path) -> None:
    """So that another differ may be tried; a ring of processors is no way either."""
    store = MemoryContent()
    ring = [_processor("cat", accepts=SECRET, returns=SECRET)]
    for processors in ([], ring):
        differ = LocalDiffer(store, scratch=tmp_path, processors=processors)
        with pytest.raises(Unimplemented, match=r"x\.secret"):
            await differ.apply(_put(store, b"x", SECRET), [bind(tmp_path)])


async def test_failures_are_told(tmp_path: Path) -> None:
    """A program that fails, is missing, or writes without end is named in the error, with its last words."""
    store = MemoryContent()
    layer = _put(store, b"x", SECRET)

    async def failing(processor: StreamProcessor) -> None:
        differ = LocalDiffer(store, scratch=tmp_path / "s", processors=[processor], limits=Limits(bytes=1 << 20))
        await differ.apply(layer, [bind(tmp_path)])

    with pytest.raises(FailedPrecondition, match="stream processor p ended with status 3: no key"):
        await failing(_processor("echo first >&2; echo no key >&2; exit 3"))
    missing = StreamProcessor(id="gone", accepts=(SECRET,), returns=OCI_LAYER, path="/nowhere")
    with pytest.raises(FailedPrecondition, match="stream processor gone can't be started: no such file"):
        await failing(missing)
    with pytest.raises(ResourceExhausted, match="stream processor p writes more than 1048576 bytes"):
        await failing(_processor("exec cat /dev/zero"))


async def test_cancelling_ends_the_program(tmp_path: Path) -> None:
    """Nothing goes on when nobody waits for it."""
    store = MemoryContent()
    pid = tmp_path / "pid"
    differ = LocalDiffer(store, scratch=tmp_path / "s", processors=[_processor(f"echo $$ > {pid}; exec sleep 600")])
    task = asyncio.create_task(differ.apply(_put(store, b"x", SECRET), [bind(tmp_path)]), name="apply")
    async with asyncio.timeout(30):
        while not (pid.exists() and pid.stat().st_size):
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_cancelling_at_once_leaves_no_program(tmp_path: Path) -> None:
    """One that is being started when nobody waits any more ends as well."""
    store = MemoryContent()
    mark = str(tmp_path / "mark")
    differ = LocalDiffer(store, scratch=tmp_path / "s", processors=[_processor(f": {mark}; sleep 600; :")])
    layer = _put(store, b"x", SECRET)
    for number in range(10):
        task = asyncio.create_task(differ.apply(layer, [bind(tmp_path)]), name="apply")
        await asyncio.sleep(number / 2000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.to_thread(_running, mark) == []


def _running(mark: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path("/proc", pid, "cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("x", "must be a table"),
        ({"path": "cat"}, "returns must be a text"),
        ({"returns": OCI_LAYER, "path": "no-such-program"}, "no program on this machine"),
        ({"returns": OCI_LAYER, "path": "cat", "accepts": "x"}, "accepts must be a list"),
        ({"returns": OCI_LAYER, "path": "cat", "wrong": 1}, "wrong is not a setting"),
    ],
)
def test_settings_are_checked(entry: object, complaint: str) -> None:
    """A mistake in the configuration is named when it is read."""
    with pytest.raises(InvalidArgument, match=complaint):
        stream_processors({"p": entry})


def test_a_program_is_found_when_the_configuration_is_read() -> None:
    """Its path is absolute from then on, whatever PATH or root a process has later."""
    (found,) = stream_processors({"p": {"accepts": [SECRET], "returns": OCI_LAYER, "path": "cat"}})
    assert os.path.isabs(found.path)
