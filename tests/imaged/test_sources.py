"""Places where images come from besides a registry's manifests: layouts in directories, and listings of referrers."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from carina.digest import Digest
from carina.errors import DataLoss, InvalidArgument, NotFound, Unimplemented
from carina.platforms import Platform
from carina.reference import Reference
from carina.transfer import Store
from imaged.auth import Authorizer
from imaged.hosts import Host
from imaged.layout import Layout
from imaged.registry import Repository
from imaged.resolver import RegistryResolver
from support.image import OCI_INDEX, OCI_MANIFEST, Blob, Image, build
from support.pulls import Hostile, World

HOST = Platform(os="linux", architecture="amd64")
REFERENCE = Reference.parse("example.test/some/image:1")


@pytest.fixture(scope="module")
def image() -> Image:
    return build()


@pytest.fixture
def directory(tmp_path: Path, image: Image) -> Path:
    return image.write(tmp_path / "layout", "1")


async def test_an_image_comes_from_a_layout(world: World, directory: Path, image: Image) -> None:
    """A layout is a place to pull from: by tag, by digest, with everything that a pull does."""
    into = Store(name=str(REFERENCE), platforms=(HOST,))
    await world.transfers().fetch_from(Layout(directory, REFERENCE), into)

    pinned = Layout(directory, Reference.parse(f"example.test/some/image@{image.digest}"))
    assert (await pinned.resolve()).digest == image.digest
    assert world.images.images[str(REFERENCE)].target.digest == image.digest
    assert {blob.digest for blob in image.blobs} <= set(world.content.blobs)


async def test_what_a_layout_lacks_or_has_wrong_is_named(world: World, directory: Path, image: Image) -> None:
    """A name, a blob and a directory that are not there, and content of another size, each have their sentence."""
    into = Store(name="x", platforms=(HOST,))
    blob = directory / "blobs" / "sha256" / image.layers[0].blob.digest.removeprefix("sha256:")
    other = Reference.parse("example.test/some/image:2")

    with pytest.raises(NotFound, match=rf"layout {directory} has no example.test/some/image:2"):
        await Layout(directory, other).resolve()
    with pytest.raises(InvalidArgument, match="is not an OCI image layout: oci-layout: No such file"):
        await Layout(directory / "blobs", REFERENCE).resolve()
    with pytest.raises(Unimplemented, match="pushing into layout"):
        Layout(directory, REFERENCE).destination(world.content)
    await asyncio.to_thread(blob.write_bytes, b"short")
    with pytest.raises(DataLoss, match=r"has 5 bytes there, its descriptor says"):
        await world.transfers().fetch_from(Layout(directory, REFERENCE), into)
    await asyncio.to_thread(blob.unlink)
    with pytest.raises(NotFound, match="has no content sha256:"):
        await world.transfers().fetch_from(Layout(directory, REFERENCE), into)
    assert world.images.images == {}


def signature(image: Image, kind: str) -> Blob:
    subject = {"mediaType": image.root.media_type, "digest": image.digest, "size": image.root.size}
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": f"sha256:{'4' * 64}", "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "config": config, "layers": []}
    return Blob(media_type=OCI_MANIFEST, data=json.dumps(document | {"subject": subject}).encode())


def listing(*entries: Blob) -> bytes:
    found = [one.descriptor(artifactType=json.loads(one.data)["artifactType"]) for one in entries]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}).encode()


@pytest.fixture
async def resolver(hostile: Hostile, image: Image) -> AsyncIterator[RegistryResolver]:
    async with aiohttp.ClientSession() as session:
        host = Host(scheme="http", authority=hostile.host)
        reference = Reference.parse(hostile.put(image))
        repository = Repository(reference=reference, hosts=(host,), session=session, authorizer=Authorizer(session))
        yield RegistryResolver(repository)


async def test_referrers_are_listed_page_by_page(resolver: RegistryResolver, hostile: Hostile, image: Image) -> None:
    """All pages are read, and what is of another type than asked for is left out, whether or not the registry does."""
    one, two = signature(image, "a/one"), signature(image, "a/two")

    async def answer(request: web.Request) -> web.Response:
        first = "page" not in request.query
        headers = {"Link": f'<{request.path}?page=2>; rel="next"'} if first else {}
        return web.Response(body=listing(one if first else two), headers={"Content-Type": OCI_INDEX, **headers})

    hostile.answers[image.digest] = answer
    digest = Digest(image.digest)
    everything = await resolver.referrers(digest)
    some = await resolver.referrers(digest, "a/two")

    assert [found.descriptor.digest for found in everything] == [one.digest, two.digest]
    assert [found.descriptor.digest for found in some] == [two.digest]
    assert hostile.requests[0].path == f"/v2/some/image/referrers/{image.digest}"
    assert hostile.requests[2].query["artifactType"] == "a/two"


async def test_without_a_listing_the_tag_is_looked_at(
    resolver: RegistryResolver, hostile: Hostile, image: Image
) -> None:
    """A registry without the listing may have an index of referrers under a tag; without that there are none."""
    digest = Digest(image.digest)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=404)

    hostile.answers[image.digest] = answer
    assert await resolver.referrers(digest) == []
    one = signature(image, "a/one")
    hostile.objects[f"sha256-{digest.hex}"] = (OCI_INDEX, listing(one))
    assert [found.descriptor.digest for found in await resolver.referrers(digest)] == [one.digest]


@pytest.mark.parametrize("document", [{"schemaVersion": 2, "manifests": [{"digest": "x"}]}, [], {"manifests": 5}])
async def test_a_listing_that_is_none_is_refused(
    resolver: RegistryResolver, hostile: Hostile, image: Image, document: Any
) -> None:
    """What is not an index is not taken for a list of referrers."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(document)

    hostile.answers[image.digest] = answer
    with pytest.raises((InvalidArgument, DataLoss)):
        await resolver.referrers(Digest(image.digest))
