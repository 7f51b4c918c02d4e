"""What every container store promises."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from carina import context
from carina.containers import Container
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.typed import Runtime, TypedValue
from conformance.suite import Suite
from support.metadata import Services

SPEC = TypedValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1.0"}')
OTHER_SPEC = TypedValue(SPEC.type_url, b'{"ociVersion":"1.1"}')
# containerd 1.6 reads an extension again as a whole message: the value is one.
EXTENSION = TypedValue("test.extension", b"\x0a\x01x")
OTHER_EXTENSION = TypedValue("test.extension", b"\x0a\x01y")
RUNTIME = Runtime(name="io.containerd.runc.v2", options=TypedValue("containerd.runc.v1.Options", b"\x08\x01"))


def container(id: str = "c", **labels: str) -> Container:
    return Container(
        id=id,
        labels=labels,
        image="docker.io/library/busybox:latest",
        runtime=RUNTIME,
        spec=SPEC,
        snapshotter="overlayfs",
        snapshot_key="key",
        extensions={"e": EXTENSION},
    )


BASE = container(x="1", y="2")
CHANGE = replace(
    BASE,
    labels={"x": "9", "z": "3"},
    image="new",
    spec=OTHER_SPEC,
    snapshot_key="new",
    extensions={"e": OTHER_EXTENSION, "f": OTHER_EXTENSION},
)
"""What the updates give; a mask says how much of it counts."""


FILTERS = {
    (): "abcd",
    ("labels.even==true", "labels.odd==true"): "abcd",
    ("labels.even==true",): "ac",
    ("labels.odd==true",): "bd",
    ("id==a",): "a",
    ("id==a", "id==c", "id==e"): "ac",
    ("labels.name==a,labels.even==true",): "a",
    ("labels.name==a,labels.odd==true",): "",
    ("runtime.name==other",): "d",
    ("image~=busybox",): "abc",
    ("image==other",): "d",
    ("runtime",): "",
}
"""What each list of filters selects of `a` to `d`."""


def timeless(container: Container) -> Container:
    return replace(container, created_at=None, updated_at=None)


CANNOT_BE = [
    container(""),
    container("../c"),
    container("a/b"),
    container("-c"),
    container("c" * 77),
    replace(container(), runtime=None),
    replace(container(), runtime=Runtime(name="")),
    replace(container(), spec=None),
    replace(container(), snapshotter=""),
    replace(container(), extensions={"": EXTENSION}),
    container(k="v" * 4096),
]


REFUSED_UPDATES = [
    (BASE, ["runtime"]),
    (BASE, ["runtime.name"]),
    (BASE, ["snapshotter"]),
    (BASE, ["snapshotkey", "snapshotter"]),
    (BASE, ["id"]),
    (BASE, ["sandbox"]),
    (BASE, ["created_at"]),
    (BASE, ["nonsense"]),
    (BASE, [""]),
    (replace(BASE, spec=None), ["spec"]),
    (replace(BASE, spec=None), []),
    (container(x="v" * 4096), ["labels.x"]),
    (container(x="v" * 4096), ["labels"]),
    (container(""), []),
]


class ContainerSuite(Suite):
    async def test_created_is_found(self, metadata: Services) -> None:
        """Everything of a container comes back as it was given, typed values byte for byte."""
        created = await metadata.containers.create(container(k="v"))
        assert timeless(created) == container(k="v")
        assert created.created_at is not None
        assert created.created_at == created.updated_at
        assert await metadata.containers.get("c") == created
        assert await metadata.containers.list() == [created]

    async def test_sandbox_is_kept(self, metadata: Services) -> None:
        """A container knows its sandbox."""
        await metadata.containers.create(replace(container(), sandbox="pod"))
        assert (await metadata.containers.get("c")).sandbox == "pod"

    async def test_options_may_be_absent(self, metadata: Services) -> None:
        """A runtime may be without options, and a container without image, snapshot and extensions."""
        bare = Container(id="bare", runtime=Runtime(name="r"), spec=SPEC)
        await metadata.containers.create(bare)
        assert timeless(await metadata.containers.get("bare")) == bare

    async def test_empty_options(self, metadata: Services) -> None:
        """A runtime with empty options is told apart from one without."""
        runtime = Runtime(name="r", options=TypedValue("x", b""))
        await metadata.containers.create(replace(container(), runtime=runtime))
        assert (await metadata.containers.get("c")).runtime == runtime

    async def test_duplicate_is_refused(self, metadata: Services) -> None:
        """A second container of the same id is refused, and in another namespace it is free."""
        await metadata.containers.create(container())
        with pytest.raises(AlreadyExists, match="c"):
            await metadata.containers.create(container())
        with context.within(namespace=f"{context.namespace()}-other"):
            await metadata.containers.create(container())

    async def test_namespace_is_required(self, metadata: Services) -> None:
        """Without a namespace there are no containers."""
        with context.use(context.Call()), pytest.raises(FailedPrecondition, match="namespace"):
            await metadata.containers.list()

    async def test_what_cannot_be_is_refused(self, metadata: Services) -> None:
        """A container without id, runtime or specification, or with a key but no snapshotter, is refused."""
        for bad in CANNOT_BE:
            with pytest.raises(InvalidArgument):
                await metadata.containers.create(bad)
            assert await metadata.containers.list() == []

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ([], CHANGE),
            (["labels"], {"labels": CHANGE.labels}),
            (["labels.x"], {"labels": {"x": "9", "y": "2"}}),
            (["labels.y"], {"labels": {"x": "1"}}),
            (["labels.x", "labels.z"], {"labels": {"x": "9", "y": "2", "z": "3"}}),
            (["spec"], {"spec": OTHER_SPEC}),
            (["image"], {"image": "new"}),
            (["snapshotkey"], {"snapshot_key": "new"}),
            (["extensions"], {"extensions": CHANGE.extensions}),
            (["extensions.f"], {"extensions": {"e": EXTENSION, "f": OTHER_EXTENSION}}),
            (["spec", "labels.y", "extensions.e"], None),
        ],
    )
    async def test_update(
        self, metadata: Services, fields: list[str], expected: Container | Mapping[str, object] | None
    ) -> None:
        """An update changes what its mask names and nothing else; without a mask all that is mutable."""
        created = await metadata.containers.create(BASE)
        answer = await metadata.containers.update(CHANGE, fields)
        found = await metadata.containers.get("c")
        if expected is None:
            expected = {"spec": OTHER_SPEC, "labels": {"x": "1"}, "extensions": {"e": OTHER_EXTENSION}}
        wanted = expected if isinstance(expected, Container) else replace(BASE, **expected)  # type: ignore[arg-type]  # by parameter
        assert timeless(found) == wanted
        assert timeless(answer) == wanted
        assert found.created_at == created.created_at
        assert found.updated_at is not None
        assert created.updated_at is not None
        assert found.updated_at > created.updated_at

    async def test_all_labels_are_taken_away(self, metadata: Services) -> None:
        """The field `labels` with no labels leaves none."""
        await metadata.containers.create(BASE)
        await metadata.containers.update(Container(id="c"), ["labels"])
        assert timeless(await metadata.containers.get("c")) == replace(BASE, labels={})

    async def test_an_extension_is_taken_away(self, metadata: Services) -> None:
        """The field of an extension that is not given takes it away."""
        await metadata.containers.create(replace(BASE, extensions={"e": EXTENSION, "f": EXTENSION}))
        await metadata.containers.update(Container(id="c"), ["extensions.f"])
        assert (await metadata.containers.get("c")).extensions == {"e": EXTENSION}

    @pytest.mark.parametrize(
        "change", [replace(BASE, snapshotter="native"), replace(BASE, runtime=Runtime(name="other"))]
    )
    async def test_immutable_fields(self, metadata: Services, change: Container) -> None:
        """Runtime and snapshotter of a container can't be changed."""
        created = await metadata.containers.create(BASE)
        with pytest.raises(InvalidArgument, match="immutable"):
            await metadata.containers.update(change)
        assert await metadata.containers.get("c") == created

    async def test_update_refusals(self, metadata: Services) -> None:
        """Fields that are unknown or never change, and values that can't be, are refused; nothing changes."""
        created = await metadata.containers.create(BASE)
        for change, fields in REFUSED_UPDATES:
            with pytest.raises(InvalidArgument):
                await metadata.containers.update(change, ["labels.y", *fields] if fields else [])
            assert await metadata.containers.get("c") == created

    async def test_update_of_an_unknown_container(self, metadata: Services) -> None:
        """What is not there can't be updated, before and after the first container was made."""
        for _ in range(2):
            with pytest.raises(NotFound, match="gone"):
                await metadata.containers.update(container("gone"), ["labels"])
            await metadata.containers.create(container("there" + str(_)))

    async def test_delete(self, metadata: Services) -> None:
        """A deleted container is gone, and can't be deleted again."""
        with pytest.raises(NotFound, match="gone"):
            await metadata.containers.delete("gone")
        await metadata.containers.create(container("gone"))
        await metadata.containers.delete("gone")
        for attempt in (metadata.containers.delete("gone"), metadata.containers.get("gone")):
            with pytest.raises(NotFound, match="gone"):
                await attempt
        assert await metadata.containers.list() == []

    async def test_filters(self, metadata: Services) -> None:
        """Filters select by id, image, runtime and label; several filters add up."""
        for number, id in enumerate("abcd"):
            made = container(id, **{"name": id, "odd" if number % 2 else "even": "true"})
            if id == "d":
                made = replace(made, image="other", runtime=Runtime(name="other"))
            await metadata.containers.create(made)
        found = {
            filters: "".join(sorted(one.id for one in await metadata.containers.list(filters))) for filters in FILTERS
        }
        assert found == FILTERS

    async def test_many_large_ones_are_listed(self, metadata: Services) -> None:
        """A list may be larger than one message can be."""
        spec = TypedValue(SPEC.type_url, b"x" * (2 << 20))
        for i in range(10):
            await metadata.containers.create(replace(container(f"c{i}"), spec=spec))
        assert [len(found.spec.value) for found in await metadata.containers.list() if found.spec] == [2 << 20] * 10
