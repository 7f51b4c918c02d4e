"""What every lease manager promises."""

from datetime import UTC, datetime, timedelta

import pytest

from carina import context
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from carina.leases import Lease, Resource
from conformance.suite import Suite
from support.metadata import Services

BLOB = Resource(type="content", id=Digest.of(b"blob"))
INGEST = Resource(type="ingests", id="an ingest/with anything")
IMAGE = Resource(type="images", id="docker.io/library/busybox:latest")
SNAPSHOT = Resource(type="snapshots/overlayfs", id="a key/with anything")
OTHER_SNAPSHOT = Resource(type="snapshots/native", id="a key/with anything")


def ordered(resources: object) -> list[tuple[str, str]]:
    return sorted((one.type, one.id) for one in resources)  # type: ignore[attr-defined]  # of any sequence


CANNOT_BE = [
    Resource(type="content/x", id=BLOB.id),
    Resource(type="ingests/x", id="x"),
    Resource(type="snapshots", id="x"),
    Resource(type="snapshots/a/b", id="x"),
    Resource(type="content", id="no digest"),
    Resource(type="content", id="sha256:abc"),
    Resource(type="content", id=""),
]


UNKNOWN_TYPES = ["leases", "containers", "files", ""]


class LeaseSuite(Suite):
    async def test_created_is_listed(self, metadata: Services) -> None:
        """A created lease has its id, labels and time."""
        lease = await metadata.leases.create(Lease(id="l", labels={"k": "v"}))
        assert (lease.id, lease.labels) == ("l", {"k": "v"})
        assert lease.created_at is not None
        assert abs(lease.created_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert await metadata.leases.list() == [lease]

    async def test_without_id_one_is_made_up(self, metadata: Services) -> None:
        """Leases created without an id get different ones."""
        first, second = await metadata.leases.create(Lease(id="")), await metadata.leases.create(Lease(id=""))
        assert first.id
        assert second.id
        assert first.id != second.id
        assert {lease.id for lease in await metadata.leases.list()} == {first.id, second.id}

    async def test_duplicate_is_refused(self, metadata: Services) -> None:
        """A second lease of the same id is refused, and the first one keeps its labels."""
        await metadata.leases.create(Lease(id="twice", labels={"k": "v"}))
        with pytest.raises(AlreadyExists, match="twice"):
            await metadata.leases.create(Lease(id="twice"))
        assert [(lease.id, lease.labels) for lease in await metadata.leases.list()] == [("twice", {"k": "v"})]

    async def test_namespaces_are_apart(self, metadata: Services) -> None:
        """A lease is not seen from another namespace, and none is seen without one."""
        await metadata.leases.create(Lease(id="l"))
        with context.within(namespace=f"{context.namespace()}-other"):
            assert await metadata.leases.list() == []
            with pytest.raises(NotFound):
                await metadata.leases.delete("l")
            with pytest.raises(NotFound):
                await metadata.leases.add_resource("l", BLOB)
        with context.use(context.Call()), pytest.raises(FailedPrecondition, match="namespace"):
            await metadata.leases.list()

    async def test_filters(self, metadata: Services) -> None:
        """Filters select by id and label; a label without value is none; several filters add up."""
        await metadata.leases.create(Lease(id="1", labels={"one": "x", "three": "z"}))
        await metadata.leases.create(Lease(id="2", labels={"one": "x", "two": "", "three": "z"}))
        await metadata.leases.create(Lease(id="3", labels={"one": "y", "two": "w"}))
        expected = {
            (): "123",
            ("id==1",): "1",
            ("id==1", "id==2"): "12",
            ("labels.one",): "123",
            ("labels.one==x",): "12",
            ("labels.one==y",): "3",
            ("labels.two",): "3",
            ("labels.two", "labels.three"): "123",
            ("id~=^[12]$,labels.one!=y",): "12",
        }
        found = {filters: "".join(lease.id for lease in await metadata.leases.list(filters)) for filters in expected}
        assert found == expected
        with pytest.raises(InvalidArgument):
            await metadata.leases.list(["id=1"])

    async def test_resources(self, metadata: Services) -> None:
        """A lease holds what was added until that is taken away; adding twice is adding once."""
        await metadata.leases.create(Lease(id="l"))
        assert await metadata.leases.resources("l") == []
        for resource in (BLOB, INGEST, SNAPSHOT, OTHER_SNAPSHOT, BLOB, INGEST):
            await metadata.leases.add_resource("l", resource)
        held = await metadata.leases.resources("l")
        assert ordered(held) == ordered([BLOB, INGEST, SNAPSHOT, OTHER_SNAPSHOT])
        for resource in (SNAPSHOT, BLOB, BLOB):
            await metadata.leases.delete_resource("l", resource)
        assert ordered(await metadata.leases.resources("l")) == ordered([INGEST, OTHER_SNAPSHOT])

    async def test_images_are_resources(self, metadata: Services) -> None:
        """A lease may hold an image."""
        await metadata.leases.create(Lease(id="l"))
        await metadata.leases.add_resource("l", IMAGE)
        assert await metadata.leases.resources("l") == [IMAGE]
        await metadata.leases.delete_resource("l", IMAGE)
        assert await metadata.leases.resources("l") == []

    async def test_resource_that_cannot_be(self, metadata: Services) -> None:
        """A type in a wrong form and content that is no digest are refused, to add and to take away."""
        await metadata.leases.create(Lease(id="l"))
        for bad in CANNOT_BE:
            with pytest.raises(InvalidArgument):
                await metadata.leases.add_resource("l", bad)
            with pytest.raises(InvalidArgument):
                await metadata.leases.delete_resource("l", bad)
            assert await metadata.leases.resources("l") == []

    async def test_unknown_type(self, metadata: Services) -> None:
        """A type that a lease does not hold is not implemented."""
        await metadata.leases.create(Lease(id="l"))
        for type in UNKNOWN_TYPES:
            with pytest.raises(Unimplemented):
                await metadata.leases.add_resource("l", Resource(type=type, id="x"))

    async def test_unknown_lease(self, metadata: Services) -> None:
        """Everything about a lease that is not there is NotFound, whatever the resource."""
        for attempt in (
            metadata.leases.delete("gone"),
            metadata.leases.delete("gone", sync=True),
            metadata.leases.resources("gone"),
            metadata.leases.add_resource("gone", BLOB),
            metadata.leases.add_resource("gone", Resource(type="nonsense", id="x")),
            metadata.leases.delete_resource("gone", BLOB),
        ):
            with pytest.raises(NotFound, match="gone"):
                await attempt

    async def test_deletion(self, metadata: Services) -> None:
        """A deleted lease is gone with what it held: one of the same id begins anew."""
        for sync in (False, True):
            await metadata.leases.create(Lease(id="l", labels={"containerd.io/gc.expire": "2099-01-01T00:00:00Z"}))
            await metadata.leases.add_resource("l", BLOB)
            await metadata.leases.delete("l", sync=sync)
            assert await metadata.leases.list() == []
            await metadata.leases.create(Lease(id="l"))
            assert await metadata.leases.resources("l") == []
            await metadata.leases.delete("l")
