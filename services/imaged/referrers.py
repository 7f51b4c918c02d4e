"""What refers to content in a registry, such as signatures (OCI distribution specification, "Listing Referrers").

A registry without that listing may have an index under the tag `sha256-HEX` instead.
"""

from functools import partial
from typing import Final
from urllib.parse import quote, urljoin

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import CarinaError, DataLoss, InvalidArgument, NotFound
from carina.images import manifest
from carina.images.manifest import Entry, Index
from imaged.failures import FAILURES, broken
from imaged.hosts import Host
from imaged.patience import Transient, patiently
from imaged.registry import Repository

MAX_PAGES: Final = 32
MAX_FOUND: Final = 10_000


async def referrers(repository: Repository, digest: Digest, artifact_type: str = "") -> list[Entry]:
    """Those of one type, or all; none where the registry knows of none.

    Raises:
        InvalidArgument, DataLoss: what the registry answers is not an index.
        Unavailable, Unauthenticated, PermissionDenied, ResourceExhausted: what the last host says.
    """
    hosts = repository.able("pull")
    for host in hosts:
        try:
            return await _of(repository, host, hosts, digest, artifact_type)
        except CarinaError as error:
            repository.failed(host, hosts, error)
    raise AssertionError("unreachable")


async def _of(repository: Repository, host: Host, hosts: list[Host], digest: Digest, artifact_type: str) -> list[Entry]:
    url = repository.url(host, "referrers", digest)
    if artifact_type:
        url += f"{'&' if '?' in url else '?'}artifactType={quote(artifact_type, safe='')}"
    found: list[Entry] = []
    for _ in range(MAX_PAGES):
        try:
            page, following = await patiently(repository.patience(host, hosts), partial(_page, repository, host, url))
        except NotFound:
            tagged = repository.url(host, "manifests", f"{digest.algorithm}-{digest.hex}")
            try:
                page, following = await _page(repository, host, tagged)
            except NotFound:
                return found
        found += [entry for entry in page.manifests if artifact_type in ("", entry.artifact_type or artifact_type)]
        if not following or len(found) > MAX_FOUND:
            break
        url = repository.target(url, following, host)
    return found


async def _page(repository: Repository, host: Host, url: str) -> tuple[Index, str]:
    headers = {"Accept": manifest.OCI_INDEX}
    async with repository.request(host, url, what="list of referrers", headers=headers) as response:
        data = bytearray()
        try:
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > manifest.MAX_SIZE:
                    raise InvalidArgument(f"registry {host.authority}: a list of referrers is too large")
        except FAILURES as error:
            raise Transient(f"registry {host.authority}: a list of referrers breaks off: {broken(error)}") from error
        following = response.links.get("next")
        link = following.get("url") if following else None
    body = bytes(data)
    found = manifest.parse(body, Descriptor(media_type=manifest.OCI_INDEX, digest=Digest.of(body), size=len(body)))
    if not isinstance(found, Index):
        raise DataLoss(f"registry {host.authority}: the list of referrers is not an index")
    return found, urljoin(url, str(link)) if link else ""
