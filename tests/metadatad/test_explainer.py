"""Plan, why and usage as clients get them: over a socket, on real records, with a real snapshotter."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from carina import context
from carina.content import Info
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.gc import Chain, Doomed, Hop, ImageUsage, Release, Root
from carina.images import Image
from carina.leases import Lease, Resource
from conformance.content_suite import put
from support.content import directory
from support.views import View, view

LAYER = "containerd.io/gc.ref.content.l.0"
CONFIG = "containerd.io/gc.ref.content.config"
SNAPSHOT = "containerd.io/gc.ref.snapshot.native"


@pytest.fixture
async def service() -> AsyncIterator[View]:
    with directory() as path:
        async with view(path) as service:
            with context.within(namespace="one"):
                yield service


async def image(service: View, name: str) -> Digest:
    """An image of a manifest, a layer that every image shares, a configuration of its own, and a snapshot of that."""
    await service.leases.create(Lease(id="pull"))
    with context.within(lease="pull"):
        await service.snapshotter.prepare(f"{name}-active")
        await service.snapshotter.commit(f"{name}-top", f"{name}-active")
        config = await put(service.content, f"config of {name}".encode(), {SNAPSHOT: f"{name}-top"})
        layer = Digest.of(b"layer")
        try:
            await put(service.content, b"layer")
        except AlreadyExists:
            pass
        manifest = await put(service.content, f"manifest of {name}".encode(), {LAYER: layer, CONFIG: config})
        target = Descriptor(media_type="application/x", digest=manifest, size=len(f"manifest of {name}"))
        await service.images.create(Image(name=name, target=target))
    await service.leases.delete("pull")
    return manifest


async def test_plan_is_what_the_deletion_then_frees(service: View) -> None:
    """What `if_removed` lists goes with the image, the same bytes, and planning itself touches nothing."""
    await image(service, "a")
    await image(service, "b")
    await service.collector.run(sync=True)
    stored, trees = await service.stored(), await service.trees_there()
    planned = await service.explainer.plan(if_removed="a")

    assert await service.explainer.plan() == []
    assert (await service.stored(), await service.trees_there()) == (stored, trees)
    assert {(d.type, d.id, d.bytes) for d in planned} == {
        ("content", Digest.of(b"manifest of a"), len(b"manifest of a")),
        ("content", Digest.of(b"config of a"), len(b"config of a")),
        ("snapshot/native", "a-top", 0),
    }
    await service.images.delete("a")
    assert await service.explainer.plan() == planned
    result = await service.collector.run(sync=True)
    assert {r.type: (r.objects, r.bytes) for r in result.removed} == {
        "content": (2, sum(d.bytes for d in planned)),
        "snapshot/native": (1, 0),
    }
    with pytest.raises(NotFound, match="image 'a' does not exist"):
        await service.explainer.plan(if_removed="a")


async def test_plan_of_all_namespaces_and_of_images(service: View) -> None:
    """A blob that another namespace keeps is listed and brings no bytes back; images are planned in their namespace."""
    await image(service, "a")
    with context.within(namespace="two"):
        await image(service, "b")
        await service.images.delete("b")
    planned = await service.explainer.plan()

    layer = Doomed(namespace="two", type="content", id=Digest.of(b"layer"), bytes=0)
    assert layer in planned
    assert {d.namespace for d in planned} == {"two"}
    assert [d.bytes for d in planned if d.id == Digest.of(b"manifest of b")] == [len(b"manifest of b")]
    size = len(b"manifest of aconfig of alayer")
    assert await service.explainer.plan_images() == [Release(image="a", bytes=size, content=3, snapshots=1)]


async def test_why_names_root_labels_and_records(service: View) -> None:
    """Every hop says which label or which part of a record makes it."""
    manifest = await image(service, "a")
    await service.leases.create(Lease(id="l", labels={"containerd.io/gc.flat": "true"}))
    await service.leases.add_resource("l", Resource(type="snapshots/native", id="a-top"))
    found = await service.explainer.why("snapshot/native", "a-top")

    config = Digest.of(b"config of a")
    assert found.chains == (
        Chain(
            root=Root(kind="lease", type="lease", id="l"),
            hops=(Hop(type="snapshot/native", id="a-top", by="resource (flat)"),),
        ),
        Chain(
            root=Root(kind="image", type="image", id="a"),
            hops=(
                Hop(type="content", id=manifest, by="target"),
                Hop(type="content", id=config, by=CONFIG),
                Hop(type="snapshot/native", id="a-top", by=SNAPSHOT),
            ),
        ),
    )
    one = await service.explainer.why("snapshot/native", "a-top", limit=1)
    assert (one.chains, one.more) == (found.chains[:1], 1)


async def test_why_of_roots_by_label_and_of_ingests(service: View) -> None:
    """A label that makes a root is named, with its end; so is the lease that holds an ingest, or its own end."""
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    labelled = await put(service.content, b"root", {"containerd.io/gc.root": "yes"})
    expiring = await put(service.content, b"expiring", {"containerd.io/gc.expire": until.isoformat()})
    by_label = Root(kind="label", type="content", id=labelled, by="containerd.io/gc.root")
    assert (await service.explainer.why("content", labelled)).chains == (Chain(root=by_label),)
    ends = Root(kind="label", type="content", id=expiring, by="containerd.io/gc.expire", until=until)
    assert (await service.explainer.why("content", expiring)).chains == (Chain(root=ends),)

    await service.leases.create(Lease(id="l"))
    with context.within(lease="l"):
        held = await service.content.writer("held")
    alone = await service.content.writer("alone")
    chains = (await service.explainer.why("ingest", "held")).chains
    assert chains == (
        Chain(root=Root(kind="lease", type="lease", id="l"), hops=(Hop(type="ingest", id="held", by="resource"),)),
    )
    root = (await service.explainer.why("ingest", "alone")).chains[0].root
    assert (root.kind, root.id) == ("ingest", "alone")
    assert root.until is not None
    await held.close()
    await alone.close()


async def test_why_of_garbage_says_since_when(service: View) -> None:
    """What nothing keeps is collectable since it was made, or since what kept it was lost."""

    async def since(data: bytes) -> datetime:
        found = await service.explainer.why("content", Digest.of(data))
        assert found.chains == ()
        assert found.since is not None
        return found.since

    async def between(data: bytes, begun: datetime) -> bool:
        return begun - timedelta(milliseconds=1) <= await since(data) <= datetime.now(UTC)

    begun = datetime.now(UTC)
    await put(service.content, b"data")
    assert await between(b"data", begun)
    manifest = await image(service, "a")
    await service.collector.run(sync=True)
    begun = datetime.now(UTC)
    await service.images.delete("a")
    assert await between(b"layer", begun)
    assert await since(b"layer") == (await service.explainer.why("content", manifest)).since


async def test_why_of_what_expired_says_when(service: View) -> None:
    """What expired, and what only that kept, is collectable since that moment."""
    await put(service.content, b"below")
    above = await put(service.content, b"above", {LAYER: Digest.of(b"below")})
    for seconds in (0.3, 3, 30):  # on a slow machine it expires before anybody has looked
        ended = datetime.now(UTC) + timedelta(seconds=seconds)
        labels = {"containerd.io/gc.expire": ended.isoformat(), LAYER: Digest.of(b"below")}
        await service.content.update(Info(digest=above, labels=labels), ["labels"])
        before = await service.explainer.why("content", Digest.of(b"below"))
        if before.chains:
            break
    assert before.chains[0].root.by == "containerd.io/gc.expire"
    while (after := await service.explainer.why("content", Digest.of(b"below"))).chains:
        await asyncio.sleep(0.01)
    assert after.since == ended


async def test_why_refuses_what_is_not_there(service: View) -> None:
    """Unknown objects, those of other namespaces, and unknown types are refused in a sentence."""
    with context.within(namespace="two"):
        digest = await put(service.content, b"data")
    for type, id in (("content", digest), ("ingest", "none"), ("snapshot/native", "none"), ("snapshot/none", "none")):
        with pytest.raises(NotFound, match="does not exist"):
            await service.explainer.why(type, id)
    with pytest.raises(InvalidArgument):
        await service.explainer.why("blob", digest)


async def test_usage_of_images(service: View) -> None:
    """What an image takes, alone and shared; a snapshotter that is not there costs only the sizes that it knows."""
    await image(service, "a")
    await image(service, "b")
    own = len(b"manifest of aconfig of a")
    found = await service.explainer.usage()
    recorded = {name: (await service.snapshotter.usage(f"{name}-top")).size for name in "ab"}

    assert found == [
        ImageUsage(
            image=name, content=own + 5, unique=own, shared=5, snapshots=1, snapshot_bytes=recorded[name], unmeasured=0
        )
        for name in "ab"
    ]
    await service.records.write(
        lambda t: t.connection.execute("UPDATE snapshots SET backend_key = 'lost' WHERE key = 'a-top'")
    )
    assert [(u.snapshot_bytes, u.unmeasured) for u in await service.explainer.usage()] == [(0, 1), (recorded["b"], 0)]
