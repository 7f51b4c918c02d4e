"""Pushes into Debian's docker-registry, and into registries that misbehave."""

import hashlib
import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from carina.digest import Digest
from carina.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from carina.platforms import Platform
from carina.transfer import Access, Credentials, Progress, Store
from imaged import pusher
from imaged.push import candidates
from support.image import DOCKER_LAYER_GZIP, Image, build, layer, tar
from support.pulls import World
from support.registry import Registry
from support.uploads import Uploads

AMD64 = Platform(os="linux", architecture="amd64")
ARM64 = Platform(os="linux", architecture="arm64")


@pytest.fixture
async def uploads() -> AsyncIterator[Uploads]:
    async with Uploads() as uploads:
        yield uploads


def copied(reference: str, directory: Path, *options: str) -> bytes:
    """The manifest or index that skopeo finds, after it has read and checked all that this names."""
    command = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--preserve-digests", *options]
    command += [f"docker://{reference}", f"dir:{directory}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return (directory / "manifest.json").read_bytes()


async def pulled(world: World, registry: Registry, image: Image) -> str:
    """The name of an image that is here, with all platforms, pulled from a repository of its own."""
    reference = registry.push(f"from/{secrets.token_hex(6)}", "1", image)
    await world.transfers().fetch(reference, Store(name=reference))
    return reference


async def test_skopeo_reads_what_is_pushed(world: World, registry: Registry, tmp_path: Path) -> None:
    """Indexes, OCI and Docker, arrive with every platform, the same bytes, and are not sent again."""
    for docker in (False, True):
        packed = layer(tar({"f": b"x" * 70_000}), media_type=DOCKER_LAYER_GZIP if docker else "")
        image = build(layers=[packed], platforms=("linux/amd64", "linux/arm64"), docker=docker)
        name = await pulled(world, registry, image)
        target = registry.reference(f"pushed/{secrets.token_hex(6)}")
        seen: list[Progress] = []

        await world.transfers().push(Store(name=name), target, on_progress=seen.append)

        assert copied(target, tmp_path / f"all{docker}", "--all") == image.root.data
        assert seen[0].event == f"Pushing to OCI Registry ({target})"
        assert [one.event for one in seen[-2:]] == ["pushed content", f"Completed push to OCI Registry ({target})"]
        again: list[Progress] = []
        await world.transfers().push(Store(name=name), target, on_progress=again.append)
        assert {one.event for one in again if one.parents} == {"waiting", "already exists"}


async def test_one_platform_is_pushed_as_its_manifest(world: World, registry: Registry, tmp_path: Path) -> None:
    """Of an index, one platform becomes the tag itself; several become an index of only these."""
    image = build(layers=[layer(tar({"f": b"y"}))], platforms=("linux/amd64", "linux/arm64", "linux/s390x"))
    name = await pulled(world, registry, image)
    one, two = registry.reference("platforms/one"), registry.reference("platforms/two")

    await world.transfers().push(Store(name=name, platforms=(ARM64,)), one)
    await world.transfers().push(Store(name=name, platforms=(AMD64, ARM64)), two)

    assert copied(one, tmp_path / "one") == image.manifests[1].data
    entries = json.loads(copied(two, tmp_path / "two", "--all"))["manifests"]
    assert [entry["digest"] for entry in entries] == [one.digest for one in image.manifests[:2]]
    with pytest.raises(NotFound, match="no image for platform linux/riscv64: the index has linux/amd64"):
        await world.transfers().push(Store(name=name, platforms=(Platform(os="linux", architecture="riscv64"),)), one)


async def test_what_is_not_here_is_not_pushed(world: World, registry: Registry) -> None:
    """A missing image, missing platforms and another digest are refused before anything is sent."""
    image = build(layers=[layer(tar({"f": b"z"}))], platforms=("linux/amd64", "linux/arm64"))
    source = registry.push("partly", "1", image)
    await world.transfers().fetch(source, Store(name=source, platforms=(AMD64,)))
    other = f"sha256:{'0' * 64}"

    with pytest.raises(NotFound, match="is not here; name the platforms to push"):
        await world.transfers().push(Store(name=source), registry.reference("x/y"))
    with pytest.raises(InvalidArgument, match="can't be pushed as"):
        await world.transfers().push(Store(name=source), f"{registry.host}/x/y@{other}")
    with pytest.raises(NotFound, match="nothing"):
        await world.transfers().push(Store(name="nothing"), registry.reference("x/y"))
    with pytest.raises(NotFound, match="has no"):
        await world.transfers().fetch(registry.reference("x/y"), Store(name="z"))


async def test_blobs_are_mounted_from_where_they_came(world: World, registry: Registry) -> None:
    """What the registry has in another repository is not sent."""
    image = build(layers=[layer(tar({"f": secrets.token_bytes(100_000)}))])
    name = await pulled(world, registry, image)
    seen: list[Progress] = []

    await world.transfers().push(Store(name=name), registry.reference("mounted/here"), on_progress=seen.append)

    events = {one.name: one.event for one in seen if one.parents}
    assert events[f"layer-{image.layers[0].blob.digest}"] == "already exists"
    assert "uploading" not in {one.event for one in seen}


def test_the_nearest_repository_is_tried() -> None:
    """Names that share their beginning come first; nonsense, and the destination itself, are left out."""
    assert candidates("z,a/b,a/c,a/b/d,..//x,a/b/c", "a/b/c") == ["a/b", "a/b/d", "a/c", "z"]


async def test_uploads_go_on_where_they_broke_off(
    world: World, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a broken connection only the rest is sent, in pieces."""
    monkeypatch.setattr(pusher, "PIECE", 300_000)
    image = build(layers=[layer(tar({"f": secrets.token_bytes(1_000_000)}), "")], index=False)
    world.put("image", image)
    digest = image.layers[0].blob.digest
    uploads.break_after[digest] = 400_000

    await world.transfers().push(Store(name="image"), uploads.reference)

    assert hashlib.sha256(uploads.blobs[digest]).hexdigest() == digest.partition(":")[2]
    assert uploads.manifests["latest"] == image.root.data
    patches = [length for method, length in uploads.requests if method == "PATCH"]
    assert len(patches) >= 2
    assert max(patches) == 300_000
    assert sum(patches) < image.layers[0].blob.size


async def test_a_limit_on_requests_makes_pieces(
    world: World, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one request would be too large, the blob goes in several."""
    monkeypatch.setattr(pusher, "PIECE", 200_000)
    image = build(layers=[layer(tar({"f": secrets.token_bytes(500_000)}), "")], index=False)
    world.put("image", image)
    uploads.limit = 250_000

    await world.transfers().push(Store(name="image"), uploads.reference)

    assert image.layers[0].blob.digest in uploads.blobs


async def test_refusals_have_their_sentence(world: World, uploads: Uploads) -> None:
    """Forbidden, broken and without end: each is one sentence, after as many attempts as it deserves."""
    image = build(layers=[layer(tar({"f": b"1"}))], index=False)
    world.put("image", image)

    uploads.answer = lambda request: web.Response(status=403) if request.method == "POST" else None
    with pytest.raises(PermissionDenied, match=r"refuses access to blob sha256:.* of repository some/image"):
        await world.transfers().push(Store(name="image"), uploads.reference)
    uploads.answer = lambda request: web.Response(status=500) if request.method == "PUT" else None
    with pytest.raises(Unavailable, match=r"\(3 attempts\)"):
        await world.transfers().push(Store(name="image"), uploads.reference)
    uploads.answer = lambda request: web.Response(status=202) if request.method == "POST" else None
    with pytest.raises(Unavailable, match="does not say where an upload goes"):
        await world.transfers().push(Store(name="image"), uploads.reference)


async def test_a_token_for_pushing_is_asked_for(world: World, uploads: Uploads) -> None:
    """The scope is pull and push; what was refused without a token is sent again whole."""
    image = build(layers=[layer(tar({"f": b"1"}))], index=False)
    world.put("image", image)
    scopes: list[str] = []

    def answer(request: web.Request) -> web.Response | None:
        if request.path == "/token":
            scopes.append(request.query["scope"])
            return web.json_response({"token": "T"})
        if request.headers.get("Authorization") == "Bearer T":
            return None
        realm = f'Bearer realm="http://{request.host}/token",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    async def credentials(host: str, challenges: list[str]) -> Credentials:
        return Credentials(username="u", secret="p")

    uploads.answer = answer
    await world.transfers().push(Store(name="image"), uploads.reference, access=Access(credentials=credentials))

    assert set(scopes) == {"repository:some/image:pull,push"}
    assert uploads.manifests["latest"] == image.root.data


async def test_damaged_content_is_not_blamed_on_the_registry(world: World, uploads: Uploads) -> None:
    """A blob that is gone or too short here is told as such, and never retried."""
    image = build(layers=[layer(tar({"f": b"1"}))], index=False)
    world.put("image", image)
    await world.content.delete(Digest(image.layers[0].blob.digest))

    with pytest.raises(NotFound, match=image.layers[0].blob.digest):
        await world.transfers().push(Store(name="image"), uploads.reference)
