"""What a registry can do wrong, by accident or on purpose: each ends in one clear error, nothing half-done."""

import asyncio
import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from carina.client.convert import Conversion, convert
from carina.digest import Digest
from carina.errors import (
    CarinaError,
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from carina.platforms import Platform
from carina.transfer import Access, Credentials, Store
from support.image import OCI_INDEX, OCI_MANIFEST, Blob, Image, build, layer, tar
from support.pulls import Answer, Hostile, World
from support.uploads import Uploads

HOST = Platform(os="linux", architecture="amd64")
BIG = layer(tar({"big": bytes(range(256)) * 4096}), "")


async def pull(world: World, reference: str) -> None:
    await world.transfers().pull(reference, platforms=[HOST], unpack=[(HOST, "native")])


def nothing_recorded(world: World) -> bool:
    return not world.images.images and not world.snapshotter.snapshots and not world.leases.leases


def status(code: int, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=code, headers=headers)

    return answer


async def test_a_layer_of_other_bytes_is_refused(world: World, hostile: Hostile) -> None:
    """Bytes of the right number but another digest are refused, with registry, repository and digest named."""
    image = build(layers=[BIG])
    reference = hostile.put(image)
    digest = BIG.blob.digest
    hostile.objects[digest] = ("application/octet-stream", bytes(BIG.blob.size))

    with pytest.raises(DataLoss, match=rf"registry {hostile.host}, repository some/image: the bytes of {digest}"):
        await pull(world, reference)

    assert nothing_recorded(world)
    assert Digest(digest) not in world.content.blobs
    assert world.content.ingests == {}


async def test_a_layer_that_is_too_long_is_refused(world: World, hostile: Hostile) -> None:
    """No more bytes than the descriptor says are taken."""
    reference = hostile.put(build(layers=[BIG]))
    hostile.objects[BIG.blob.digest] = ("application/octet-stream", BIG.blob.data + b"more")

    with pytest.raises(DataLoss, match="more than its"):
        await pull(world, reference)

    assert nothing_recorded(world)


async def test_a_truncated_layer_is_refused_and_kept_to_be_resumed(world: World, hostile: Hostile) -> None:
    """A layer that ends early everywhere is an error; a later pull goes on from what came."""
    reference = hostile.put(build(layers=[BIG]))
    whole = hostile.objects[BIG.blob.digest]
    hostile.objects[BIG.blob.digest] = (whole[0], whole[1][:100_000])

    said = rf"(ends after 100000 of {BIG.blob.size} bytes|fewer bytes|100000 bytes there)"
    with pytest.raises(CarinaError, match=said):
        await pull(world, reference)

    assert nothing_recorded(world)
    hostile.objects[BIG.blob.digest] = whole
    hostile.requests.clear()
    await pull(world, reference)
    assert [r.headers["Range"] for r in hostile.requests if "Range" in r.headers] == ["bytes=100000-"]


async def test_connections_that_break_are_resumed(world: World, hostile: Hostile) -> None:
    """A connection reset in the middle of a layer goes on by Range, without what came before being sent again."""
    reference = hostile.put(build(layers=[BIG]))
    data, breaks = BIG.blob.data, [300_000, 600_000]

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if not breaks:
            return None
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        response = web.StreamResponse(status=206 if start else 200)
        response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response.content_length = len(data) - start
        await response.prepare(request)
        await response.write(data[start : breaks.pop(0)])
        assert request.transport is not None
        await asyncio.sleep(0.05)
        request.transport.abort()
        return response

    hostile.answers[BIG.blob.digest] = answer
    await pull(world, reference)

    starts = [r.headers.get("Range") for r in hostile.requests if r.path.endswith(BIG.blob.digest)]
    assert starts[0] is None
    assert len(starts) == 3
    assert world.content.blobs[Digest(BIG.blob.digest)] == data


async def test_a_registry_that_ignores_range_is_coped_with(world: World, hostile: Hostile) -> None:
    """Where Range is ignored, what is there already is skipped."""
    reference = hostile.put(build(layers=[BIG]))
    world.content.ingests[f"layer-{BIG.blob.digest}"] = bytearray(BIG.blob.data[:1000])

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=BIG.blob.data)

    hostile.answers[BIG.blob.digest] = answer
    await pull(world, reference)

    assert world.content.blobs[Digest(BIG.blob.digest)] == BIG.blob.data


async def test_a_registry_that_sends_other_ranges_is_refused(world: World, hostile: Hostile) -> None:
    """A 206 for other bytes than asked for is an error."""
    reference = hostile.put(build(layers=[BIG]))
    world.content.ingests[f"layer-{BIG.blob.digest}"] = bytearray(BIG.blob.data[:1000])

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=206, body=BIG.blob.data[5:], headers={"Content-Range": "bytes 5-9/10"})

    hostile.answers[BIG.blob.digest] = answer
    with pytest.raises(Unavailable, match="sends other bytes"):
        await pull(world, reference)


async def test_a_stalled_registry_is_given_up(world: World, hostile: Hostile) -> None:
    """No byte for the stall limit, attempt after attempt, ends the pull."""
    reference = hostile.put(build(layers=[BIG]))

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = BIG.blob.size
        await response.prepare(request)
        await response.write(b"x" * 10)
        await asyncio.sleep(30)
        return response

    hostile.answers[BIG.blob.digest] = answer
    with pytest.raises(Unavailable, match=r"no bytes arrive \(3 attempts\)"):
        await pull(world, reference)

    assert nothing_recorded(world)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (401, Unauthenticated, "keeps refusing repository some/image"),
        (403, PermissionDenied, r"refuses access to tag latest of repository some/image \(403\)"),
        (404, NotFound, "has no tag latest in repository some/image"),
        (429, ResourceExhausted, r"limits the rate of requests: .* \(3 attempts\)"),
        (500, Unavailable, r"fails: .*\(500\) \(3 attempts\)"),
        (418, Unavailable, "answers 418"),
    ],
)
async def test_each_refusal_has_its_sentence(
    world: World, hostile: Hostile, code: int, error: type[Exception], text: str
) -> None:
    """Every status by which a registry says no becomes one error that says so."""
    reference = hostile.put(build())
    hostile.answers["*"] = status(code)

    with pytest.raises(error, match=text):
        await pull(world, reference)

    assert nothing_recorded(world)


async def test_transient_failures_are_tried_again(world: World, hostile: Hostile) -> None:
    """Two failures and a success are a success."""
    reference = hostile.put(build())
    failures = [500, 429]

    async def answer(request: web.Request) -> web.Response | None:
        return web.Response(status=failures.pop()) if failures else None

    hostile.answers["latest"] = answer
    await pull(world, reference)

    assert len(world.images.images) == 1


async def test_challenges_without_end_are_given_up(world: World, hostile: Hostile) -> None:
    """A registry that refuses the very token it had asked for is not asked for ever."""
    reference = hostile.put(build())

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.json_response({"token": f"t{len(hostile.requests)}"})
        challenge = f'Bearer realm="http://{hostile.host}/token",service="s",scope="repository:some/image:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    hostile.answers["*"] = answer
    with pytest.raises(Unauthenticated):
        await pull(world, reference)

    assert len(hostile.requests) < 10


async def test_anonymous_tokens_and_passwords_are_answered(world: World, hostile: Hostile) -> None:
    """The bearer flow asks the realm with the credentials, and the registry with the token."""
    reference = hostile.put(build())

    async def answer(request: web.Request) -> web.Response | None:
        if request.path == "/token":
            assert request.headers["Authorization"].startswith("Basic ")
            assert request.query["scope"] == "repository:some/image:pull"
            return web.json_response({"access_token": "secret", "expires_in": 300})
        if request.headers.get("Authorization") == "Bearer secret":
            return None
        challenge = f'Bearer realm="http://{hostile.host}/token",service="s",scope="repository:some/image:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def credentials(host: str, challenges: list[str]) -> Credentials:
        assert host == hostile.host
        assert challenges
        return Credentials(username="u", secret="p")

    hostile.answers["*"] = answer
    await world.transfers().fetch(reference, Store(name="x", platforms=(HOST,)), access=Access(credentials=credentials))

    assert sum(r.path == "/token" for r in hostile.requests) == 1


async def test_credentials_do_not_follow_redirects_elsewhere(world: World, hostile: Hostile) -> None:
    """Neither the Authorization header nor the caller's own headers reach the host that a blob is redirected to."""
    reference = hostile.put(build(layers=[BIG]))
    elsewhere: list[web.Request] = []

    async def serve(request: web.Request) -> web.Response:
        elsewhere.append(request)
        return web.Response(body=BIG.blob.data)

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    other = f"http://127.0.0.1:{runner.addresses[0][1]}/blob"

    async def answer(request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != "Basic dTpw":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if request.path.endswith(BIG.blob.digest):
            return web.Response(status=307, headers={"Location": other})
        return None

    async def credentials(host: str, challenges: list[str]) -> Credentials:
        return Credentials(username="u", secret="p")

    hostile.answers["*"] = answer
    access = Access(credentials=credentials, headers={"X-Mine": "1"})
    try:
        await world.transfers().fetch(reference, Store(name="x", platforms=(HOST,)), access=access)
    finally:
        await runner.cleanup()

    assert len(elsewhere) == 1
    assert "Authorization" not in elsewhere[0].headers
    assert "X-Mine" not in elsewhere[0].headers
    assert all(request.headers["X-Mine"] == "1" for request in hostile.requests)


async def test_redirects_without_end_are_given_up(world: World, hostile: Hostile) -> None:
    """A redirect to itself ends in an error."""
    reference = hostile.put(build())

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.path})

    hostile.answers["*"] = answer
    with pytest.raises(Unavailable, match="redirects more than"):
        await pull(world, reference)


async def test_compressed_transport_is_refused(world: World, hostile: Hostile) -> None:
    """Content-Encoding is never undone, so that a small answer can't become a large one."""
    reference = hostile.put(build(layers=[BIG]))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(BIG.blob.data), headers={"Content-Encoding": "gzip"})

    hostile.answers[BIG.blob.digest] = answer
    with pytest.raises(Unavailable, match="with encoding 'gzip'"):
        await pull(world, reference)


def _image(document: dict[str, object], media_type: str) -> Image:
    root = Blob(media_type=media_type, data=json.dumps(document).encode())
    return Image(root=root, manifests=(root,), blobs=())


GOOD = build(index=False)
CONFIG = GOOD.config.descriptor() if GOOD.config else {}


@pytest.mark.parametrize(
    ("document", "media_type", "text"),
    [
        ({"schemaVersion": 2, "config": CONFIG, "layers": [], "manifests": []}, OCI_MANIFEST, "both an image manifest"),
        ({"schemaVersion": 2, "manifests": []}, OCI_MANIFEST, "not an image manifest"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": []}, OCI_INDEX, "under the media type of an index"),
        ({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": CONFIG}, OCI_MANIFEST, "its descriptor says"),
        ({"schemaVersion": 1, "fsLayers": []}, OCI_MANIFEST, "schema 1"),
        (
            {"schemaVersion": 2, "config": {**CONFIG, "digest": "sha256:../../etc/passwd"}, "layers": []},
            OCI_MANIFEST,
            "digest .* is not valid",
        ),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": -1}, "layers": []}, OCI_MANIFEST, "-1 bytes"),
        ({"schemaVersion": 2, "manifests": [CONFIG] * 10_001}, OCI_INDEX, "more than 10000"),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": 1 << 40}, "layers": []}, OCI_MANIFEST, "more than 4194304"),
    ],
)
async def test_a_document_that_lies_is_refused(
    world: World, hostile: Hostile, document: dict[str, object], media_type: str, text: str
) -> None:
    """Manifests that mean two things, that are not what they are served as, or out of bounds go no further."""
    reference = hostile.put(_image(document, media_type))

    with pytest.raises(InvalidArgument, match=text):
        await pull(world, reference)

    assert nothing_recorded(world)
    assert world.content.ingests == {}


async def test_a_manifest_served_as_something_else_is_refused(world: World, hostile: Hostile) -> None:
    """The Content-Type of a manifest must be the media type that the index names."""
    image = build()
    reference = hostile.put(image)
    hostile.objects[image.manifests[0].digest] = (OCI_INDEX, image.manifests[0].data)

    with pytest.raises(DataLoss, match="is served as"):
        await pull(world, reference)


async def test_indexes_nested_without_end_are_refused(world: World, hostile: Hostile) -> None:
    """Indexes within indexes are followed to a bounded depth."""
    blob = build(index=False).root
    manifests = [blob]
    for _ in range(12):
        data = json.dumps({"schemaVersion": 2, "manifests": [manifests[-1].descriptor()]}).encode()
        manifests.append(Blob(media_type=OCI_INDEX, data=data))
    reference = hostile.put(Image(root=manifests[-1], manifests=tuple(manifests), blobs=GOOD.blobs))

    with pytest.raises(InvalidArgument, match="nested too deeply"):
        await pull(world, reference)


@pytest.mark.parametrize("whole", [True, False])
async def test_indexes_that_fan_out_are_gone_through_once(world: World, hostile: Hostile, whole: bool) -> None:
    """A few small indexes that name billions of images by repetition cost no more than they have documents, in a pull,
    an export, a push and a conversion; also where their manifest is missing."""
    manifests = [GOOD.root]
    for _ in range(4):
        entries = [manifests[-1].descriptor()] * 300
        data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
        manifests.append(Blob(media_type=OCI_INDEX, data=data))
    image = Image(root=manifests[-1], manifests=tuple(manifests), blobs=GOOD.blobs)
    reference = hostile.put(image)
    if not whole:
        world.put(reference, replace(image, manifests=image.manifests[1:]))
        with pytest.raises(NotFound):
            await anext(aiter(world.transfers().save(Store(name=reference))))
        return

    await pull(world, reference)
    assert len(hostile.requests) < 20
    archive = b"".join([chunk async for chunk in world.transfers().save(Store(name=reference))])
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert {f"blobs/sha256/{one.digest.removeprefix('sha256:')}" for one in manifests} <= set(tar.getnames())
    async with Uploads() as uploads:
        await world.transfers().push(Store(name=reference), uploads.reference)
        assert uploads.manifests["latest"] == image.root.data
    made = await convert(world.content, world.images.images[reference], Conversion(compression="none"))
    assert made.digest in world.content.blobs


async def test_a_tag_that_says_another_digest_than_asked_for_is_refused(world: World, hostile: Hostile) -> None:
    """A registry can't answer a digest with another one."""
    image = build()
    hostile.put(image)
    hostile.answers[image.digest] = status(
        200, **{"Docker-Content-Digest": "sha256:" + "0" * 64, "Content-Type": OCI_INDEX, "Content-Length": "10"}
    )

    with pytest.raises((InvalidArgument, CarinaError)):
        await pull(world, f"{hostile.host}/some/image@{image.digest}")

    assert nothing_recorded(world)


async def test_hosts_toml_sends_a_pull_to_its_mirrors(world: World, hostile: Hostile, tmp_path: Path) -> None:
    """The hosts of hosts.toml are asked in order, with their headers, before the registry itself."""
    hostile.put(build())
    directory = tmp_path / "registry.invalid"
    directory.mkdir()
    (directory / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:1"\n[host."http://127.0.0.1:2"]\n[host."http://{hostile.host}"]\n'
        f'capabilities = ["pull", "resolve"]\n[host."http://{hostile.host}".header]\nX-Mirror = "yes"\n'
    )

    await world.transfers(tmp_path).pull("registry.invalid/some/image:latest", platforms=[HOST])

    assert hostile.requests
    assert all(request.headers["X-Mirror"] == "yes" for request in hostile.requests)
