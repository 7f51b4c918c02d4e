"""What every sandbox store promises. containerd 1.6 has none, so ours stand alone here."""

from dataclasses import replace

import pytest

from carina import context
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.sandboxes import Sandbox
from carina.typed import Runtime, TypedValue
from conformance.suite import Suite
from support.metadata import Services, Stores

SPEC = TypedValue("spec", b"\x01\x02\x03")
OTHER = TypedValue("other", b"\x03\x02\x01")
RUNTIME = Runtime(name="io.containerd.runc.v2", options=TypedValue("options", b"\x04"))
BASE = Sandbox(
    id="pod", runtime=RUNTIME, spec=SPEC, labels={"x": "1", "y": "2"}, extensions={"e": SPEC}, sandboxer="shim"
)
CHANGE = replace(
    BASE, spec=OTHER, labels={"x": "9", "z": "3"}, extensions={"e": OTHER, "f": OTHER}, sandboxer="ignored"
)


def timeless(sandbox: Sandbox) -> Sandbox:
    return replace(sandbox, created_at=None, updated_at=None)


CANNOT_BE = [
    replace(BASE, id=""),
    replace(BASE, id="../x"),
    replace(BASE, id="x" * 77),
    replace(BASE, labels={"k": "v" * 4096}),
    replace(BASE, extensions={"": SPEC}),
    replace(BASE, runtime=None),
]


FIXED_FIELDS = ["id", "sandboxer", "created_at", "nonsense", ""]


class SandboxSuite(Suite):
    async def test_created_is_found(self, metadata: Services) -> None:
        """Everything of a sandbox comes back as it was given."""
        created = await metadata.sandboxes.create(BASE)
        assert timeless(created) == BASE
        assert created.created_at is not None
        assert created.created_at == created.updated_at
        assert await metadata.sandboxes.get("pod") == created
        assert await metadata.sandboxes.list() == [created]

    async def test_what_is_absent_stays_absent(self, metadata: Services) -> None:
        """A sandbox needs an id and a runtime; a specification or options that were not given are not made up."""
        bare = Sandbox(id="bare", runtime=Runtime(name="test"))
        await metadata.sandboxes.create(bare)
        assert timeless(await metadata.sandboxes.get("bare")) == bare

    async def test_duplicate_is_refused(self, metadata: Services) -> None:
        """A second sandbox of the same id is refused, and in another namespace it is free."""
        await metadata.sandboxes.create(BASE)
        with pytest.raises(AlreadyExists, match="pod"):
            await metadata.sandboxes.create(BASE)
        with context.within(namespace="other"):
            await metadata.sandboxes.create(BASE)
        with context.use(context.Call()), pytest.raises(FailedPrecondition, match="namespace"):
            await metadata.sandboxes.list()

    async def test_what_cannot_be_is_refused(self, metadata: Services) -> None:
        """A sandbox without a valid id or a runtime, or with an oversized label, is refused."""
        for bad in CANNOT_BE:
            with pytest.raises(InvalidArgument):
                await metadata.sandboxes.create(bad)
            assert await metadata.sandboxes.list() == []

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ([], replace(CHANGE, sandboxer="shim")),
            (["labels"], replace(BASE, labels=CHANGE.labels)),
            (["labels.x", "labels.y"], replace(BASE, labels={"x": "9"})),
            (["extensions"], replace(BASE, extensions=CHANGE.extensions)),
            (["extensions.f"], replace(BASE, extensions={"e": SPEC, "f": OTHER})),
            (["spec"], replace(BASE, spec=OTHER)),
            (["labels.x", "extensions.f", "spec"], None),
        ],
    )
    async def test_update(self, metadata: Services, fields: list[str], expected: Sandbox | None) -> None:
        """An update changes what it names and nothing else; without names all that is mutable."""
        created = await metadata.sandboxes.create(BASE)
        answer = await metadata.sandboxes.update(CHANGE, fields)
        both = replace(BASE, labels={"x": "9", "y": "2"}, extensions={"e": SPEC, "f": OTHER}, spec=OTHER)
        assert timeless(answer) == (expected or both)
        assert await metadata.sandboxes.get("pod") == answer
        assert answer.created_at == created.created_at
        assert answer.updated_at is not None
        assert created.updated_at is not None
        assert answer.updated_at > created.updated_at

    async def test_runtime_is_changed_by_name_only(self, metadata: Services) -> None:
        """The runtime changes where the update names it, and an update of everything refuses another one."""
        await metadata.sandboxes.create(BASE)
        other = replace(BASE, runtime=Runtime(name="other"))
        with pytest.raises(InvalidArgument, match="immutable"):
            await metadata.sandboxes.update(other)
        assert (await metadata.sandboxes.update(other, ["runtime"])).runtime == Runtime(name="other")

    async def test_update_refusals(self, metadata: Services) -> None:
        """A field that is unknown or never changes is refused, and nothing changes."""
        created = await metadata.sandboxes.create(BASE)
        for field in FIXED_FIELDS:
            with pytest.raises(InvalidArgument, match="pod"):
                await metadata.sandboxes.update(CHANGE, ["labels.x", field])
            assert await metadata.sandboxes.get("pod") == created

    async def test_unknown(self, metadata: Services) -> None:
        """Everything about a sandbox that is not there is NotFound."""
        for attempt in (
            metadata.sandboxes.get("gone"),
            metadata.sandboxes.delete("gone"),
            metadata.sandboxes.update(replace(BASE, id="gone"), ["spec"]),
        ):
            with pytest.raises(NotFound, match="gone"):
                await attempt

    async def test_delete(self, metadata: Services) -> None:
        """A deleted sandbox is gone."""
        await metadata.sandboxes.create(BASE)
        await metadata.sandboxes.delete("pod")
        with pytest.raises(NotFound, match="pod"):
            await metadata.sandboxes.get("pod")
        assert await metadata.sandboxes.list() == []

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ([], ["1", "2"]),
            (["id==1"], ["1"]),
            (["labels.test==2"], ["2"]),
            (["labels.test"], ["1", "2"]),
            (["id==1,labels.test==2"], []),
        ],
    )
    async def test_filters(self, metadata: Services, filters: list[str], expected: list[str]) -> None:
        """Filters select by id and label."""
        for id in ("1", "2"):
            await metadata.sandboxes.create(replace(BASE, id=id, labels={"test": id}))
        assert [found.id for found in await metadata.sandboxes.list(filters)] == expected


class TestLocal(SandboxSuite):
    @pytest.fixture
    def metadata(self, local_stores: Stores) -> Services:
        return local_stores


class TestRemote(SandboxSuite):
    @pytest.fixture
    def metadata(self, remote_stores: Stores) -> Services:
        return remote_stores
