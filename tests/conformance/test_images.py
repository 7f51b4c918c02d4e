"""The image suite on ours, direct and over a socket, and on a real containerd; and what is behind ours."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from carina.api.containerd.services.images.v1 import Image as WireImage
from carina.api.containerd.services.images.v1 import UpdateImageRequest
from carina.api.google.protobuf import FieldMask
from carina.errors import InvalidArgument
from carina.images import Image
from carina.images.server import ImagesService
from conformance.images_suite import NAME, OTHER, TARGET, ImageSuite, image
from support.metadata import Services, Stores


class TestLocal(ImageSuite):
    @pytest.fixture
    def metadata(self, local_stores: Stores) -> Services:
        return local_stores


class TestRemote(ImageSuite):
    @pytest.fixture
    def metadata(self, remote_stores: Stores) -> Services:
        return remote_stores


@pytest.mark.root
class TestContainerd(ImageSuite):
    """containerd 1.6, where Debian's package has that."""

    differences: ClassVar[Mapping[str, str]] = {
        "test_delete_with_target": "deletion with a target came with 2.0",
        "test_lease_holds_an_expiring_image": "leases hold images since 2.0",
        "test_expiring_image_needs_the_lease_of_its_call": "leases hold images since 2.0",
    }

    @pytest.fixture
    def metadata(self, containerd_services: Services) -> Services:
        return containerd_services


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
async def test_names_that_cannot_be_shown(local_stores: Stores, name: str) -> None:
    """A name is bounded, and text."""
    with pytest.raises(InvalidArgument, match="image name"):
        await local_stores.images.create(image(name))


async def test_deletion_asks_for_a_collection(local_stores: Stores) -> None:
    """`sync` waits for a collection; without it the collector only learns of the deletion."""
    await local_stores.images.create(image())
    await local_stores.images.delete(NAME)
    assert (local_stores.collector.deletions, local_stores.collector.collections) == (1, 0)
    await local_stores.images.create(image())
    await local_stores.images.delete(NAME, sync=True)
    assert local_stores.collector.collections == 1


async def test_references_follow_the_record(local_stores: Stores) -> None:
    """The edges of an image are those of its present target and labels."""
    await local_stores.images.create(image("a"))
    labels = {"containerd.io/gc.ref.content.x": str(TARGET.digest)}
    await local_stores.images.update(Image(name="a", target=OTHER, labels=labels))

    async def edges() -> list[tuple[str, str, str]]:
        return await local_stores.records.read(
            lambda c: c.execute("SELECT source, destination, kind FROM edges ORDER BY kind").fetchall()
        )

    assert await edges() == [
        ("images/a", f"content/{TARGET.digest}", "ref"),
        ("images/a", f"content/{OTHER.digest}", "target"),
    ]
    await local_stores.images.delete("a")
    assert await edges() == []


async def test_update_without_target(local_stores: Stores) -> None:
    """A client may leave the target out where the mask does not name it, as containerd's own does."""
    await local_stores.images.create(image("a", k="v"))
    service = ImagesService(local_stores.images)
    mask = FieldMask(paths=["labels.x"])
    message = UpdateImageRequest(image=WireImage(name="a", labels={"x": "1"}), update_mask=mask)
    await service.update(message)
    found = await local_stores.images.get("a")
    assert (found.target, found.labels) == (TARGET, {"k": "v", "x": "1"})
    with pytest.raises(InvalidArgument):
        await service.update(UpdateImageRequest(image=WireImage(name="a")))
