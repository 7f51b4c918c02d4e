"""Everything that reads bytes of strangers: what it is given, and with which errors it may refuse them.

Each parser gets bytes; anything but its result, or one of the errors named here, is a bug: a traceback, an endless
loop, memory without bounds.
"""

import asyncio
import io
import json
import tempfile
import tomllib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carina import filters
from carina.api.carina.events.v1 import SubscribeRequest
from carina.api.containerd.services.containers.v1 import CreateContainerRequest
from carina.api.containerd.services.content.v1 import WriteContentRequest
from carina.api.containerd.services.tasks.v1 import CreateTaskRequest
from carina.api.containerd.services.transfer.v1 import TransferRequest
from carina.config import load
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError
from carina.events import Cursor
from carina.images import manifest
from carina.layer.tar import Reader
from carina.oci.user import lookup
from carina.platforms import Platform
from carina.reference import Reference, normalize
from carina.rpc.codec import decode
from carina.rpc.connection import Connection
from carina.rpc.headers import Decoder, Unreadable
from carina.transfer.dockerconfig import DockerConfig
from carina.ttrpc.frames import Parser as Frames
from imaged import hostsfile
from imaged.challenges import parse_challenges
from imaged.processors import stream_processors
from imaged.tarstream import TarStream, plain
from shimd import messages, wire

CORPUS: Final = Path(__file__).parent / "corpus"
TOKENS: Final[tuple[bytes, ...]] = (
    b"\0", b"\xff", b"\x80" * 10, b"..", b"/", b"sha256:", b'"', b"{", b"[", b"=", b"~=", b"2147483648", b"-1",
    b"1e999", b"\xc3\x28", b"\xed\xa0\x80", b"null", b"\n", b":", b"\xff\xff\xff\xff", b"0" * 20,
)  # fmt: skip
"""Bytes that have been trouble in parsers."""


@dataclass(frozen=True)
class Parser:
    """A parser, and the errors that are its answers."""

    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...] = (CarinaError,)


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """Of bytes that come as text: what is not UTF-8 never reaches the parser."""
    return lambda data: read(data.decode(errors="replace"))


def _messages(data: bytes) -> None:
    kinds: tuple[Any, ...] = (
        CreateContainerRequest, WriteContentRequest, CreateTaskRequest, TransferRequest, SubscribeRequest,
    )  # fmt: skip
    for kind in kinds:
        try:
            decode(kind, data)
        except CarinaError:
            pass


def _shim_messages(data: bytes) -> None:
    for name in dir(messages):
        schema = getattr(messages, name)
        if isinstance(schema, dict) and schema and all(isinstance(key, int) for key in schema):
            try:
                wire.decode(schema, data)
            except CarinaError:
                pass


class _Transport(asyncio.Transport):
    """Takes what a connection writes, and forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False

    def write(self, data: object) -> None: ...

    def writelines(self, data: object) -> None: ...

    def close(self) -> None:
        self.gone = True

    def abort(self) -> None:
        self.gone = True

    def is_closing(self) -> bool:
        return self.gone

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def _http2(data: bytes) -> None:
    """A server's connection that a client feeds, in two pieces."""

    async def run() -> None:
        connection = Connection(client=False)
        transport = _Transport()
        connection.connection_made(transport)
        half = len(data) // 2
        for piece in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data[:half], data[half:]):
            if not transport.gone:
                connection.data_received(piece)
        await asyncio.sleep(0)
        connection.connection_lost(None)

    asyncio.run(run())


def _ttrpc(data: bytes) -> None:
    parser = Frames()  # taskd's and the shim's are the same
    for start in range(0, len(data), 7):
        parser.feed(data[start : start + 7])


def _layer(data: bytes) -> None:
    reader = Reader(io.BytesIO(data).read1)
    while reader.next() is not None:
        while reader.read(1 << 16):
            pass


def _archive(data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 512):
            yield data[start : start + 512]

    async def run() -> None:
        stream = TarStream(plain(chunks()))
        async for _ in stream.members():
            async for _ in stream.data():
                pass

    asyncio.run(run())


def _descriptor(data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


def _config(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        load(Path(file.name))


def _docker(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        DockerConfig.read(Path(file.name))


def _users(data: bytes) -> None:
    """Half of the bytes as passwd, half as group."""
    with tempfile.TemporaryDirectory() as root:
        etc = Path(root, "etc")
        etc.mkdir()
        passwd, _, group = data.partition(b"\f")
        (etc / "passwd").write_bytes(passwd)
        (etc / "group").write_bytes(group)
        for text in ("root", "nobody", "7", "root:wheel", "4294967296", "a:b"):
            try:
                lookup(root, text)
            except CarinaError:
                pass


def _processors(data: bytes) -> None:
    stream_processors(tomllib.loads(data.decode(errors="replace")))


PARSERS: Final[dict[str, Parser]] = {
    "protobuf": Parser(_messages),
    "shim-protobuf": Parser(_shim_messages),
    "http2": Parser(_http2),
    "hpack": Parser(lambda data: Decoder().decode(data), (Unreadable,)),
    "ttrpc": Parser(_ttrpc),
    "layer": Parser(_layer),
    "archive": Parser(_archive),
    "manifest": Parser(lambda data: manifest.parse(data, _descriptor(data, manifest.OCI_MANIFEST))),
    "index": Parser(lambda data: manifest.parse(data, _descriptor(data, manifest.OCI_INDEX))),
    "image-config": Parser(lambda data: manifest.parse_config(data, _descriptor(data, manifest.OCI_CONFIG))),
    "reference": Parser(_text(lambda text: (normalize(text), Reference.parse(text)))),
    "platform": Parser(_text(Platform.parse)),
    "digest": Parser(_text(Digest)),
    "filters": Parser(_text(lambda text: filters.compile([text]))),
    "cursor": Parser(_text(Cursor.parse)),
    "hosts": Parser(_text(lambda text: hostsfile.parse(text, path=Path("/etc/hosts.toml"), registry="r.example"))),
    "challenges": Parser(_text(lambda text: parse_challenges(text.split("\n")))),
    "config": Parser(_config),
    "docker-config": Parser(_docker),
    "users": Parser(_users),
    "processors": Parser(_processors, (CarinaError, tomllib.TOMLDecodeError)),
}


def seeds(name: str) -> list[bytes]:
    """What the corpus has for a parser."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def describe(data: bytes) -> str:
    return json.dumps(data.decode("latin-1"))[:400]
