"""The bytes of a blob or manifest from a registry, as a stream that survives broken connections.

A connection that breaks is resumed by Range where it stopped; the caller sees one stream of at most the descriptor's
size. What the bytes are is checked where they are stored: by the content store, against the descriptor's digest.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import aiohttp

from carina.descriptor import Descriptor
from carina.errors import CarinaError, DataLoss, NotFound, Unavailable
from carina.images import manifest
from imaged.hosts import Host
from imaged.registry import Repository, Transient, pause

PROGRESS: Final = 64 * 1024
"""Bytes after which a connection counts as one that got somewhere, so that attempts are counted anew."""


class Fetcher:
    """Content of one repository."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    @property
    def source(self) -> str:
        """How errors name where the bytes come from."""
        reference = self.repository.reference
        return f"registry {reference.domain}, repository {reference.repository}"

    async def read(self, descriptor: Descriptor) -> bytes:
        """A whole document, which the caller has found small enough."""
        data = bytearray()
        async with aclosing(self.stream(descriptor)) as chunks:
            async for chunk in chunks:
                data += chunk
        return bytes(data)

    async def stream(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on.

        Raises:
            NotFound: no host has it.
            DataLoss: the registry has fewer bytes, or more, than the descriptor says.
            Unavailable, Unauthenticated, PermissionDenied, ResourceExhausted: what the last host says.
        """
        failure: CarinaError | None = None
        for host in self.repository.able("pull"):
            try:
                async with aclosing(self._resuming(host, descriptor, offset)) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        yield chunk
                return
            except (NotFound, Unavailable) as error:
                failure = error if failure is None or not isinstance(error, NotFound) else failure
        assert failure is not None
        raise failure

    async def _resuming(self, host: Host, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        attempt = 0
        while offset < descriptor.size or (attempt == 0 and descriptor.size == 0):
            attempt += 1
            start = offset
            try:
                async with aclosing(self._once(host, descriptor, offset)) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        if offset > descriptor.size:
                            raise DataLoss(f"{self._name(descriptor)} has more than its {descriptor.size} bytes")
                        yield chunk
                if offset < descriptor.size:
                    raise Transient(f"{self._name(descriptor)} ends after {offset} of {descriptor.size} bytes")
            except Transient as error:
                if offset - start >= PROGRESS:
                    attempt = 1
                await pause(self.repository.retry, attempt, error)

    async def _once(self, host: Host, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        """One connection's worth of bytes from `offset` on."""
        document = manifest.is_index(descriptor.media_type) or manifest.is_manifest(descriptor.media_type)
        url = self.repository.url(host, "manifests" if document else "blobs", descriptor.digest)
        headers = {"Accept": f"{descriptor.media_type}, */*"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        what = f"{'manifest' if document else 'blob'} {descriptor.digest}"
        async with self.repository.request(host, url, what=what, headers=headers) as response:
            if document:
                self._check_type(response, descriptor)
            skip = self._skip(response, offset, descriptor)
            try:
                async for chunk in response.content.iter_any():
                    if skip >= len(chunk):
                        skip -= len(chunk)
                        continue
                    yield chunk[skip:] if skip else chunk
                    skip = 0
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                reason = "no bytes arrive" if isinstance(error, TimeoutError) else "the connection breaks"
                raise Transient(f"{self._name(descriptor)} can't be read to its end: {reason}") from error

    def _skip(self, response: aiohttp.ClientResponse, offset: int, descriptor: Descriptor) -> int:
        """How many bytes of the answer come before `offset`: none where the registry heeds Range, else all of them."""
        if not offset or response.status != 206:
            return offset
        start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if start != str(offset):
            raise Unavailable(f"{self._name(descriptor)}: asked from byte {offset} on, the registry sends other bytes")
        return 0

    def _check_type(self, response: aiohttp.ClientResponse, descriptor: Descriptor) -> None:
        stated = response.headers.get("Content-Type", "").partition(";")[0].strip()
        generic = ("", "application/json", "application/octet-stream", "text/plain")
        if stated not in generic and stated != descriptor.media_type:
            raise DataLoss(
                f"{self._name(descriptor)} is served as {stated[:100]!r},"
                f" its descriptor says {descriptor.media_type[:100]!r}"
            )

    def _name(self, descriptor: Descriptor) -> str:
        return f"content {descriptor.digest} from {self.source}"
