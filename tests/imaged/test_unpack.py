"""Layers into snapshots of a real snapshotter, one after the other and side by side."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from carina.aio.locks import KeyedLock
from carina.content import Info
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import (
    AlreadyExists,
    CarinaError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from carina.images.manifest import Config, Manifest
from carina.layer import Limits
from carina.layer.compression import OCI_LAYER_GZIP
from carina.linux.mount import mounted
from carina.mount import Mount
from carina.platforms import host
from carina.snapshots import Info as Snapshot
from carina.snapshots import Kind
from imaged.differ import LocalDiffer
from imaged.progress import Tracker
from imaged.unpack import Unpacker
from snapshotd.overlay import Overlay
from snapshotd.snapshotter import LocalSnapshotter, Settings, open_snapshotter
from support.layers import Layer, compressed, listing
from support.stores import MemoryContent
from support.volumes import volume

pytestmark = pytest.mark.root

QUICK = Settings(durable=False, sync_remove=True)
LAYERS: Sequence[Layer] = (
    Layer()
    .directory("usr", mode=0o2751, uid=7, gid=8)
    .directory("usr/share", mode=0o1777)
    .file("usr/share/kept", b"kept", mode=0o640, uid=9)
    .file("usr/share/gone", b"gone")
    .directory("old")
    .file("old/hidden", b"hidden"),
    Layer().file("usr/share/new", b"new").file("usr/share/.wh.gone").directory("old").file("old/.wh..wh..opq"),
    Layer().link("usr/share/kept", "usr/share/linked").file("usr/share/deep/er/file", b"file"),
    Layer().file("usr/share/last", b"last").directory("usr/share/deep", mode=0o700),
)


class World:
    """A store, a snapshotter and a differ on one directory."""

    def __init__(self, directory: Path, snapshotter: LocalSnapshotter, limits: Limits | None = None) -> None:
        self.snapshotter = snapshotter
        self.content = MemoryContent()
        self.differ = LocalDiffer(self.content, scratch=directory / "scratch", limits=limits)
        self.locks = KeyedLock()

    def unpacker(self, *capabilities: str) -> Unpacker:
        async def found(name: str) -> Sequence[str]:
            return capabilities

        return Unpacker(
            name="overlayfs",
            snapshotter=self.snapshotter,
            differ=self.differ,
            store=self.content,
            locks=self.locks,
            tracker=Tracker("", None),
            capabilities=found,
            sync_fs=False,
        )

    def image(self, layers: Sequence[bytes], diff_ids: Sequence[Digest] | None = None) -> tuple[Manifest, Config]:
        described = []
        for data in layers:
            packed = compressed(data)
            digest = Digest.of(packed)
            self.content.blobs[digest], self.content.infos[digest] = packed, Info(digest=digest, size=len(packed))
            described.append(Descriptor(media_type=OCI_LAYER_GZIP, digest=digest, size=len(packed)))
        config = Descriptor(media_type="application/vnd.oci.image.config.v1+json", digest=Digest.of(b"{}"), size=2)
        self.content.blobs[config.digest], self.content.infos[config.digest] = b"{}", Info(digest=config.digest, size=2)
        found = tuple(diff_ids or [Digest.of(data) for data in layers])
        return Manifest(
            media_type="application/vnd.oci.image.manifest.v1+json", config=config, layers=tuple(described)
        ), Config(platform=host(), diff_ids=found)

    async def keys(self) -> list[tuple[str, Kind]]:
        return [(info.name, info.kind) async for info in self.snapshotter.walk()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_snapshotter(tmp_path / "snapshots", Overlay(), QUICK) as snapshotter:
        yield World(tmp_path, snapshotter)


async def _ready(number: int) -> None:
    pass


async def _tree(world: World, top: Digest | None, directory: Path) -> Mapping[str, object]:
    mounts = await world.snapshotter.view("look", str(top))

    def look() -> Mapping[str, object]:
        with mounted(mounts, parent=directory) as seen:
            return listing(seen)

    return await asyncio.to_thread(look)


async def test_side_by_side_gives_the_same_trees(tmp_path: Path) -> None:
    """Whiteouts, opaque marks, links into lower layers and directories left out mean what they mean in order."""
    trees = []
    for number, capabilities in enumerate([(), ("rebase",)]):
        place = tmp_path / str(number)
        place.mkdir()
        async with open_snapshotter(place / "snapshots", Overlay(), QUICK) as snapshotter:
            world = World(place, snapshotter)
            image = world.image([layer.bytes() for layer in LAYERS])
            top = await world.unpacker(*capabilities).unpack(*image, _ready)
            assert {kind for _, kind in await world.keys()} == {Kind.COMMITTED}
            assert len(await world.keys()) == len(LAYERS)
            trees.append(await _tree(world, top, place))
    assert trees[0] == trees[1]
    assert trees[0]["usr"][:3] == ("0o42751", 7, 8)  # type: ignore[index]
    assert trees[0]["usr/share/linked"][5] == b"kept"  # type: ignore[index]
    assert "old/hidden" not in trees[0]
    assert "usr/share/gone" not in trees[0]


async def test_layers_are_applied_before_those_below_are_there(world: World) -> None:
    """Side by side, the bottom layer is the last to arrive, and all others have been applied by then."""
    image = world.image([layer.bytes() for layer in LAYERS])
    arrived = asyncio.Event()

    async def ready(number: int) -> None:
        if number == 0:
            await arrived.wait()

    async with asyncio.TaskGroup() as group:
        unpacking = group.create_task(world.unpacker("rebase").unpack(*image, ready), name="unpack")
        async with asyncio.timeout(30):
            while not any(f"/{number}/fs/usr/share/last" in path for number in range(9) for path in _files(world)):
                await asyncio.sleep(0.01)
        assert {kind for _, kind in await world.keys()} == {Kind.ACTIVE}
        arrived.set()
        await unpacking
    assert {kind for _, kind in await world.keys()} == {Kind.COMMITTED}


def _files(world: World) -> list[str]:
    root = world.snapshotter._directories.place(1).parent
    return [os.path.join(directory, name) for directory, _, names in os.walk(root) for name in names]


async def test_two_unpack_the_same_image_once(world: World) -> None:
    """The same layers wanted twice at once are applied once, and both get the top."""
    image = world.image([Layer().directory("a").bytes(), Layer().directory("b").bytes()])
    unpacker = world.unpacker("rebase")
    first, second = await asyncio.gather(unpacker.unpack(*image, _ready), unpacker.unpack(*image, _ready))
    assert first == second
    assert len(await world.keys()) == 2


@pytest.mark.parametrize("capabilities", [(), ("rebase",)])
@pytest.mark.parametrize("bad", range(3))
async def test_a_wrong_diff_id_leaves_nothing_of_its_layer(
    world: World, capabilities: tuple[str, ...], bad: int
) -> None:
    """The layer is named with both digests, and neither it nor what stands on it is there."""
    layers = [Layer().directory(name).bytes() for name in "abc"]
    diff_ids = [Digest.of(layer) for layer in layers]
    diff_ids[bad] = Digest.of(b"another")
    with pytest.raises((DataLoss, BaseExceptionGroup)) as raised:
        await world.unpacker(*capabilities).unpack(*world.image(layers, diff_ids), _ready)
    assert f"unpacks to {Digest.of(layers[bad])}" in str(_leaf(raised.value))
    kinds = [kind for _, kind in await world.keys()]
    assert kinds.count(Kind.ACTIVE) == 0
    assert len(kinds) <= bad


@pytest.mark.parametrize("capabilities", [(), ("rebase",)])
async def test_a_damaged_layer_leaves_nothing(world: World, capabilities: tuple[str, ...]) -> None:
    """One sentence with the layer's digest, and no snapshot of it."""
    document, config = world.image([Layer().directory("a").bytes(), b"x" * 1024])
    with pytest.raises((InvalidArgument, BaseExceptionGroup)) as raised:
        await world.unpacker(*capabilities).unpack(document, config, _ready)
    error = _leaf(raised.value)
    assert isinstance(error, InvalidArgument)
    assert str(error).startswith(f"layer {document.layers[1].digest} can't be unpacked: the layer's archive")
    assert Kind.ACTIVE not in {kind for _, kind in await world.keys()}


async def test_cancelling_leaves_no_snapshot(world: World) -> None:
    """Whatever is under way when nobody waits any more is removed."""
    image = world.image([Layer().directory(name).bytes() for name in "abcd"])
    started = asyncio.Event()

    async def ready(number: int) -> None:
        started.set()
        if number == 3:
            await asyncio.Event().wait()

    task = asyncio.create_task(world.unpacker("rebase").unpack(*image, ready), name="unpack")
    async with asyncio.timeout(30):
        await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Kind.ACTIVE not in {kind for _, kind in await world.keys()}


async def test_a_limit_of_the_configuration_ends_a_bomb(tmp_path: Path) -> None:
    """The limit is named, and nothing is left."""
    async with open_snapshotter(tmp_path / "snapshots", Overlay(), QUICK) as snapshotter:
        world = World(tmp_path, snapshotter, Limits(bytes=1 << 20))
        image = world.image([Layer().file("bomb", bytes(8 << 20)).bytes()])
        with pytest.raises(ResourceExhausted, match="larger than 1048576 bytes"):
            await world.unpacker("rebase").unpack(*image, _ready)
        assert await world.keys() == []


async def test_a_full_inode_table_leaves_nothing(tmp_path: Path) -> None:
    """The layers before it stay, the one that there was no room for is gone, and so is its directory."""
    many = Layer()
    for number in range(200):
        many.file(f"f{number}")
    with volume(tmp_path, "ext4", megabytes=16, options=("-N", "128")) as place:
        async with open_snapshotter(place / "snapshots", Overlay(), QUICK) as snapshotter:
            world = World(tmp_path, snapshotter)
            with pytest.raises(ResourceExhausted, match="no space left"):
                await world.unpacker().unpack(*world.image([Layer().file("a").bytes(), many.bytes()]), _ready)
            assert [kind for _, kind in await world.keys()] == [Kind.COMMITTED]
            assert os.listdir(place / "snapshots/snapshots") == ["1"]


class _Meddled(LocalSnapshotter):
    """A snapshotter that somebody else works on as well."""

    taken = 0
    """Keys to be prepared that are in use."""
    lost = ""
    """A parent that is removed before somebody prepares on it."""
    looked: asyncio.Event | None = None
    """Set when somebody looks for a snapshot, who then waits for ever."""

    async def stat(self, key: str) -> Snapshot:
        if self.looked is not None:
            self.looked.set()
            await asyncio.Event().wait()
        return await super().stat(key)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        if self.taken:
            self.taken -= 1
            raise AlreadyExists(f"snapshot {key}: already exists")
        if parent and parent == self.lost:
            await self.remove(parent)
        return await super().prepare(key, parent, labels)


def _meddled(world: World) -> _Meddled:
    own = world.snapshotter
    meddled = _Meddled(
        records=own._records,
        directories=own._directories,
        driver=own._driver,
        settings=own._settings,
        lost=frozenset(),
    )
    world.snapshotter = meddled
    return meddled


async def test_a_parent_that_went_meanwhile_is_named(world: World) -> None:
    """Nothing is unpacked on it, and nothing stays."""
    image = world.image([Layer().directory(name).bytes() for name in "ab"])
    lost = str(image[1].diff_ids[0])
    _meddled(world).lost = lost
    with pytest.raises(NotFound, match=f"parent snapshot {lost}: not found"):
        await world.unpacker().unpack(*image, _ready)
    assert await world.keys() == []


@pytest.mark.parametrize("capabilities", [(), ("rebase",)])
async def test_a_parent_that_is_not_committed_is_named(world: World, capabilities: tuple[str, ...]) -> None:
    """A client may prepare a snapshot under the name of a layer: it is not taken for the layer's."""
    image = world.image([Layer().directory(name).bytes() for name in "ab"])
    name = str(image[1].diff_ids[0])
    await world.snapshotter.prepare(name)
    with pytest.raises((FailedPrecondition, InvalidArgument, BaseExceptionGroup)) as raised:
        await world.unpacker(*capabilities).unpack(*image, _ready)
    assert f"{name} is not committed" in str(_leaf(raised.value))
    assert await world.keys() == [(name, Kind.ACTIVE)]


async def test_cancelling_between_two_calls_leaves_no_snapshot(world: World) -> None:
    """A snapshot that was just prepared goes as well."""
    meddled = _meddled(world)
    meddled.looked = asyncio.Event()
    image = world.image([Layer().directory("a").bytes()])
    task = asyncio.create_task(world.unpacker().unpack(*image, _ready), name="unpack")
    async with asyncio.timeout(30):
        await meddled.looked.wait()
    assert [kind for _, kind in await world.keys()] == [Kind.ACTIVE]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await world.keys() == []


async def test_a_key_in_use_is_not_taken_over(world: World) -> None:
    """Another key is tried, a few times; then the layer is named."""
    image = world.image([Layer().directory("a").bytes()])
    meddled = _meddled(world)
    meddled.taken = 2
    await world.unpacker().unpack(*image, _ready)
    assert await world.keys() == [(str(image[1].diff_ids[0]), Kind.COMMITTED)]
    other = world.image([Layer().directory("b").bytes()])
    meddled.taken = 3
    with pytest.raises(AlreadyExists, match=f"snapshot {other[1].diff_ids[0]} can't be prepared"):
        await world.unpacker().unpack(*other, _ready)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = next(
            (one for one in error.exceptions if isinstance(one, CarinaError | BaseExceptionGroup)), error.exceptions[0]
        )
    return error
