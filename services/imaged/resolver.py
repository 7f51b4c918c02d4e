"""A reference becomes a descriptor: media type, digest and size of what the registry has under that name."""

import asyncio
from functools import partial
from typing import Final

import aiohttp

from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError, InvalidArgument
from carina.images import manifest
from carina.images.manifest import Entry
from carina.reference import Reference
from imaged.failures import FAILURES, broken
from imaged.fetcher import Fetcher, Pace
from imaged.hosts import Host
from imaged.patience import Transient, patiently
from imaged.pusher import Pusher
from imaged.referrers import referrers
from imaged.registry import Repository
from imaged.sources import Destination, Source

ACCEPT: Final = ", ".join(
    (manifest.DOCKER_MANIFEST, manifest.DOCKER_INDEX, manifest.OCI_MANIFEST, manifest.OCI_INDEX, "*/*")
)


class RegistryResolver:
    """A reference in a registry."""

    def __init__(self, repository: Repository, pace: Pace | None = None) -> None:
        self._repository = repository
        self._pace = pace

    @property
    def title(self) -> str:
        return f"OCI Registry ({self.reference})"

    @property
    def reference(self) -> Reference:
        return self._repository.reference

    async def resolve(self) -> Descriptor:
        return await resolve(self._repository)

    def source(self, slots: asyncio.Semaphore) -> Source:
        return Fetcher(self._repository, pace=self._pace, slots=slots)

    def destination(self, store: ContentStore) -> Destination:
        return Pusher(self._repository, store)

    async def referrers(self, digest: Digest, artifact_type: str = "") -> list[Entry]:
        return await referrers(self._repository, digest, artifact_type)


async def resolve(repository: Repository) -> Descriptor:
    """Ask the hosts in turn, by HEAD as registries count it less, by GET where that does not tell.

    Raises:
        NotFound: no host has it.
        InvalidArgument: what is there is not an image, or not what the reference's digest says.
        Unavailable, Unauthenticated, PermissionDenied, ResourceExhausted: what the last host says.
    """
    hosts = repository.able("resolve")
    for host in hosts:
        try:
            return await patiently(repository.patience(host, hosts), partial(_resolve, repository, host))
        except CarinaError as error:
            repository.failed(host, hosts, error)
    raise AssertionError("unreachable")


async def _resolve(repository: Repository, host: Host) -> Descriptor:
    reference = repository.reference
    what = f"digest {reference.digest}" if reference.digest else f"tag {reference.tag}"
    url = repository.url(host, "manifests", reference.object)
    async with repository.request(host, url, what=what, method="HEAD", headers={"Accept": ACCEPT}) as response:
        found = _from_headers(response, repository)
    if found is None:
        async with repository.request(host, url, what=what, headers={"Accept": ACCEPT}) as response:
            found = await _from_body(response, repository)
    if reference.digest and found.digest != reference.digest:
        raise InvalidArgument(
            f"registry {host.authority} answers with {found.digest} for {reference.digest}"
            f" of repository {reference.repository}"
        )
    _check(found, repository)
    return found


def _from_headers(response: aiohttp.ClientResponse, repository: Repository) -> Descriptor | None:
    media_type = _media_type(response)
    digest = response.headers.get("Docker-Content-Digest", "") or str(repository.reference.digest or "")
    if not (manifest.is_index(media_type) or manifest.is_manifest(media_type)) or not digest:
        return None
    if not response.content_length:
        return None
    return Descriptor(media_type=media_type, digest=Digest(digest), size=response.content_length)


async def _from_body(response: aiohttp.ClientResponse, repository: Repository) -> Descriptor:
    data = bytearray()
    try:
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > manifest.MAX_SIZE:
                raise InvalidArgument(f"manifest of {repository.reference} is larger than {manifest.MAX_SIZE} bytes")
    except FAILURES as error:
        raise Transient(
            f"registry {response.url.host}: the manifest of {repository.reference} breaks off: {broken(error)}"
        ) from error
    body = bytes(data)
    stated = response.headers.get("Docker-Content-Digest", "") or str(repository.reference.digest or "")
    digest = Digest.of(body, Digest(stated).algorithm if stated else "sha256")
    if stated and digest != stated:
        raise InvalidArgument(f"the manifest of {repository.reference} is {digest}, the registry says {stated}")
    media_type = _media_type(response)
    if not (manifest.is_index(media_type) or manifest.is_manifest(media_type)):
        media_type = manifest.media_type_of(body) or media_type
    return Descriptor(media_type=media_type, digest=digest, size=len(body))


def _media_type(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()


def _check(found: Descriptor, repository: Repository) -> None:
    if found.media_type == manifest.DOCKER_SCHEMA1:
        raise InvalidArgument(f"{repository.reference} is an image of Docker's schema 1, which is not supported")
    if not (manifest.is_index(found.media_type) or manifest.is_manifest(found.media_type)):
        raise InvalidArgument(f"{repository.reference} is of media type {found.media_type[:100]!r}, not an image")
    if found.size > manifest.MAX_SIZE:
        raise InvalidArgument(
            f"the manifest of {repository.reference} has {found.size} bytes, more than {manifest.MAX_SIZE}"
        )
