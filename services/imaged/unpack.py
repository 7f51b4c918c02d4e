"""Layers become snapshots: one committed snapshot per layer, named by its chain id, each on top of the one below.

    prepare `extract-<random> <chain id>`  →  apply  →  diff id as the configuration says?  →  commit as <chain id>

Where the snapshotter has the capability `rebase`, layers are prepared without parent and applied side by side; each
names its parent when it is committed, after that one. Directories that a layer leaves out then get what they have
below it. A layer with a hard link to a file below it is applied once more, on its parent.

What fails on the way removes its extraction snapshot. A layer that is unpacked already, or that the snapshotter
brings itself (a remote one answers AlreadyExists), is not applied again.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from carina import context
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.content import ContentStore, Info
from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from carina.images.manifest import Config, Manifest, chain_ids
from carina.labels import GC_REF_SNAPSHOT, SNAPSHOT_PREFIX, SNAPSHOT_REF, UNCOMPRESSED
from carina.layer import IMPLIED
from carina.layer.process import inherit
from carina.mount import Mount
from carina.snapshots import Snapshotter
from imaged.ingest import CALL_SECONDS, COMMIT_SECONDS
from imaged.phases import phase
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
        capabilities: Callable[[str], Awaitable[Sequence[str]]] | None = None,
        sync_fs: bool = True,
    ) -> None:
        self.name = name
        self._capabilities = capabilities
        self._sync_fs = sync_fs
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
        layers = _layers(document, config)
        if not layers:
            return None
        if len(layers) > 1 and self._capabilities is not None and "rebase" in await self._capabilities(self.name):
            await self._side_by_side(layers, ready)
        else:
            for layer in layers:
                await self._layer(layer, ready)
        top = layers[-1].chain_id
        await self._label(document.config.digest, f"{GC_REF_SNAPSHOT}.{self.name}", str(top))
        return top

    async def _side_by_side(self, layers: Sequence[_Layer], ready: Ready) -> None:
        async with asyncio.TaskGroup() as group:
            below: asyncio.Task[None] | None = None
            for layer in layers:
                below = group.create_task(self._layer(layer, ready, below), name=f"unpack {layer.descriptor.digest}")

    async def _layer(self, layer: _Layer, ready: Ready, below: asyncio.Task[None] | None = None) -> None:
        """Unpack one. With `below`, begin before that is done: on no parent.

        Whoever holds the lock of a layer waits for none but layers further down, so that no two wait for each other.
        """
        lock = f"{context.current().namespace} {self.name} {layer.chain_id}"
        async with self._locks.hold(lock, seconds=_SHARED_UNPACK_SECONDS):
            if below is None or not await self._extract(layer, ready, below):
                await self._extract(layer, ready)
        await self._label(layer.descriptor.digest, UNCOMPRESSED, str(layer.diff_id))
        self._tracker.step("extracted", layer.descriptor)

    async def _extract(self, layer: _Layer, ready: Ready, below: asyncio.Task[None] | None = None) -> bool:
        """Have the layer as a committed snapshot. False if that takes its parent."""
        parent = "" if below is not None else layer.parent
        prepared = await self._prepare(layer, parent)
        if prepared is None:
            if below is not None:
                await asyncio.shield(below)
            return True
        key, mounts = prepared
        committed = False
        try:
            await ready(layer.number)
            if parent != layer.parent:
                mounts = overlay_form(mounts)
            implied = await self._apply(layer, mounts)
            if below is not None:
                await asyncio.shield(below)
                if implied is None:
                    return False
                if implied:
                    await self._inherit(layer, mounts, implied)
            rebased = layer.parent if below is not None else ""
            with context.deadline(COMMIT_SECONDS):
                await self._snapshotter.commit(str(layer.chain_id), key, self._labels(layer), rebased)
            committed = True
        except AlreadyExists:
            # Somebody else, with another client, was faster.
            pass
        finally:
            if not committed:
                await finish(self._remove(key))
        return True

    async def _prepare(self, layer: _Layer, parent: str) -> tuple[str, list[Mount]] | None:
        """Key and mounts of a snapshot to extract into; None where the layer is there already.

        A namespaced view that has the layer answers AlreadyExists, and notes that the lease holds it.
        """
        for _ in range(3):
            key = f"extract-{secrets.token_hex(8)} {layer.chain_id}"
            try:
                with context.deadline(CALL_SECONDS):
                    mounts = await self._snapshotter.prepare(key, parent, self._labels(layer))
                there = await self._exists(layer.chain_id)
            except AlreadyExists:
                if await self._exists(layer.chain_id):
                    return None
                continue
            except BaseException:
                # It may have been made all the same, when nobody waited for the answer any more.
                await finish(self._remove(key))
                raise
            if not there:
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

    async def _apply(self, layer: _Layer, mounts: Sequence[Mount]) -> Sequence[str] | None:
        """The directories that it leaves to the layers below; None if it needs those while it is applied."""
        self._tracker.step("extracting", layer.descriptor, 0)
        try:
            with phase("unpack", digest=str(layer.descriptor.digest), snapshotter=self.name):
                applied = await self._differ.apply(layer.descriptor, mounts, sync_fs=self._sync_fs)
        except CarinaError as error:
            if isinstance(error, FailedPrecondition) and layer.parent and _is_alone(mounts):
                return None
            raise type(error)(f"layer {layer.descriptor.digest} can't be unpacked: {error}") from error
        if applied.digest != layer.diff_id:
            raise DataLoss(
                f"layer {layer.descriptor.digest} unpacks to {applied.digest},"
                f" the image's configuration says {layer.diff_id}"
            )
        implied: Sequence[str] = json.loads(applied.annotations.get(IMPLIED, "[]"))
        return implied

    async def _inherit(self, layer: _Layer, mounts: Sequence[Mount], paths: Sequence[str]) -> None:
        key = f"inherit-{secrets.token_hex(8)} {layer.chain_id}"
        with context.deadline(CALL_SECONDS):
            below = await self._snapshotter.view(key, layer.parent)
        try:
            await inherit(paths, mounts, below)
        finally:
            await finish(self._remove(key))

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


def _layers(document: Manifest, config: Config) -> list[_Layer]:
    chain = chain_ids(config.diff_ids)
    return [
        _Layer(
            number=number,
            descriptor=descriptor,
            diff_id=diff_id,
            chain_id=chain_id,
            parent=str(chain[number - 1]) if number else "",
        )
        for number, (descriptor, diff_id, chain_id) in enumerate(
            zip(document.layers, config.diff_ids, chain, strict=True)
        )
    ]


def overlay_form(mounts: list[Mount]) -> list[Mount]:
    """The bind mount of a snapshot without parent, as an overlay's upper directory.

    A layer that is to be put on others must keep its whiteouts, which a plain tree has no use for.
    """
    if len(mounts) != 1 or mounts[0].type != "bind":
        return mounts
    return [Mount(type="overlay", source="overlay", options=(f"upperdir={mounts[0].source}",))]


def _is_alone(mounts: Sequence[Mount]) -> bool:
    return len(mounts) == 1 and not any(option.startswith("lowerdir") for option in mounts[0].options)
