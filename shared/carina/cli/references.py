"""Who refers to what: images and containers to snapshots, images and images' parts to content."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from carina.cli import output
from carina.errors import CarinaError, NotFound

if TYPE_CHECKING:
    from carina.client import Client
    from carina.descriptor import Descriptor
    from carina.digest import Digest
    from carina.images import Image

MANY: Final = 1000
"""Images beyond which the parts of others are not looked at."""
SHOWN: Final = 3
"""Other images that are named beside a part."""


async def of_snapshots(client: "Client", snapshotter: str) -> Mapping[str, Sequence[str]]:
    """Key -> the images whose top layer it is, and the containers that run on it, in words."""
    from carina.client.image import describe
    from carina.images.manifest import chain_ids

    found: dict[str, list[str]] = {}
    for container in await client.containers.list():
        if container.snapshotter == snapshotter and container.snapshot_key:
            found.setdefault(container.snapshot_key, []).append(f"container {container.id}")
    for image in await client.images.list():
        try:
            chain = chain_ids((await describe(client.content, image)).config.diff_ids)
        except CarinaError:
            continue  # its content is not here, or not for this machine: it has no snapshots
        if chain:
            found.setdefault(chain[-1], []).append(f"image {image.name}")
    return found


async def of_images(client: "Client") -> Mapping[str, Sequence[str]]:
    """Image name -> the containers made from it."""
    found: dict[str, list[str]] = {}
    if not client.address:
        return found
    for container in await client.containers.list():
        found.setdefault(container.image, []).append(f"container {container.id}")
    return found


async def image_lines(client: "Client", wanted: Sequence["Image"]) -> AsyncIterator[str]:
    """The trees of images, of all where none is named; each part with the other images that have it as well."""
    every = await client.images.list()
    containers = await of_images(client)
    trees = {image.name: await _parts(client, image) for image in (every if len(every) <= MANY else wanted)}
    owners: dict[str, list[str]] = {}
    for name, parts in trees.items():
        for digest in {str(descriptor.digest) for descriptor, _ in parts}:
            owners.setdefault(digest, []).append(name)
    for image in wanted or every:
        yield image.name + "".join(f"  ← {by}" for by in containers.get(image.name, ()))
        for descriptor, depth in trees.get(image.name) or await _parts(client, image):
            missing = "" if await _present(client, descriptor.digest) else "  (not here)"
            others = [name for name in owners.get(str(descriptor.digest), ()) if name != image.name]
            shared = "".join(f"  ← image {name}" for name in others[:SHOWN])
            more = f"  ← {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            what = f"{descriptor.digest}  {descriptor.media_type}  {output.size(descriptor.size)}"
            yield f"{'  ' * (depth + 1)}{what}{missing}{shared}{more}"


async def _parts(client: "Client", image: "Image") -> list[tuple["Descriptor", int]]:
    from carina.client.image import walk

    return [found async for found in walk(client.content, image.target)]


async def _present(client: "Client", digest: "Digest") -> bool:
    try:
        await client.content.info(digest)
    except NotFound:
        return False
    return True
