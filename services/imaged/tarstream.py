"""Tar as a stream of chunks, in both directions: members one after the other, nothing held but one chunk.

Reading bounds what a header may claim; only regular files have data. A gzip or zstd stream around the tar is undone.
"""

import contextlib
import tarfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import IO, Final, cast

import zstandard

from carina.errors import InvalidArgument

BLOCK: Final = 512
MAX_HEADER: Final = 1 << 20
"""Bytes of a long name or PAX header."""
MAX_MEMBERS: Final = 100_000
MAX_NAME: Final = 4096
"""Bytes of a member's path, and of a link's target: as many as the kernel takes."""
_PIECE: Final = 1 << 18
_MAX_WINDOW: Final = 1 << 27


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    name: str
    size: int
    """Bytes of data; 0 for what is not a regular file."""
    link: str = ""
    """Target of a symbolic or hard link."""
    is_file: bool = True


class TarStream:
    """Members of an archive: `stream.members()` goes through them, `stream.data()` is the current one's bytes."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = aiter(chunks)
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0

    async def members(self) -> AsyncGenerator[Member, None]:
        """Raises InvalidArgument for what is not a tar archive."""
        pax: dict[str, str] = {}
        count = 0
        while (block := await self._take(BLOCK, end_ok=True)) and any(block):
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise InvalidArgument(f"the archive is not a tar archive: {error}") from error
            count += 1
            if count > MAX_MEMBERS or info.size < 0:
                raise InvalidArgument(f"the archive has more than {MAX_MEMBERS} members, or one of negative size")
            if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                pax |= _extended(info.type, await self._special(info.size))
                continue
            if info.type == tarfile.XGLTYPE:
                await self._special(info.size)
                continue
            yield self._member(info, pax)
            pax = {}
            async with aclosing(self.data()) as rest:
                async for _ in rest:
                    pass

    async def data(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the current member that have not been read."""
        while self._left:
            if not self._buffer:
                await self._fill()
            chunk = bytes(self._buffer[: min(self._left, _PIECE)])
            del self._buffer[: len(chunk)]
            self._left -= len(chunk)
            yield chunk
        if self._padding:
            padding, self._padding = self._padding, 0
            await self._take(padding)

    def _member(self, info: tarfile.TarInfo, pax: dict[str, str]) -> Member:
        size = info.size
        if "size" in pax:
            if not pax["size"].isdigit() or len(pax["size"]) > 18:
                raise InvalidArgument("the archive has a member whose size is no number")
            size = int(pax["size"])
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        self._left = size if is_file else 0
        self._padding = -self._left % BLOCK
        link = pax.get("linkpath", info.linkname) if info.issym() or info.islnk() else ""
        name = pax.get("path", info.name)
        if max(len(name), len(link)) > MAX_NAME:
            raise InvalidArgument(f"the archive has a name of more than {MAX_NAME} bytes: {name[:64]!r}")
        return Member(name=name, size=self._left, link=link, is_file=is_file)

    async def _special(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise InvalidArgument(f"the archive has a header of {size} bytes, more than {MAX_HEADER}")
        data = await self._take(size)
        await self._take(-size % BLOCK)
        return data

    async def _take(self, count: int, *, end_ok: bool = False) -> bytes:
        while len(self._buffer) < count:
            try:
                await self._fill()
            except EOFError as error:
                if end_ok and not self._buffer:
                    return b""
                raise InvalidArgument("the archive ends early") from error
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _fill(self) -> None:
        chunk = await anext(self._chunks, b"")
        if not chunk:
            if self._left:
                raise InvalidArgument("the archive ends early")
            raise EOFError
        self._buffer += chunk


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {"linkpath": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length) <= len(data):
            raise InvalidArgument("the archive has a malformed PAX header")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return {key: found[key] for key in ("path", "linkpath", "size") if key in found}


async def plain(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The stream, decompressed where it is gzip or zstd, in pieces of bounded size."""
    chunks = aiter(chunks)
    head = b""
    while len(head) < 4 and (chunk := await anext(chunks, b"")):
        head += chunk
    if head.startswith(b"\x1f\x8b"):
        pieces = _gunzip(head, chunks)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        pieces = _unzstd(head, chunks)
    else:
        pieces = _as_is(head, chunks)
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece


async def _as_is(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    if head:
        yield head
    async for chunk in chunks:
        yield chunk


async def _gunzip(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    inflate = zlib.decompressobj(wbits=31)
    data = head
    try:
        while data:
            while data:
                if piece := inflate.decompress(data, _PIECE):
                    yield piece
                data = inflate.unconsumed_tail
                if inflate.eof:
                    # Members may follow each other; zeros may follow them.
                    data = inflate.unused_data.lstrip(b"\0")
                    inflate = zlib.decompressobj(wbits=31)
            data = await anext(chunks, b"")
    except zlib.error as error:
        raise InvalidArgument(f"the archive is not gzip, as it begins: {error}") from error


async def _unzstd(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    feed = _Feed(head)
    zstd = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    inflate = zstd.stream_reader(cast(IO[bytes], feed), read_across_frames=True)
    try:
        while feed.data:
            with contextlib.suppress(BlockingIOError):
                # Reads no more than it needs for some bytes, so that none are lost where the feed has no more.
                while piece := inflate.read1(_PIECE):
                    yield piece
            feed.data = await anext(chunks, b"")
    except zstandard.ZstdError as error:
        raise InvalidArgument(f"the archive is not zstd, as it begins: {error}") from error


class _Feed:
    """A file that has what it was given last, and then asks for patience."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, count: int) -> bytes:
        if not self.data:
            raise BlockingIOError
        piece, self.data = self.data[:count], self.data[count:]
        return piece


def header(name: str, size: int) -> bytes:
    """The header of a regular file, the same bytes every time."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


END: Final = bytes(2 * BLOCK)
