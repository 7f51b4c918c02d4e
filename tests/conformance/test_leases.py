"""What every lease manager promises, direct and over a socket."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from carina import context
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.leases import Lease, Resource
from support.metadata import Stores, stores

BLOB = Resource(type="content", id="sha256:" + "a" * 64)


@pytest.fixture(params=["local", "socket"])
async def metadata(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, request.param) as opened:
        with context.within(namespace="test"):
            yield opened


async def test_created_is_listed(metadata: Stores) -> None:
    """A created lease has its id, labels and time."""
    lease = await metadata.leases.create(Lease(id="l", labels={"k": "v"}))
    assert (lease.id, lease.labels) == ("l", {"k": "v"})
    assert lease.created_at is not None
    assert abs(lease.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert await metadata.leases.list() == [lease]


async def test_without_id_one_is_made_up(metadata: Stores) -> None:
    """Leases created without an id get different ones."""
    first, second = await metadata.leases.create(Lease(id="")), await metadata.leases.create(Lease(id=""))
    assert first.id
    assert second.id
    assert first.id != second.id


async def test_duplicate_is_refused(metadata: Stores) -> None:
    """A second lease of the same id is refused."""
    await metadata.leases.create(Lease(id="l"))
    with pytest.raises(AlreadyExists, match="'l'"):
        await metadata.leases.create(Lease(id="l"))


async def test_namespaces_are_apart(metadata: Stores) -> None:
    """A lease is not seen from another namespace, and none is seen without one."""
    await metadata.leases.create(Lease(id="l"))
    with context.within(namespace="other"):
        assert await metadata.leases.list() == []
        with pytest.raises(NotFound):
            await metadata.leases.delete("l")
    with context.use(context.Call()), pytest.raises(FailedPrecondition):
        await metadata.leases.list()


async def test_filters(metadata: Stores) -> None:
    """Filters select by id and label."""
    for name in ("a", "b"):
        await metadata.leases.create(Lease(id=name, labels={f"is-{name}": "yes"}))
    assert [lease.id for lease in await metadata.leases.list(["id==b"])] == ["b"]
    assert [lease.id for lease in await metadata.leases.list(['labels."is-a"==yes'])] == ["a"]
    with pytest.raises(InvalidArgument, match="position 2"):
        await metadata.leases.list(["id=b"])


async def test_resources(metadata: Stores) -> None:
    """A lease holds what was added until that is taken away; adding twice is adding once."""
    await metadata.leases.create(Lease(id="l"))
    snapshot = Resource(type="snapshots/overlayfs", id="a key/with anything")
    for resource in (BLOB, snapshot, BLOB):
        await metadata.leases.add_resource("l", resource)
    assert await metadata.leases.resources("l") == [BLOB, snapshot]
    await metadata.leases.delete_resource("l", BLOB)
    await metadata.leases.delete_resource("l", BLOB)
    assert await metadata.leases.resources("l") == [snapshot]
    assert metadata.collector.deletions == 2


@pytest.mark.parametrize("type", ["", "content/x", "snapshots", "snapshots/", "snapshots/a/b", "files"])
async def test_unknown_type_is_refused(metadata: Stores, type: str) -> None:
    """A lease refuses a type of resource that there is not."""
    await metadata.leases.create(Lease(id="l"))
    with pytest.raises(InvalidArgument):
        await metadata.leases.add_resource("l", Resource(type=type, id="x"))


async def test_unknown_lease(metadata: Stores) -> None:
    """Everything about a lease that is not there is NotFound."""
    for attempt in (
        metadata.leases.delete("l"),
        metadata.leases.resources("l"),
        metadata.leases.add_resource("l", BLOB),
        metadata.leases.delete_resource("l", BLOB),
    ):
        with pytest.raises(NotFound, match="'l'"):
            await attempt


async def test_deletion(metadata: Stores) -> None:
    """A deleted lease is gone with what it states; `sync` waits for a collection."""
    await metadata.leases.create(Lease(id="l", labels={"containerd.io/gc.expire": "2030-01-01T00:00:00Z"}))
    await metadata.leases.add_resource("l", BLOB)
    await metadata.leases.delete("l", sync=True)
    assert await metadata.leases.list() == []
    assert metadata.collector.collections == 1
    left = await metadata.records.read(
        lambda c: [c.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("edges", "pins", "lease_resources")]
    )
    assert left == [0, 0, 0]


async def test_flat_lease_states_flat_edges(metadata: Stores) -> None:
    """The label gc.flat makes a lease hold its resources without their references."""
    await metadata.leases.create(Lease(id="flat", labels={"containerd.io/gc.flat": "true"}))
    await metadata.leases.create(Lease(id="deep"))
    for id in ("flat", "deep"):
        await metadata.leases.add_resource(id, BLOB)
    rows = await metadata.records.read(
        lambda c: c.execute("SELECT source, destination, kind FROM edges ORDER BY source").fetchall()
    )
    assert rows == [("leases/deep", f"content/{BLOB.id}", "ref"), ("leases/flat", f"content/{BLOB.id}", "flat")]
