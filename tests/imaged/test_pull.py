"""Pulling from a real registry into stores in memory."""

import asyncio

import pytest

from carina.digest import Digest
from carina.errors import DataLoss, InvalidArgument, NotFound, Unavailable
from carina.images.manifest import chain_ids
from carina.platforms import Platform
from carina.transfer import Progress, Store, Unpack
from support.image import build, busybox_tar, layer, tar
from support.pulls import World
from support.registry import Registry
from support.stores import MemoryContent

HOST = Platform(os="linux", architecture="amd64")


async def test_a_pull_records_content_snapshots_and_image(world: World, registry: Registry) -> None:
    """After a pull the image record, its whole tree with labels, and one snapshot per layer are there."""
    image = build(platforms=("linux/amd64", "linux/arm64"))
    reference = registry.push("library/full", "1", image)
    seen: list[Progress] = []

    await world.transfers().pull(
        reference, platforms=[HOST], unpack=[(HOST, "native")], labels={"a": "b"}, on_progress=seen.append
    )

    record = world.images.images[reference]
    assert (record.target.digest, record.labels) == (image.digest, {"a": "b"})
    assert image.config is not None
    index, config = world.content.infos[Digest(image.digest)], world.content.infos[Digest(image.config.digest)]
    assert index.labels["containerd.io/gc.ref.content.m.0"] == image.manifests[0].digest
    assert index.labels["containerd.io/gc.ref.content.m.1"] == image.manifests[1].digest
    assert index.labels["containerd.io/distribution.source.localhost"] == "library/full"
    chain = chain_ids([Digest(one.diff_id) for one in image.layers])
    assert config.labels["containerd.io/gc.ref.snapshot.native"] == chain[-1]
    manifest = world.content.infos[Digest(image.manifests[0].digest)].labels
    assert manifest["containerd.io/gc.ref.content.config"] == image.config.digest
    for number, one in enumerate(image.layers):
        assert manifest[f"containerd.io/gc.ref.content.l.{number}"] == one.blob.digest
        assert world.content.infos[Digest(one.blob.digest)].labels["containerd.io/uncompressed"] == one.diff_id
    assert set(world.snapshotter.snapshots) == set(chain)
    assert Digest(image.manifests[1].digest) not in world.content.blobs
    assert world.leases.leases == {}
    assert len(world.leases.made) == 1
    events = [one.event for one in seen]
    assert events[0].startswith("Resolving from")
    assert events[-1].startswith("Completed pull from")
    assert {"waiting", "complete", "extracting", "extracted", "saved"} <= set(events)


async def test_a_second_pull_moves_and_unpacks_nothing(world: World, registry: Registry) -> None:
    """What is there already is neither fetched nor applied again."""
    reference = registry.push("library/twice", "1", build())
    transfers = world.transfers()
    await transfers.pull(reference, platforms=[HOST], unpack=[(HOST, "")])
    applied = list(world.differ.applied)
    seen: list[Progress] = []

    await transfers.pull(reference, platforms=[HOST], unpack=[(HOST, "")], on_progress=seen.append)

    assert world.differ.applied == applied
    assert "downloading" not in {one.event for one in seen}
    assert "already exists" in {one.event for one in seen}


async def test_a_layer_wanted_twice_is_unpacked_once(world: World, registry: Registry) -> None:
    """Two pulls at once of images with a common layer fetch and apply it once."""
    base = layer(busybox_tar())
    one = registry.push("library/one", "1", build(layers=[base, layer(tar({"one": b"1"}))]))
    two = registry.push("library/two", "1", build(layers=[base, layer(tar({"two": b"2"}))]))
    transfers = world.transfers()

    await asyncio.gather(*(transfers.pull(x, platforms=[HOST], unpack=[(HOST, "native")]) for x in (one, two)))

    assert len(world.differ.applied) == 3 == len(set(world.differ.applied))


async def test_docker_images_are_pulled_too(world: World, registry: Registry) -> None:
    """Docker's media types are as good as OCI's."""
    image = build(
        docker=True, layers=[layer(busybox_tar(), media_type="application/vnd.docker.image.rootfs.diff.tar.gzip")]
    )
    reference = registry.push("library/docker", "1", image)

    await world.transfers().pull(reference, platforms=[HOST], unpack=[(HOST, "native")])

    assert len(world.snapshotter.snapshots) == 1


async def test_a_pull_by_digest_gets_that_digest(world: World, registry: Registry) -> None:
    """A reference with a digest names content, whatever the tag says now."""
    image = build()
    registry.push("library/pinned", "1", image)
    registry.push("library/pinned", "1", build(layers=[layer(tar({"newer": b""}))]))

    await world.transfers().pull(f"{registry.host}/library/pinned@{image.digest}", platforms=[HOST])

    assert [one.target.digest for one in world.images.images.values()] == [image.digest]


async def test_a_missing_tag_platform_or_registry_is_named(world: World, registry: Registry) -> None:
    """Each thing that isn't there has its own sentence."""
    reference = registry.push("library/named", "1", build(platforms=("linux/s390x",)))
    transfers = world.transfers()

    with pytest.raises(NotFound, match="has no tag 2 in repository library/named"):
        await transfers.pull(f"{registry.host}/library/named:2")
    with pytest.raises(NotFound, match="no image for platform linux/amd64: the index has linux/s390x"):
        await transfers.pull(reference, platforms=[HOST])
    with pytest.raises(Unavailable, match="registry localhost:1 can't be reached"):
        await transfers.pull("localhost:1/library/named:1")
    with pytest.raises(InvalidArgument, match="not complete"):
        await transfers.pull("busybox")
    assert world.images.images == {}
    assert world.leases.leases == {}


async def test_a_layer_other_than_the_configuration_says_is_refused(world: World, registry: Registry) -> None:
    """A wrong diff id leaves no snapshot and no image record behind."""
    good, other = layer(tar({"a": b"1"})), layer(tar({"a": b"2"}))
    image = build(layers=[type(good)(blob=good.blob, diff_id=other.diff_id)])
    reference = registry.push("library/liar", "1", image)

    with pytest.raises(DataLoss, match="unpacks to"):
        await world.transfers().pull(reference, platforms=[HOST], unpack=[(HOST, "native")])

    assert world.snapshotter.snapshots == {}
    assert world.images.images == {}


async def test_a_tag_is_a_further_name(world: World, registry: Registry) -> None:
    """Tagging records the same target under another name, and a missing source is NotFound."""
    reference = registry.push("library/tagged", "1", build())
    transfers = world.transfers()
    await transfers.fetch(reference, Store(name=reference, platforms=(HOST,), unpacks=(Unpack(platform=HOST),)))

    await transfers.tag(reference, Store(name="example.test/other:1"))

    assert world.images.images["example.test/other:1"].target == world.images.images[reference].target
    with pytest.raises(NotFound):
        await transfers.tag("nowhere", Store(name="x"))


async def test_an_interrupted_download_goes_on_where_it_was(world: World, registry: Registry) -> None:
    """Bytes that an earlier pull left in the ingest are not fetched again; wrong ones are thrown away."""
    image = build()
    reference = registry.push("library/resumed", "1", image)
    content: MemoryContent = world.content
    first, second = (one.blob for one in image.layers)
    content.ingests[f"layer-{first.digest}"] = bytearray(first.data[: first.size // 2])
    content.ingests[f"layer-{second.digest}"] = bytearray(b"x" * (second.size // 2))

    await world.transfers().pull(reference, platforms=[HOST], unpack=[(HOST, "native")])

    assert content.blobs[Digest(first.digest)] == first.data
    assert content.blobs[Digest(second.digest)] == second.data
    assert content.ingests == {}
