"""Layers become snapshots: one committed snapshot per layer, named by its chain id, each on top of the one below.

    prepare `extract-<random> <chain id>`  →  apply  →  diff id as the configuration says?  →  commit as <chain id>

What fails on the way removes its extraction snapshot. A layer that is unpacked already, or that the snapshotter
brings itself (a remote one answers AlreadyExists), is not applied again.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from carina import context, faults
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.content import ContentStore, Info
from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, DataLoss, InvalidArgument, NotFound
from carina.images.manifest import Config, Manifest, chain_ids
from carina.labels import GC_REF_SNAPSHOT, SNAPSHOT_PREFIX, SNAPSHOT_REF, UNCOMPRESSED
from carina.mount import Mount
from carina.snapshots import Snapshotter
from imaged.ingest import CALL_SECONDS, COMMIT_SECONDS
from imaged.progress import Tracker

_SHARED_UNPACK_SECONDS: Final = 6 * 3600.0
_log = logging.getLogger(__name__)

Ready = Callable[[int], Awaitable[None]]
"""Returns when layer number N is in the content store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    number: int
    descriptor: Descriptor
    diff_id: Digest
    chain_id: Digest
    parent: str


class Unpacker:
    """Unpacks images into one snapshotter, in the call's namespace."""

    def __init__(
        self,
        *,
        name: str,
        snapshotter: Snapshotter,
        differ: Differ,
        store: ContentStore,
        locks: KeyedLock,
        tracker: Tracker,
    ) -> None:
        self.name = name
        self._snapshotter = snapshotter
        self._differ = differ
        self._store = store
        self._locks = locks
        self._tracker = tracker

    async def unpack(self, document: Manifest, config: Config, ready: Ready) -> Digest | None:
        """Unpack every layer and return the chain id of the topmost; None for an image without layers.

        Raises:
            InvalidArgument: the configuration does not name as many layers as the manifest, or a layer is malformed.
            DataLoss: a layer is not the one that the configuration names.
        """
        if len(document.layers) != len(config.diff_ids):
            raise InvalidArgument(
                f"image configuration {document.config.digest} names {len(config.diff_ids)} layers,"
                f" the manifest {len(document.layers)}"
            )
        chain = chain_ids(config.diff_ids)
        for number, (descriptor, diff_id, chain_id) in enumerate(
            zip(document.layers, config.diff_ids, chain, strict=True)
        ):
            parent = str(chain[number - 1]) if number else ""
            await self._layer(
                _Layer(number=number, descriptor=descriptor, diff_id=diff_id, chain_id=chain_id, parent=parent), ready
            )
        if not chain:
            return None
        await self._label(document.config.digest, f"{GC_REF_SNAPSHOT}.{self.name}", str(chain[-1]))
        faults.point("imaged.unpack.referred")
        return chain[-1]

    async def _layer(self, layer: _Layer, ready: Ready) -> None:
        key = f"{context.current().namespace} {self.name} {layer.chain_id}"
        async with self._locks.hold(key, seconds=_SHARED_UNPACK_SECONDS):
            prepared = await self._prepare(layer)
            if prepared is None:
                return
            key, mounts = prepared
            faults.point("imaged.unpack.prepared")
            committed = False
            try:
                await ready(layer.number)
                await self._apply(layer, mounts)
                faults.point("imaged.unpack.applied")
                with context.deadline(COMMIT_SECONDS):
                    await self._snapshotter.commit(str(layer.chain_id), key, self._labels(layer))
                committed = True
                faults.point("imaged.unpack.committed")
            except AlreadyExists:
                # Somebody else, with another client, was faster.
                pass
            finally:
                if not committed:
                    await finish(self._remove(key))
        await self._label(layer.descriptor.digest, UNCOMPRESSED, str(layer.diff_id))
        self._tracker.step("extracted", layer.descriptor)

    async def _prepare(self, layer: _Layer) -> tuple[str, list[Mount]] | None:
        """Key and mounts of a snapshot to extract into; None where the layer is there already.

        A namespaced view that has the layer answers AlreadyExists, and notes that the lease holds it.
        """
        for _ in range(3):
            key = f"extract-{secrets.token_hex(8)} {layer.chain_id}"
            with context.deadline(CALL_SECONDS):
                try:
                    mounts = await self._snapshotter.prepare(key, layer.parent, self._labels(layer))
                except AlreadyExists:
                    if await self._exists(layer.chain_id):
                        return None
                    continue
            if not await self._exists(layer.chain_id):
                return key, mounts
            await finish(self._remove(key))
            return None
        raise AlreadyExists(f"snapshot {layer.chain_id} can't be prepared in {self.name}: it exists and does not")

    async def _exists(self, chain_id: Digest) -> bool:
        try:
            with context.deadline(CALL_SECONDS):
                await self._snapshotter.stat(str(chain_id))
        except NotFound:
            return False
        return True

    async def _apply(self, layer: _Layer, mounts: list[Mount]) -> None:
        self._tracker.step("extracting", layer.descriptor, 0)
        try:
            applied = await self._differ.apply(layer.descriptor, mounts)
        except CarinaError as error:
            raise type(error)(f"layer {layer.descriptor.digest} can't be unpacked: {error}") from error
        if applied.digest != layer.diff_id:
            raise DataLoss(
                f"layer {layer.descriptor.digest} unpacks to {applied.digest},"
                f" the image's configuration says {layer.diff_id}"
            )

    async def _remove(self, key: str) -> None:
        try:
            with context.deadline(CALL_SECONDS):
                await self._snapshotter.remove(key)
        except NotFound:
            pass
        except CarinaError as error:
            # The lease, or its expiry, takes care of it.
            _log.warning("snapshot %s is left over from a failed extraction: %s", key, error)

    async def _label(self, digest: Digest, key: str, value: str) -> None:
        with context.deadline(CALL_SECONDS):
            try:
                await self._store.update(Info(digest=digest, labels={key: value}), fields=[f"labels.{key}"])
            except NotFound:
                pass  # a remote snapshotter needs no content

    def _labels(self, layer: _Layer) -> Mapping[str, str]:
        inherited = {k: v for k, v in layer.descriptor.annotations.items() if k.startswith(SNAPSHOT_PREFIX)}
        return {**inherited, SNAPSHOT_REF: str(layer.chain_id)}
