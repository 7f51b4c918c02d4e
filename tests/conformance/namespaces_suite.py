"""What every namespace store promises."""

import itertools
import os

import pytest

from carina import context
from carina.containers import Container
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.images import Image
from carina.leases import Lease
from carina.namespaces import Namespace
from carina.typed import Runtime, TypedValue
from conformance.images_suite import TARGET
from conformance.suite import Suite
from support.metadata import Services

COUNT = itertools.count()
CONTAINER = Container(id="c", runtime=Runtime(name="r"), spec=TypedValue("spec", b"{}"))


NO_NAMES = ["", "-a", "a/b", "a..", "a" * 77, "ä", "a b", ".", ".."]


class NamespaceSuite(Suite):
    @pytest.fixture
    def name(self) -> str:
        """A name that no other test has: an implementation may be shared."""
        return f"n-{os.getpid()}-{next(COUNT)}"

    async def names(self, metadata: Services, prefix: str) -> list[str]:
        return [found.name for found in await metadata.namespaces.list() if found.name.startswith(prefix)]

    async def test_created_is_found(self, metadata: Services, name: str) -> None:
        """A created namespace has its labels and is listed in the order of names."""
        for suffix in ("b", "a"):
            made = Namespace(name=f"{name}-{suffix}", labels={"k": suffix, "containerd.io/defaults/snapshotter": "x"})
            assert await metadata.namespaces.create(made) == made
        expected = Namespace(name=f"{name}-a", labels={"k": "a", "containerd.io/defaults/snapshotter": "x"})
        assert await metadata.namespaces.get(f"{name}-a") == expected
        assert expected in await metadata.namespaces.list()
        assert await self.names(metadata, f"{name}-") == [f"{name}-a", f"{name}-b"]

    async def test_duplicate_is_refused(self, metadata: Services, name: str) -> None:
        """A second namespace of the same name is refused, and the first one keeps its labels."""
        await metadata.namespaces.create(Namespace(name=name, labels={"k": "v"}))
        with pytest.raises(AlreadyExists, match=name):
            await metadata.namespaces.create(Namespace(name=name))
        assert (await metadata.namespaces.get(name)).labels == {"k": "v"}

    async def test_name_is_an_identifier(self, metadata: Services) -> None:
        """A name that is no identifier is refused."""
        for name in NO_NAMES:
            with pytest.raises(InvalidArgument):
                await metadata.namespaces.create(Namespace(name=name))

    async def test_names_that_can_be(self, metadata: Services, name: str) -> None:
        """Letters, digits, and single separators between them make a name, up to 76 characters."""
        for suffix in ("A.b_c-9", "0"):
            await metadata.namespaces.create(Namespace(name=f"{name}-{suffix}"))
        long = name + "x" * (76 - len(name))
        await metadata.namespaces.create(Namespace(name=long))
        assert len(await self.names(metadata, name)) == 3

    async def test_unknown_has_no_labels(self, metadata: Services, name: str) -> None:
        """A namespace nobody made yet has no labels, so that clients can look for defaults in it."""
        assert await metadata.namespaces.get(name) == Namespace(name=name)
        assert await self.names(metadata, name) == []

    async def test_update_of_one_label(self, metadata: Services, name: str) -> None:
        """A field mask changes single labels; an empty value removes one."""
        await metadata.namespaces.create(Namespace(name=name, labels={"x": "1", "y": "2"}))
        await metadata.namespaces.update(Namespace(name=name, labels={"x": "3", "z": "4"}), ["labels.x"])
        assert (await metadata.namespaces.get(name)).labels == {"x": "3", "y": "2"}
        change = Namespace(name=name, labels={"y": "", "a.b/c": "5"})
        await metadata.namespaces.update(change, ["labels.y", "labels.a.b/c"])
        assert (await metadata.namespaces.get(name)).labels == {"x": "3", "a.b/c": "5"}

    async def test_update_of_all_labels(self, metadata: Services, name: str) -> None:
        """Without a mask the labels are replaced."""
        await metadata.namespaces.create(Namespace(name=name, labels={"x": "1", "y": "2"}))
        updated = await metadata.namespaces.update(Namespace(name=name, labels={"z": "3", "w": ""}))
        assert updated.labels == {"z": "3"}
        assert await metadata.namespaces.get(name) == updated

    async def test_update_makes_the_namespace(self, metadata: Services, name: str) -> None:
        """Labels make a namespace as any object in it does: Go clients set them without creating it first."""
        await metadata.namespaces.update(Namespace(name=name, labels={"x": "1"}), ["labels.x"])
        assert await self.names(metadata, name) == [name]
        assert (await metadata.namespaces.get(name)).labels == {"x": "1"}

    @pytest.mark.parametrize("field", ["name", ""])
    async def test_update_refusals(self, metadata: Services, name: str, field: str) -> None:
        """An unknown field is refused, and nothing changes."""
        await metadata.namespaces.create(Namespace(name=name, labels={"x": "1"}))
        with pytest.raises(InvalidArgument):
            await metadata.namespaces.update(Namespace(name=name, labels={"x": "9"}), ["labels.x", field])
        assert (await metadata.namespaces.get(name)).labels == {"x": "1"}

    @pytest.mark.parametrize("fields", [[], ["labels.k"]])
    async def test_oversized_label_in_an_update(self, metadata: Services, name: str, fields: list[str]) -> None:
        """An oversized label is refused, and nothing changes."""
        await metadata.namespaces.create(Namespace(name=name, labels={"x": "1"}))
        with pytest.raises(InvalidArgument):
            await metadata.namespaces.update(Namespace(name=name, labels={"k": "v" * 4096}), fields)
        assert (await metadata.namespaces.get(name)).labels == {"x": "1"}

    async def test_oversized_label_at_creation(self, metadata: Services, name: str) -> None:
        """A namespace with an oversized label is not made."""
        with pytest.raises(InvalidArgument):
            await metadata.namespaces.create(Namespace(name=name, labels={"k": "v" * 4096}))
        assert await self.names(metadata, name) == []

    async def test_delete(self, metadata: Services, name: str) -> None:
        """A deleted namespace is gone, with its labels, and can't be deleted again."""
        await metadata.namespaces.create(Namespace(name=name, labels={"k": "v"}))
        await metadata.namespaces.delete(name)
        assert await self.names(metadata, name) == []
        assert await metadata.namespaces.get(name) == Namespace(name=name)
        with pytest.raises(NotFound, match=name):
            await metadata.namespaces.delete(name)

    async def test_objects_make_their_namespace_and_keep_it(self, metadata: Services, name: str) -> None:
        """An object makes its namespace; while it is there the namespace can't be deleted, and is told what it has."""
        with context.within(namespace=name):
            await metadata.containers.create(CONTAINER)
            await metadata.images.create(Image(name="i", target=TARGET))
        assert await self.names(metadata, name) == [name]
        with pytest.raises(FailedPrecondition, match=f"{name}.* must be empty, but it still has images, containers"):
            await metadata.namespaces.delete(name)
        with context.within(namespace=name):
            await metadata.images.delete("i")
        with pytest.raises(FailedPrecondition, match="must be empty, but it still has containers"):
            await metadata.namespaces.delete(name)
        with context.within(namespace=name):
            await metadata.containers.delete("c")
        await metadata.namespaces.delete(name)
        assert await self.names(metadata, name) == []

    async def test_leases_go_with_their_namespace(self, metadata: Services, name: str) -> None:
        """Leases that hold nothing don't keep a namespace."""
        with context.within(namespace=name):
            await metadata.leases.create(Lease(id="l"))
        await metadata.namespaces.delete(name)
        with context.within(namespace=name):
            assert await metadata.leases.list() == []
