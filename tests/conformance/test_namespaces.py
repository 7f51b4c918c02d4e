"""What every namespace store promises, direct and over a socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carina import context
from carina.containers import Container
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.leases import Lease
from carina.namespaces import Namespace
from carina.typed import Runtime, TypedValue
from metadatad.namespaces import ensure
from metadatad.records import Transaction
from support.metadata import Stores, stores


@pytest.fixture(params=["local", "socket"])
async def metadata(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, request.param) as opened:
        yield opened


async def test_created_is_found(metadata: Stores) -> None:
    """A created namespace has its labels and is listed in the order of names."""
    for name in ("b", "a"):
        await metadata.namespaces.create(Namespace(name=name, labels={"k": name}))
    assert await metadata.namespaces.get("a") == Namespace(name="a", labels={"k": "a"})
    assert [found.name for found in await metadata.namespaces.list()] == ["a", "b"]


async def test_duplicate_is_refused(metadata: Stores) -> None:
    """A second namespace of the same name is refused."""
    await metadata.namespaces.create(Namespace(name="a"))
    with pytest.raises(AlreadyExists, match="'a'"):
        await metadata.namespaces.create(Namespace(name="a"))


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a..", "a" * 77, "ä", "a b"])
async def test_name_is_an_identifier(metadata: Stores, name: str) -> None:
    """A name that is no identifier is refused."""
    with pytest.raises(InvalidArgument):
        await metadata.namespaces.create(Namespace(name=name))


async def test_unknown_has_no_labels(metadata: Stores) -> None:
    """A namespace nobody made yet has no labels, so that clients can look for defaults in it."""
    assert await metadata.namespaces.get("nowhere") == Namespace(name="nowhere")
    assert await metadata.namespaces.list() == []


async def test_update_of_one_label(metadata: Stores) -> None:
    """A field mask changes one label; an empty value removes it."""
    await metadata.namespaces.create(Namespace(name="a", labels={"x": "1", "y": "2"}))
    await metadata.namespaces.update(Namespace(name="a", labels={"x": "3"}), ["labels.x"])
    await metadata.namespaces.update(Namespace(name="a", labels={"y": ""}), ["labels.y"])
    assert (await metadata.namespaces.get("a")).labels == {"x": "3"}


async def test_update_of_all_labels(metadata: Stores) -> None:
    """Without a mask the labels are replaced."""
    await metadata.namespaces.create(Namespace(name="a", labels={"x": "1", "y": "2"}))
    updated = await metadata.namespaces.update(Namespace(name="a", labels={"z": "3"}))
    assert updated.labels == {"z": "3"}


async def test_update_refusals(metadata: Stores) -> None:
    """An unknown namespace, an unknown field and an oversized label are refused."""
    with pytest.raises(NotFound):
        await metadata.namespaces.update(Namespace(name="a"))
    await metadata.namespaces.create(Namespace(name="a"))
    with pytest.raises(InvalidArgument):
        await metadata.namespaces.update(Namespace(name="a"), ["name"])
    with pytest.raises(InvalidArgument):
        await metadata.namespaces.update(Namespace(name="a", labels={"k": "v" * 4096}))


async def test_delete(metadata: Stores) -> None:
    """A deleted namespace is gone, and can't be deleted again."""
    await metadata.namespaces.create(Namespace(name="a"))
    await metadata.namespaces.delete("a")
    assert await metadata.namespaces.list() == []
    with pytest.raises(NotFound):
        await metadata.namespaces.delete("a")


async def test_objects_make_their_namespace_and_keep_it(metadata: Stores) -> None:
    """An object makes its namespace, and while it is there the namespace can't be deleted."""
    with context.within(namespace="implicit"):
        await metadata.containers.create(Container(id="c", runtime=Runtime(name="r"), spec=TypedValue("spec", b"{}")))
    assert [found.name for found in await metadata.namespaces.list()] == ["implicit"]
    with pytest.raises(FailedPrecondition, match="must be empty, but it still has containers"):
        await metadata.namespaces.delete("implicit")
    with context.within(namespace="implicit"):
        await metadata.containers.delete("c")
    await metadata.namespaces.delete("implicit")
    assert await metadata.namespaces.list() == []


async def test_leases_go_with_their_namespace(metadata: Stores) -> None:
    """Leases that hold nothing don't keep a namespace."""
    with context.within(namespace="a"):
        await metadata.leases.create(Lease(id="l"))
    await metadata.namespaces.delete("a")
    with context.within(namespace="a"):
        assert await metadata.leases.list() == []


async def test_unfinished_ingests_go_with_their_namespace(metadata: Stores) -> None:
    """Ingests don't keep a namespace; the back end is to remove what they wrote."""

    def begin(transaction: Transaction) -> None:
        ensure(transaction.connection, "a")
        transaction.connection.execute(
            "INSERT INTO ingests (namespace, ref, backend_ref, started_at, updated_at) VALUES ('a', 'r', 'a/1/r', 1, 1)"
        )

    await metadata.records.write(begin)
    await metadata.namespaces.delete("a")
    buried = await metadata.records.read(lambda c: c.execute("SELECT type, key FROM tombstones").fetchall())
    assert buried == [("ingest", "a/1/r")]
