"""What every image store promises, direct and over a socket."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from carina import context
from carina.api.containerd.services.images.v1 import Image as WireImage
from carina.api.containerd.services.images.v1 import UpdateImageRequest
from carina.api.google.protobuf import FieldMask
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.images import Image
from carina.images.server import ImagesService
from carina.leases import Lease, Resource
from support.metadata import Stores, stores

INDEX = "application/vnd.oci.image.index.v1+json"
TARGET = Descriptor(media_type=INDEX, digest=Digest.of(b"1"), size=10, annotations={"a": "1"})
OTHER = Descriptor(media_type=INDEX, digest=Digest.of(b"2"), size=20)


def image(name: str = "docker.io/library/busybox:latest", **labels: str) -> Image:
    return Image(name=name, target=TARGET, labels=labels)


@pytest.fixture(params=["local", "socket"])
async def metadata(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(tmp_path, request.param) as opened:
        with context.within(namespace="test"):
            yield opened


async def test_created_is_found(metadata: Stores) -> None:
    """A created image has its target, labels and times."""
    created = await metadata.images.create(image(k="v"))
    assert (created.target, created.labels) == (TARGET, {"k": "v"})
    assert created.created_at == created.updated_at
    assert created.created_at is not None
    assert await metadata.images.get(created.name) == created
    assert await metadata.images.list() == [created]


async def test_duplicate_is_refused(metadata: Stores) -> None:
    """A second image of the same name is refused."""
    await metadata.images.create(image())
    with pytest.raises(AlreadyExists, match="busybox"):
        await metadata.images.create(image())


async def test_namespaces_are_apart(metadata: Stores) -> None:
    """An image is not seen from another namespace, where the same name is free."""
    await metadata.images.create(image())
    with context.within(namespace="other"):
        with pytest.raises(NotFound):
            await metadata.images.get(image().name)
        await metadata.images.create(image())
        await metadata.images.delete(image().name)
    assert (await metadata.images.get(image().name)).target == TARGET


@pytest.mark.parametrize(
    "bad",
    [
        image(""),
        image("x" * 5000),
        replace(image(), target=replace(TARGET, size=0)),
        replace(image(), target=replace(TARGET, media_type="")),
        image(k="v" * 4096),
        replace(image(), target=replace(TARGET, annotations={"k": "v" * 4096})),
    ],
)
async def test_what_cannot_be_is_refused(metadata: Stores, bad: Image) -> None:
    """An image without name, size or media type, or with an oversized label, is refused."""
    with pytest.raises(InvalidArgument):
        await metadata.images.create(bad)


async def test_update_by_field(metadata: Stores) -> None:
    """A field mask changes labels, annotations and target one by one."""
    created = await metadata.images.create(image(x="1", y="2"))
    change = Image(name=created.name, target=replace(OTHER, annotations={"b": "2"}), labels={"x": "3"})
    assert (await metadata.images.update(change, ["labels.x", "labels.y"])).labels == {"x": "3"}
    assert (await metadata.images.update(change, ["annotations.b"])).target.annotations == {"a": "1", "b": "2"}
    assert (await metadata.images.update(change, ["annotations"])).target.annotations == {"b": "2"}
    updated = await metadata.images.update(change, ["target"])
    assert updated.target == change.target
    assert updated.created_at == created.created_at
    assert updated.updated_at is not None
    assert created.updated_at is not None
    assert updated.updated_at > created.updated_at


async def test_update_of_everything(metadata: Stores) -> None:
    """Without a mask target and labels are replaced."""
    await metadata.images.create(image(x="1"))
    updated = await metadata.images.update(Image(name=image().name, target=OTHER, labels={"z": "1"}))
    assert (updated.target, updated.labels) == (OTHER, {"z": "1"})


async def test_update_refusals(metadata: Stores) -> None:
    """An unknown image and an unknown field are refused, and nothing changes."""
    with pytest.raises(NotFound):
        await metadata.images.update(image())
    created = await metadata.images.create(image())
    with pytest.raises(InvalidArgument):
        await metadata.images.update(image(k="v"), ["labels.k", "name"])
    assert await metadata.images.get(created.name) == created


async def test_delete(metadata: Stores) -> None:
    """A deleted image is gone; `sync` waits for a collection."""
    await metadata.images.create(image())
    await metadata.images.delete(image().name)
    assert metadata.collector.collections == 0
    with pytest.raises(NotFound):
        await metadata.images.delete(image().name)
    await metadata.images.create(image())
    await metadata.images.delete(image().name, sync=True)
    assert metadata.collector.collections == 1
    assert await metadata.images.list() == []


async def test_delete_with_target(metadata: Stores) -> None:
    """With a target, only an image that still has it is deleted."""
    await metadata.images.create(image())
    with pytest.raises(NotFound):
        await metadata.images.delete(image().name, target=OTHER)
    await metadata.images.delete(image().name, target=TARGET)
    assert await metadata.images.list() == []


async def test_filters(metadata: Stores) -> None:
    """Filters select by name, target, label and annotation; several filters add up."""
    await metadata.images.create(image("a", k="1"))
    await metadata.images.create(replace(image("b"), target=OTHER))
    await metadata.images.create(image("c"))

    async def names(*filters: str) -> list[str]:
        return [found.name for found in await metadata.images.list(filters)]

    assert await names("name==a") == ["a"]
    assert await names("name~=^[ab]$") == ["a", "b"]
    assert await names(f"target.digest=={OTHER.digest}") == ["b"]
    assert await names(f'target.mediatype=="{INDEX}",labels.k') == ["a"]
    assert await names("annotations.a==1") == ["a", "c"]
    assert await names("labels.k==1", "name==c") == ["a", "c"]


async def test_lease_of_the_call_holds_the_image(metadata: Stores) -> None:
    """An image created under a lease is held by it; a lease that is not there is NotFound, and no image is made."""
    await metadata.leases.create(Lease(id="l"))
    with context.within(lease="l"):
        await metadata.images.create(image("a"))
    assert await metadata.leases.resources("l") == [Resource(type="images", id="a")]
    with context.within(lease="gone"), pytest.raises(NotFound):
        await metadata.images.create(image("b"))
    assert [found.name for found in await metadata.images.list()] == ["a"]


async def test_references_follow_the_record(metadata: Stores) -> None:
    """The edges of an image are those of its present target and labels."""
    await metadata.images.create(image("a"))
    labels = {"containerd.io/gc.ref.content.x": str(TARGET.digest)}
    await metadata.images.update(Image(name="a", target=OTHER, labels=labels))

    async def edges() -> list[tuple[str, str, str]]:
        return await metadata.records.read(
            lambda c: c.execute("SELECT source, destination, kind FROM edges ORDER BY kind").fetchall()
        )

    assert await edges() == [
        ("images/a", f"content/{TARGET.digest}", "ref"),
        ("images/a", f"content/{OTHER.digest}", "target"),
    ]
    await metadata.images.delete("a")
    assert await edges() == []


async def test_update_without_target(tmp_path: Path) -> None:
    """A client may leave the target out where the mask does not name it, as containerd's own does."""
    async with stores(tmp_path, "local") as local:
        with context.within(namespace="test"):
            await local.images.create(image("a", k="v"))
            service = ImagesService(local.images)
            mask = FieldMask(paths=["labels.x"])
            message = UpdateImageRequest(image=WireImage(name="a", labels={"x": "1"}), update_mask=mask)
            await service.update(message)
            found = await local.images.get("a")
            assert (found.target, found.labels) == (TARGET, {"k": "v", "x": "1"})
            with pytest.raises(InvalidArgument):
                await service.update(UpdateImageRequest(image=WireImage(name="a")))
