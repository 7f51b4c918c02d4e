"""What every container store promises, direct and over a socket."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from carina import context
from carina.containers import Container
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.sandboxes import Sandbox
from carina.typed import Runtime, TypedValue
from support.metadata import Stores, stores

SPEC = TypedValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1.0"}')
RUNTIME = Runtime(name="io.containerd.runc.v2", options=TypedValue("containerd.runc.v1.Options", b"\x08\x01\xff"))


def container(id: str = "c", **labels: str) -> Container:
    return Container(
        id=id,
        labels=labels,
        image="docker.io/library/busybox:latest",
        runtime=RUNTIME,
        spec=SPEC,
        snapshotter="overlayfs",
        snapshot_key="key",
        extensions={"e": TypedValue("x", b"\x00\x01")},
        sandbox="pod",
    )


@pytest.fixture(params=["local", "socket"])
async def metadata(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, request.param) as opened:
        with context.within(namespace="test"):
            yield opened


async def test_created_is_found(metadata: Stores) -> None:
    """Everything of a container comes back as it was given, typed values byte for byte."""
    created = await metadata.containers.create(container(k="v"))
    assert replace(created, created_at=None, updated_at=None) == container(k="v")
    assert created.created_at is not None
    assert await metadata.containers.get("c") == created
    assert await metadata.containers.list() == [created]


async def test_options_may_be_absent(metadata: Stores) -> None:
    """A runtime without options and one with empty options are told apart."""
    for id, options in (("none", None), ("empty", TypedValue("x", b""))):
        await metadata.containers.create(replace(container(id), runtime=Runtime(name="r", options=options)))
    found = {each.id: each.runtime for each in await metadata.containers.list()}
    assert found == {"none": Runtime(name="r"), "empty": Runtime(name="r", options=TypedValue("x", b""))}


async def test_duplicate_is_refused(metadata: Stores) -> None:
    """A second container of the same id is refused, and in another namespace it is free."""
    await metadata.containers.create(container())
    with pytest.raises(AlreadyExists, match="'c'"):
        await metadata.containers.create(container())
    with context.within(namespace="other"):
        await metadata.containers.create(container())


@pytest.mark.parametrize(
    "bad",
    [
        container(""),
        container("../c"),
        container("c" * 77),
        replace(container(), runtime=None),
        replace(container(), runtime=Runtime(name="")),
        replace(container(), spec=None),
        replace(container(), snapshotter=""),
        replace(container(), extensions={"": SPEC}),
        container(k="v" * 4096),
    ],
)
async def test_what_cannot_be_is_refused(metadata: Stores, bad: Container) -> None:
    """A container without id, runtime or specification, or with a key but no snapshotter, is refused."""
    with pytest.raises(InvalidArgument):
        await metadata.containers.create(bad)
    assert await metadata.containers.list() == []


async def test_update_by_field(metadata: Stores) -> None:
    """A field mask changes single fields and nothing else."""
    created = await metadata.containers.create(container(x="1", y="2"))
    other = TypedValue(SPEC.type_url, b"{}")
    change = replace(
        container(x="3"), spec=other, image="new", snapshot_key="new", extensions={"f": TypedValue("y", b"1")}
    )
    await metadata.containers.update(change, ["labels.x", "labels.y", "extensions.f"])
    found = await metadata.containers.get("c")
    assert (found.labels, found.spec, found.image) == ({"x": "3"}, SPEC, created.image)
    assert found.extensions == {**created.extensions, **change.extensions}
    await metadata.containers.update(change, ["spec", "image", "snapshotkey", "extensions"])
    found = await metadata.containers.get("c")
    assert (found.spec, found.image, found.snapshot_key, found.extensions) == (other, "new", "new", change.extensions)
    assert found.created_at == created.created_at
    assert found.updated_at is not None
    assert created.updated_at is not None
    assert found.updated_at > created.updated_at


@pytest.mark.parametrize("change", [{"snapshotter": "native"}, {"runtime": Runtime(name="other")}])
async def test_immutable_fields(metadata: Stores, change: dict[str, object]) -> None:
    """Runtime and snapshotter of a container can't be changed."""
    created = await metadata.containers.create(container())
    with pytest.raises(InvalidArgument, match="immutable"):
        await metadata.containers.update(replace(created, **change))  # type: ignore[arg-type]  # by parameter
    assert await metadata.containers.get("c") == created


async def test_update_refusals(metadata: Stores) -> None:
    """An unknown container and an unknown field are refused."""
    with pytest.raises(NotFound):
        await metadata.containers.update(container())
    await metadata.containers.create(container())
    with pytest.raises(InvalidArgument):
        await metadata.containers.update(container(), ["runtime"])


async def test_delete(metadata: Stores) -> None:
    """A deleted container is gone, and can't be deleted again."""
    await metadata.containers.create(container())
    await metadata.containers.delete("c")
    with pytest.raises(NotFound, match="'c'"):
        await metadata.containers.delete("c")
    assert await metadata.containers.list() == []
    assert metadata.collector.deletions == 1


async def test_filters(metadata: Stores) -> None:
    """Filters select by id, image, runtime and label."""
    await metadata.containers.create(container("a", k="1"))
    await metadata.containers.create(replace(container("b"), image="other", runtime=Runtime(name="r")))

    async def ids(*filters: str) -> list[str]:
        return [found.id for found in await metadata.containers.list(filters)]

    assert await ids("id==a") == ["a"]
    assert await ids("image==other") == ["b"]
    assert await ids("runtime.name==r") == ["b"]
    assert await ids("labels.k==1") == ["a"]
    assert await ids("id!=a,labels.k") == []


async def test_the_snapshot_is_kept(metadata: Stores) -> None:
    """A container states that it keeps its snapshot, until it is deleted."""
    await metadata.containers.create(container())
    query = "SELECT source, destination, kind FROM edges"
    rows = await metadata.records.read(lambda c: c.execute(query).fetchall())
    assert rows == [("containers/c", "snapshots/overlayfs/key", "target")]
    await metadata.containers.delete("c")
    assert await metadata.records.read(lambda c: c.execute(query).fetchall()) == []


async def test_many_large_ones_are_listed(metadata: Stores) -> None:
    """A list may be larger than one message can be."""
    spec = TypedValue(SPEC.type_url, b"x" * (2 << 20))
    for i in range(10):
        await metadata.containers.create(replace(container(f"c{i}"), spec=spec))
    assert [len(found.spec.value) for found in await metadata.containers.list() if found.spec] == [2 << 20] * 10


async def test_sandboxes(metadata: Stores) -> None:
    """A sandbox is created, changed by field, listed and deleted."""
    sandbox = Sandbox(id="pod", runtime=RUNTIME, spec=SPEC, labels={"k": "v"}, sandboxer="shim")
    created = await metadata.sandboxes.create(sandbox)
    assert replace(created, created_at=None, updated_at=None) == sandbox
    with pytest.raises(AlreadyExists):
        await metadata.sandboxes.create(sandbox)
    updated = await metadata.sandboxes.update(
        replace(sandbox, labels={}, extensions={"e": SPEC}), ["labels.k", "extensions.e"]
    )
    assert (updated.labels, updated.extensions) == ({}, {"e": SPEC})
    assert await metadata.sandboxes.list(["id==pod"]) == [updated]
    assert await metadata.sandboxes.get("pod") == updated
    with pytest.raises(InvalidArgument):
        await metadata.sandboxes.update(sandbox, ["id"])
    with pytest.raises(InvalidArgument):
        await metadata.sandboxes.create(Sandbox(id="other"))
    await metadata.sandboxes.delete("pod")
    with pytest.raises(NotFound):
        await metadata.sandboxes.get("pod")
