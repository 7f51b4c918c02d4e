"""Compression of layers: by media type, then by the magic number, as containerd goes about it.

Decompression yields chunks of bounded size whatever the input is, and refuses streams that end early.
"""

import io
import os
from collections.abc import Callable, Iterator
from typing import Final, cast

from carina.errors import InvalidArgument, Unimplemented

CHUNK: Final = 256 << 10
"""Bytes of a decompressed chunk: it is hashed and parsed while it still is in the processor's cache."""
_READ: Final = 256 << 10
MAX_WINDOW: Final = 1 << 27
"""The largest zstd window that is decoded, in bytes: the default of the zstd tool."""

OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD: Final = OCI_LAYER + "+zstd"
_OCI: Final = {OCI_LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar"}
_DOCKER: Final = {
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
}
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_ZSTD_MAGIC: Final = 0xFD2FB528
_SKIPPABLE: Final = 0x184D2A50


def of_media_type(media_type: str) -> str:
    """`plain`, or `sniffed` where the blob's first bytes tell.

    Raises:
        Unimplemented: not the media type of a layer, or of an encrypted one.
    """
    base, plus, suffix = media_type.partition("+")
    if base in _OCI and not plus:
        return "plain"
    if base in _OCI and suffix in {"gzip", "zstd"}:
        return "sniffed"
    if not plus and (
        base in _DOCKER or (base.rpartition(".")[0] in _DOCKER and base.endswith((".gzip", ".gz", ".zstd")))
    ):
        return "sniffed"
    raise Unimplemented(f"media type {media_type!r} is not that of a layer that can be applied")


def of_output(media_type: str) -> str:
    """How a diff of this media type is compressed: `none`, `gzip` or `zstd`.

    Raises:
        Unimplemented: no diff of this type can be made.
    """
    kinds = {"": "gzip", OCI_LAYER: "none", OCI_LAYER_GZIP: "gzip", OCI_LAYER_ZSTD: "zstd"}
    if media_type not in kinds:
        raise Unimplemented(f"a diff of media type {media_type!r} can't be made")
    return kinds[media_type]


def decompressed(blob: int, kind: str) -> Iterator[bytes]:
    """The tar stream in the file `blob`, in chunks.

    The module for the compression is imported when this is called, not when the first chunk is asked for:
    a worker calls it before it changes its root.

    Raises:
        InvalidArgument: (while iterating) the stream is damaged or cut off.
    """
    magic = os.pread(blob, 4, 0) if kind == "sniffed" else b""
    if magic.startswith(_GZIP_MAGIC):
        return _gunzip(blob)
    number = int.from_bytes(magic, "little")
    if number == _ZSTD_MAGIC or (number & ~0xF == _SKIPPABLE and len(magic) == 4):
        return _unzstd(blob)
    return _plain(blob)


def compressor(kind: str, write: Callable[[bytes], None]) -> tuple[Callable[[bytes], None], Callable[[], None]]:
    """Two functions, one that compresses bytes into `write`, one that ends the stream."""
    if kind == "none":
        return write, lambda: None
    if kind == "gzip":
        from isal import isal_zlib

        # The header has no time and no name: equal trees give equal layers.
        gzip = isal_zlib.compressobj(isal_zlib.ISAL_BEST_COMPRESSION, wbits=31)
        return lambda data: write(gzip.compress(data)), lambda: write(gzip.flush())
    import zstandard

    zstd = zstandard.ZstdCompressor(level=3).compressobj()
    return lambda data: write(zstd.compress(data)), lambda: write(zstd.flush())


def _plain(blob: int) -> Iterator[bytes]:
    def chunks() -> Iterator[bytes]:
        while data := os.read(blob, CHUNK):
            yield data

    os.lseek(blob, 0, os.SEEK_SET)
    return chunks()


def _gunzip(blob: int) -> Iterator[bytes]:
    # isal imports it when it finds damage; by then a worker can import nothing.
    import gzip

    from isal import isal_zlib

    os.lseek(blob, 0, os.SEEK_SET)
    # Reads members in a row without copying the rest of the input for each: eStargz layers have one for every file.
    reader = isal_zlib._GzipReader(io.FileIO(blob, "rb", closefd=False), _READ)

    # The stubs declare the class as if it were an instance.
    damaged = (cast(type[Exception], isal_zlib.IsalError), gzip.BadGzipFile, EOFError, OSError)

    def chunks() -> Iterator[bytes]:
        while True:
            try:
                data: bytes = reader.read(CHUNK)
            except damaged as error:
                raise InvalidArgument(f"the layer's gzip stream is damaged: {str(error).lower()}") from error
            if not data:
                return
            yield data

    return chunks()


def _unzstd(blob: int) -> Iterator[bytes]:
    import zstandard

    _check_frames(blob)
    os.lseek(blob, 0, os.SEEK_SET)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    source = io.FileIO(blob, "rb", closefd=False)
    reader = decompressor.stream_reader(source, read_size=_READ, read_across_frames=True)

    def chunks() -> Iterator[bytes]:
        while True:
            try:
                data = reader.read(CHUNK)
            except zstandard.ZstdError as error:
                raise InvalidArgument(f"the layer's zstd stream is damaged: {error}") from error
            if not data:
                return
            yield data

    return chunks()


def _check_frames(blob: int) -> None:
    """Prove that the file is whole zstd frames (RFC 8878, section 3): the reader takes a cut-off frame for the end."""
    size, at = os.fstat(blob).st_size, 0
    while at < size:
        at = _after_frame(os.pread(blob, 18, at), at, blob)
    if at > size:
        raise InvalidArgument("the layer's zstd stream is cut off")


def _after_frame(head: bytes, at: int, blob: int) -> int:
    magic = int.from_bytes(head[:4], "little")
    if magic & ~0xF == _SKIPPABLE and len(head) >= 8:
        return at + 8 + int.from_bytes(head[4:8], "little")
    if magic != _ZSTD_MAGIC or len(head) < 6:
        raise InvalidArgument("the layer's zstd stream has bytes that are no frame")
    descriptor = head[4]
    single = descriptor >> 5 & 1
    length = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + ((single, 2, 4, 8)[descriptor >> 6])
    at += length
    while True:
        header = os.pread(blob, 3, at)
        if len(header) < 3:
            raise InvalidArgument("the layer's zstd stream is cut off")
        block = int.from_bytes(header, "little")
        # The second bit pair tells the type; block type 1 is one byte, repeated.
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        if block & 1:
            return at + (4 if descriptor >> 2 & 1 else 0)
