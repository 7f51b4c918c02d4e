"""The differ: layers from the content store into trees, and differences of trees into the content store.

The work is done by worker processes (`carina.layer`), no more at a time than there are processors.
A blob reaches its worker as a descriptor where the store hands descriptors out; otherwise its bytes are gathered
in a file without a name first, because a worker looks at the file twice.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Final

from carina import context
from carina.aio.finish import finish
from carina.aio.threads import in_thread
from carina.content import ContentStore, DescriptorLane, Info
from carina.descriptor import Descriptor
from carina.errors import AlreadyExists, CarinaError, Unimplemented
from carina.labels import UNCOMPRESSED
from carina.layer import Limits
from carina.layer.compression import OCI_LAYER_GZIP, of_output
from carina.layer.process import Written, apply, diff
from carina.layer.workers import Workers
from carina.linux.errnos import translated
from carina.mount import Mount
from imaged.processors import StreamProcessor, chain, run

CALL_SECONDS: Final = 30.0
"""For one call to the store."""
COMMIT_SECONDS: Final = 600.0
"""For a commit, which may hash and flush all of a layer."""
_PIECE: Final = 1 << 20


class LocalDiffer:
    """`carina.diff.Differ` on this machine, with the content of `store`. `scratch` is a directory of its own.

    Without `workers`, which are its opener's to close, each layer has an interpreter started for it.
    """

    def __init__(
        self,
        store: ContentStore,
        *,
        scratch: Path,
        limits: Limits | None = None,
        parallel: int | None = None,
        processors: Sequence[StreamProcessor] = (),
        workers: Workers | None = None,
    ) -> None:
        self._store = store
        self._scratch = scratch
        self._limits = limits or Limits()
        self._processors = processors
        self._workers = workers
        self._turns = asyncio.Semaphore(parallel or os.cpu_count() or 1)

    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync_fs: bool = True,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Descriptor:
        steps = chain(self._processors, layer.media_type)
        async with self._turns, self._blob(layer) as blob, contextlib.AsyncExitStack() as stack:
            for step in steps:
                result = await in_thread(_nameless, self._scratch)
                stack.callback(os.close, result)
                limit = self._limits.bytes
                payload = (payloads or {}).get(step.id)
                await run(step, media_type=layer.media_type, source=blob, target=result, limit=limit, payload=payload)
                blob, layer = result, replace(layer, media_type=step.returns)
            return await apply(blob, layer, mounts, sync_fs=sync_fs, limits=self._limits, workers=self._workers)

    async def diff(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date_epoch: datetime | None = None,
    ) -> Descriptor:
        kind = of_output(media_type)
        ref = ref or f"diff-{secrets.token_hex(16)}"
        try:
            async with self._turns, self._ingest(ref) as output:
                written = await diff(
                    output,
                    lower,
                    upper,
                    media_type=media_type,
                    source_date_epoch=source_date_epoch,
                    workers=self._workers,
                )
            await self._commit(ref, written, {**(labels or {}), **_uncompressed(kind, written)})
        except BaseException:
            await finish(self._abort(ref))
            raise
        return Descriptor(media_type=media_type or OCI_LAYER_GZIP, digest=written.digest, size=written.size)

    @contextlib.asynccontextmanager
    async def _blob(self, layer: Descriptor) -> AsyncIterator[int]:
        """A descriptor of the layer's blob, to read from."""
        blob = await self._opened(layer)
        if blob is None:
            blob = await self._gathered(layer)
        try:
            yield blob
        finally:
            os.close(blob)

    async def _opened(self, layer: Descriptor) -> int | None:
        if not isinstance(self._store, DescriptorLane):
            return None
        try:
            with context.deadline(CALL_SECONDS):
                blob, _ = await self._store.open_blob(layer.digest)
        except Unimplemented:
            return None
        return blob

    async def _gathered(self, layer: Descriptor) -> int:
        with context.deadline(CALL_SECONDS):
            reader = await self._store.reader(layer.digest)
        async with reader:
            blob = await in_thread(_nameless, self._scratch)
            try:
                offset = 0
                while offset < reader.size:
                    with context.deadline(CALL_SECONDS):
                        piece = await reader.read(offset, _PIECE)
                    if not piece:
                        break
                    await in_thread(_write_all, blob, piece)
                    offset += len(piece)
            except BaseException:
                os.close(blob)
                raise
        return blob

    @contextlib.asynccontextmanager
    async def _ingest(self, ref: str) -> AsyncIterator[int]:
        """A descriptor to write the ingest `ref` to, from its start. All is written when the block is left."""
        output: int | None = None
        if isinstance(self._store, DescriptorLane):
            try:
                with context.deadline(CALL_SECONDS):
                    output, _ = await self._store.open_ingest(ref, offset=0)
            except Unimplemented:
                output = None
        if output is not None:
            try:
                yield output
            finally:
                os.close(output)
            return
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            with os.fdopen(read, "rb", buffering=0) as source:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(ref, source), name=f"pump {ref}")
                    try:
                        yield write
                    finally:
                        os.close(write)
        except BaseExceptionGroup as failed:
            if len(failed.exceptions) == 1:
                raise failed.exceptions[0] from None
            raise

    async def _pump(self, ref: str, source: FileIO) -> None:
        """Copy from a pipe into the ingest by messages."""
        with context.deadline(CALL_SECONDS):
            writer = await self._store.writer(ref)
        async with writer:
            if writer.status.offset:
                with context.deadline(CALL_SECONDS):
                    await writer.truncate(0)
            stream = asyncio.StreamReader(limit=_PIECE)
            protocol = asyncio.StreamReaderProtocol(stream)
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, source)
            try:
                while piece := await stream.read(_PIECE):
                    with context.deadline(CALL_SECONDS):
                        await writer.write(piece)
            finally:
                pipe.close()

    async def _commit(self, ref: str, written: Written, labels: Mapping[str, str]) -> None:
        try:
            with context.deadline(COMMIT_SECONDS):
                async with await self._store.writer(ref) as writer:
                    await writer.commit(size=written.size, expected=written.digest, labels=labels)
        except AlreadyExists:
            with context.deadline(CALL_SECONDS):
                info = await self._store.info(written.digest)
                missing = {key: value for key, value in labels.items() if info.labels.get(key) != value}
                if missing:
                    fields = [f"labels.{key}" for key in missing]
                    await self._store.update(Info(digest=written.digest, labels=missing), fields)

    async def _abort(self, ref: str) -> None:
        with contextlib.suppress(CarinaError), context.deadline(CALL_SECONDS):
            await self._store.abort(ref)


def _uncompressed(kind: str, written: Written) -> dict[str, str]:
    return {} if kind == "none" else {UNCOMPRESSED: str(written.uncompressed)}


def _nameless(directory: Path) -> int:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        raise translated(error, "gathering a layer to apply") from error
