"""The lease suite on ours, direct and over a socket, and on a real containerd; and what is behind ours."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from carina.errors import InvalidArgument
from carina.leases import Lease, Resource
from conformance.leases_suite import BLOB, LeaseSuite
from support.metadata import Services, Stores


class TestLocal(LeaseSuite):
    @pytest.fixture
    def metadata(self, local_stores: Stores) -> Services:
        return local_stores


class TestRemote(LeaseSuite):
    @pytest.fixture
    def metadata(self, remote_stores: Stores) -> Services:
        return remote_stores


@pytest.mark.root
class TestContainerd(LeaseSuite):
    """containerd 1.6, where Debian's package has that."""

    differences: ClassVar[Mapping[str, str]] = {
        "test_images_are_resources": "leases hold images since 2.0",
    }

    @pytest.fixture
    def metadata(self, containerd_services: Services) -> Services:
        return containerd_services


@pytest.mark.parametrize(
    "bad",
    [
        Lease(id="x" * 5000),
        Lease(id="a\0b"),
        Lease(id="l", labels={"k": "v" * 4096}),
        Lease(id="l", labels={"": "v"}),
    ],
)
async def test_what_cannot_be_is_refused(local_stores: Stores, bad: Lease) -> None:
    """A lease's name is bounded and text, and its labels are as bounded as all labels (containerd takes any)."""
    with pytest.raises(InvalidArgument):
        await local_stores.leases.create(bad)
    assert await local_stores.leases.list() == []


async def test_snapshotter_needs_a_name(local_stores: Stores) -> None:
    """A snapshot belongs to a snapshotter."""
    await local_stores.leases.create(Lease(id="l"))
    with pytest.raises(InvalidArgument, match="snapshots/"):
        await local_stores.leases.add_resource("l", Resource(type="snapshots/", id="x"))


async def test_deletion_leaves_nothing(local_stores: Stores) -> None:
    """A deleted lease is gone with what it states; `sync` waits for a collection."""
    await local_stores.leases.create(Lease(id="l", labels={"containerd.io/gc.expire": "2030-01-01T00:00:00Z"}))
    await local_stores.leases.add_resource("l", BLOB)
    await local_stores.leases.delete("l", sync=True)
    assert local_stores.collector.collections == 1
    left = await local_stores.records.read(
        lambda c: [c.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("edges", "pins", "lease_resources")]
    )
    assert left == [0, 0, 0]


async def test_flat_lease_states_flat_edges(local_stores: Stores) -> None:
    """The label gc.flat makes a lease hold its resources without their references."""
    await local_stores.leases.create(Lease(id="flat", labels={"containerd.io/gc.flat": "true"}))
    await local_stores.leases.create(Lease(id="deep"))
    for id in ("flat", "deep"):
        await local_stores.leases.add_resource(id, BLOB)
    rows = await local_stores.records.read(
        lambda c: c.execute("SELECT source, destination, kind FROM edges ORDER BY source").fetchall()
    )
    assert rows == [("leases/deep", f"content/{BLOB.id}", "ref"), ("leases/flat", f"content/{BLOB.id}", "flat")]
