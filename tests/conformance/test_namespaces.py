"""The namespace suite on ours, direct and over a socket, and on a real containerd; and what is behind ours."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from carina import context
from carina.errors import FailedPrecondition, InvalidArgument
from carina.namespaces import Namespace
from carina.sandboxes import Sandbox
from carina.typed import Runtime
from conformance.namespaces_suite import NamespaceSuite
from metadatad.namespaces import ensure
from metadatad.records import Transaction
from support.metadata import Services, Stores


class TestLocal(NamespaceSuite):
    @pytest.fixture
    def metadata(self, local_stores: Stores) -> Services:
        return local_stores


class TestRemote(NamespaceSuite):
    @pytest.fixture
    def metadata(self, remote_stores: Stores) -> Services:
        return remote_stores


@pytest.mark.root
class TestContainerd(NamespaceSuite):
    """containerd 1.6, where Debian's package has that."""

    differences: ClassVar[Mapping[str, str]] = {
        "test_oversized_label_in_an_update": "containerd says so with the status UNKNOWN",
    }

    @pytest.fixture
    def metadata(self, containerd_services: Services) -> Services:
        return containerd_services


async def test_update_by_the_field_labels(local_stores: Stores) -> None:
    """The field `labels` stands for all labels, as everywhere else (containerd refuses it here)."""
    await local_stores.namespaces.create(Namespace(name="a", labels={"x": "1"}))
    updated = await local_stores.namespaces.update(Namespace(name="a", labels={"y": "2"}), ["labels"])
    assert updated.labels == {"y": "2"}


async def test_every_name_is_checked(local_stores: Stores) -> None:
    """What is no identifier is refused by every method (containerd takes it where it only looks something up)."""
    for attempt in (
        local_stores.namespaces.get("a/b"),
        local_stores.namespaces.update(Namespace(name="a/b", labels={"x": "1"})),
        local_stores.namespaces.delete("a/b"),
    ):
        with pytest.raises(InvalidArgument, match="namespace 'a/b'"):
            await attempt


async def test_sandboxes_keep_their_namespace(local_stores: Stores) -> None:
    """A namespace with a sandbox is in use (containerd deletes the record along with the namespace)."""
    with context.within(namespace="a"):
        await local_stores.sandboxes.create(Sandbox(id="pod", runtime=Runtime(name="r")))
    with pytest.raises(FailedPrecondition, match="still has sandboxes"):
        await local_stores.namespaces.delete("a")


async def test_unfinished_ingests_go_with_their_namespace(local_stores: Stores) -> None:
    """Ingests don't keep a namespace; the back end is to remove what they wrote."""

    def begin(transaction: Transaction) -> None:
        ensure(transaction.connection, "a")
        transaction.connection.execute(
            "INSERT INTO ingests (namespace, ref, backend_ref, started_at, updated_at) VALUES ('a', 'r', 'a/1/r', 1, 1)"
        )

    await local_stores.records.write(begin)
    await local_stores.namespaces.delete("a")
    buried = await local_stores.records.read(lambda c: c.execute("SELECT type, key FROM tombstones").fetchall())
    assert buried == [("ingest", "a/1/r")]
