"""A layer of a content store stored once more in another compression."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from carina import context
from carina.aio.finish import finish
from carina.aio.threads import in_thread
from carina.content import ContentStore, DescriptorLane, Writer
from carina.digest import Digest
from carina.errors import AlreadyExists, NotFound, Unimplemented
from carina.labels import UNCOMPRESSED
from carina.layer.recompress import Recompress

CALL_SECONDS: Final = 60.0
COMMIT_SECONDS: Final = 600.0
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompressed:
    """What became of a layer."""

    digest: Digest
    size: int
    diff_id: Digest
    """Digest of the tar, which is the same as before."""


async def recompressed(
    store: ContentStore, digest: Digest, kind: str, *, labels: Mapping[str, str] | None = None
) -> Recompressed:
    """Store a layer as `none`, `gzip` or `zstd` with `labels`; the same layer gives the same bytes.

    Raises:
        NotFound: it is not there.
        InvalidArgument: its stream is damaged.
    """
    ref = f"recompress-{secrets.token_hex(12)}"
    size = 0
    async with _opened(store, digest) as blob:
        work = await in_thread(Recompress, blob, kind)
        try:
            with context.deadline(CALL_SECONDS):
                writer = await store.writer(ref)
            async with writer:
                while piece := await in_thread(work.step):
                    size += len(piece)
                    await writer.write(piece)
                with context.deadline(COMMIT_SECONDS):
                    made = await writer.digest()
                    await _commit(writer, size, made, _labels(labels or {}, kind, work.diff_id))
        except BaseException:
            await finish(_discard(store, ref))
            raise
    return Recompressed(digest=made, size=size, diff_id=work.diff_id)


def _labels(labels: Mapping[str, str], kind: str, diff_id: Digest) -> dict[str, str]:
    """A layer that is not compressed says nothing of what it is uncompressed, as with `ctr images convert`."""
    kept = {key: value for key, value in labels.items() if key != UNCOMPRESSED}
    return kept if kind == "none" else {**kept, UNCOMPRESSED: diff_id}


async def _commit(writer: Writer, size: int, made: Digest, labels: Mapping[str, str]) -> None:
    with contextlib.suppress(AlreadyExists):
        await writer.commit(size=size, expected=made, labels=labels)


async def _discard(store: ContentStore, ref: str) -> None:
    with contextlib.suppress(NotFound), context.deadline(CALL_SECONDS):
        await store.abort(ref)


@contextlib.asynccontextmanager
async def _opened(store: ContentStore, digest: Digest) -> AsyncIterator[int]:
    """A file descriptor of a blob; of a copy without a name where the store hands none out."""
    if isinstance(store, DescriptorLane):
        try:
            with context.deadline(CALL_SECONDS):
                fd, _ = await store.open_blob(digest)
        except Unimplemented:
            pass
        else:
            try:
                yield fd
            finally:
                os.close(fd)
            return
    file = await in_thread(tempfile.TemporaryFile)
    try:
        with context.deadline(CALL_SECONDS):
            reader = await store.reader(digest)
        async with reader:
            offset = 0
            while piece := await reader.read(offset, _PIECE):
                offset += len(piece)
                await in_thread(file.write, piece)
        await in_thread(file.flush)
        yield file.fileno()
    finally:
        await in_thread(file.close)
