"""What every image store promises."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from carina import context
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from carina.images import Image
from carina.leases import Lease, Resource
from conformance.suite import Suite
from support.metadata import Services

INDEX = "application/vnd.oci.image.index.v1+json"
TARGET = Descriptor(media_type=INDEX, digest=Digest.of(b"1"), size=10, annotations={"a": "1", "b": "2"})
OTHER = Descriptor(media_type=INDEX + "+other", digest=Digest.of(b"2"), size=20, annotations={"c": "3"})
NAME = "docker.io/library/busybox:latest"
LABELS = {"x": "1", "y": "2"}
CHANGE = Image(name=NAME, target=replace(OTHER, annotations={"a": "9", "c": "3"}), labels={"x": "9", "z": "3"})
"""What the updates give; a mask says how much of it counts."""


FILTERS = {
    (): "abcd",
    ("labels.even==true", "labels.odd==true"): "abcd",
    ("labels.even==true",): "ac",
    ("labels.odd==true",): "bd",
    ("name==a",): "a",
    ("labels.name==a,labels.even==true",): "a",
    ("labels.name==a,labels.odd==true",): "",
    ("target.mediatype~=application/vnd.*",): "abcd",
    (f"target.digest=={OTHER.digest}",): "d",
    ("annotations.c",): "d",
    ("annotations.a==1",): "abc",
    ("name~=^[ab]$",): "ab",
    ("name==a", "name==a", "name==zzz"): "a",
}
"""What each list of filters selects of `a` to `d`."""


def image(name: str = NAME, **labels: str) -> Image:
    return Image(name=name, target=TARGET, labels=labels or LABELS)


CANNOT_BE = [
    image(""),
    replace(image(), target=replace(TARGET, size=0)),
    replace(image(), target=replace(TARGET, size=-1)),
    replace(image(), target=replace(TARGET, media_type="")),
    image(k="v" * 4096),
]


REFUSED_UPDATES = [
    (image(k="v"), ["labels.k", "name"]),
    (image(k="v"), ["created_at"]),
    (image(k="v"), ["target.size"]),
    (image(k="v"), ["Labels"]),
    (image(k="v"), [""]),
    (replace(image(), target=replace(TARGET, size=0)), []),
    (replace(image(), target=replace(TARGET, size=0)), ["target"]),
    (replace(image(), target=replace(TARGET, media_type="")), []),
    (image(k="v" * 4096), ["labels.k"]),
    (image(""), []),
]


class ImageSuite(Suite):
    async def test_created_is_found(self, metadata: Services) -> None:
        """A created image has its target, labels and times."""
        created = await metadata.images.create(image())
        assert (created.target, created.labels) == (TARGET, LABELS)
        assert created.created_at == created.updated_at
        assert created.created_at is not None
        assert abs(datetime.now(UTC) - created.created_at) < timedelta(minutes=1)
        found = await metadata.images.get(created.name)
        assert (found.name, found.target, found.labels) == (created.name, TARGET, LABELS)
        assert await metadata.images.list() == [found]

    async def test_times_given_are_ignored(self, metadata: Services) -> None:
        """The store says when an image was created."""
        past = datetime(2001, 1, 1, tzinfo=UTC)
        created = await metadata.images.create(replace(image(), created_at=past, updated_at=past))
        assert created.created_at is not None
        assert created.created_at > past

    async def test_duplicate_is_refused(self, metadata: Services) -> None:
        """A second image of the same name is refused."""
        await metadata.images.create(image())
        with pytest.raises(AlreadyExists, match="busybox"):
            await metadata.images.create(replace(image(), target=OTHER))
        assert (await metadata.images.get(NAME)).target == TARGET

    async def test_namespaces_are_apart(self, metadata: Services) -> None:
        """An image is not seen from another namespace, where the same name is free; without a namespace none is."""
        await metadata.images.create(image())
        with context.within(namespace=f"{context.namespace()}-other"):
            assert await metadata.images.list() == []
            with pytest.raises(NotFound):
                await metadata.images.get(NAME)
            await metadata.images.create(image())
            await metadata.images.delete(NAME)
        assert (await metadata.images.get(NAME)).target == TARGET
        with context.use(context.Call()), pytest.raises(FailedPrecondition, match="namespace"):
            await metadata.images.get(NAME)

    async def test_what_cannot_be_is_refused(self, metadata: Services) -> None:
        """An image without name, size or media type, or with an oversized label, is refused."""
        for bad in CANNOT_BE:
            with pytest.raises(InvalidArgument):
                await metadata.images.create(bad)
            assert await metadata.images.list() == []

    async def test_largest_label(self, metadata: Services) -> None:
        """A key and its value may have 4,096 bytes together."""
        await metadata.images.create(image(k="v" * 4095))
        assert (await metadata.images.get(NAME)).labels == {"k": "v" * 4095}

    async def test_empty_label_is_none(self, metadata: Services) -> None:
        """A label without a value is not kept."""
        await metadata.images.create(image(k="", x="1"))
        assert (await metadata.images.get(NAME)).labels == {"x": "1"}

    async def test_long_annotation(self, metadata: Services) -> None:
        """The limit on labels is none on annotations: those come with the image."""
        target = replace(TARGET, annotations={"k": "v" * 5000})
        await metadata.images.create(replace(image(), target=target))
        assert (await metadata.images.get(NAME)).target == target

    @pytest.mark.parametrize(
        ("fields", "labels", "target"),
        [
            ([], CHANGE.labels, CHANGE.target),
            (["labels"], CHANGE.labels, TARGET),
            (["labels.x"], {"x": "9", "y": "2"}, TARGET),
            (["labels.y"], {"x": "1"}, TARGET),
            (["labels.x", "labels.z"], {"x": "9", "y": "2", "z": "3"}, TARGET),
            (["annotations"], LABELS, replace(TARGET, annotations={"a": "9", "c": "3"})),
            (["annotations.a"], LABELS, replace(TARGET, annotations={"a": "9", "b": "2"})),
            (["annotations.b"], LABELS, replace(TARGET, annotations={"a": "1"})),
            (["annotations", "labels"], CHANGE.labels, replace(TARGET, annotations={"a": "9", "c": "3"})),
            (["target"], LABELS, CHANGE.target),
            (["target", "labels.x"], {"x": "9", "y": "2"}, CHANGE.target),
        ],
    )
    async def test_update(
        self, metadata: Services, fields: list[str], labels: dict[str, str], target: Descriptor
    ) -> None:
        """An update changes what its mask names and nothing else; without a mask everything."""
        created = await metadata.images.create(image())
        await metadata.images.update(CHANGE, fields)
        found = await metadata.images.get(NAME)
        assert (found.labels, found.target) == (labels, target)
        assert found.created_at == created.created_at
        assert found.updated_at is not None
        assert created.updated_at is not None
        assert found.updated_at > created.updated_at

    async def test_touch(self, metadata: Services) -> None:
        """An update that changes nothing tells its time all the same."""
        created = await metadata.images.create(image())
        touched = await metadata.images.update(image())
        assert (touched.labels, touched.target) == (created.labels, created.target)
        assert touched.updated_at is not None
        assert created.updated_at is not None
        assert touched.updated_at > created.updated_at

    async def test_update_refusals(self, metadata: Services) -> None:
        """An unknown field and a value that can't be are refused, and nothing changes."""
        await metadata.images.create(image())
        before = await metadata.images.get(NAME)
        for change, fields in REFUSED_UPDATES:
            with pytest.raises(InvalidArgument):
                await metadata.images.update(change, fields)
            assert await metadata.images.get(NAME) == before

    async def test_update_of_an_unknown_image(self, metadata: Services) -> None:
        """What is not there can't be updated: an image is not renamed by an update."""
        await metadata.images.create(image("a"))
        with pytest.raises(NotFound, match="b"):
            await metadata.images.update(image("b"))

    async def test_delete(self, metadata: Services) -> None:
        """A deleted image is gone, with `sync` too, and can't be deleted again."""
        for sync in (False, True):
            await metadata.images.create(image())
            await metadata.images.delete(NAME, sync=sync)
            with pytest.raises(NotFound, match="busybox"):
                await metadata.images.delete(NAME, sync=sync)
            with pytest.raises(NotFound, match="busybox"):
                await metadata.images.get(NAME)
        assert await metadata.images.list() == []

    async def test_delete_with_target(self, metadata: Services) -> None:
        """With a target, only an image that still has it is deleted: nobody deletes what was pulled meanwhile."""
        await metadata.images.create(image())
        with pytest.raises(NotFound):
            await metadata.images.delete(NAME, target=OTHER)
        await metadata.images.delete(NAME, target=TARGET)
        assert await metadata.images.list() == []

    async def test_filters(self, metadata: Services) -> None:
        """Filters select by name, target, label and annotation; several filters add up."""
        for number, name in enumerate("abcd"):
            parity = {"odd": "true"} if number % 2 else {"even": "true"}
            made = Image(name=name, target=OTHER if name == "d" else TARGET, labels={"name": name, **parity})
            await metadata.images.create(made)
        found = {
            filters: "".join(sorted(one.name for one in await metadata.images.list(filters))) for filters in FILTERS
        }
        assert found == FILTERS

    async def test_lease_holds_an_expiring_image(self, metadata: Services) -> None:
        """A lease holds an image that would expire, and no other: those are kept for their own sake."""
        await metadata.leases.create(Lease(id="l"))
        with context.within(lease="l"):
            await metadata.images.create(image("a", **{"containerd.io/gc.expire": "2030-01-01T00:00:00Z"}))
            await metadata.images.create(image("b"))
            assert await metadata.leases.resources("l") == [Resource(type="images", id="a")]
            await metadata.images.update(image("b", **{"containerd.io/gc.expire": "2030-01-01T00:00:00Z"}))
            await metadata.images.delete("a")
        assert await metadata.leases.resources("l") == [Resource(type="images", id="b")]

    async def test_expiring_image_needs_the_lease_of_its_call(self, metadata: Services) -> None:
        """An image that a lease is to hold is not created where there is no such lease."""
        with context.within(lease="gone"), pytest.raises(NotFound, match="lease"):
            await metadata.images.create(image("a", **{"containerd.io/gc.expire": "2030-01-01T00:00:00Z"}))
        assert await metadata.images.list() == []
