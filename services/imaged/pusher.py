"""One blob or manifest into a repository: asked for first, mounted from another repository, or uploaded.

HEAD        it is there: nothing is sent
POST mount  the registry takes it from a repository that the content came from
POST, PUT   all of it in one request
GET, PATCH  where that breaks off: in pieces from where the registry says that it ended
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiohttp

from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.errors import CarinaError, DataLoss, NotFound, PermissionDenied, Unauthenticated, Unavailable
from carina.images import manifest
from imaged import blobs
from imaged.patience import Transient, pause
from imaged.registry import Repository, TooLarge

PIECE: Final = 64 << 20
"""Bytes of one request of an upload that goes on in pieces."""
PROGRESS: Final = 64 * 1024
"""Bytes after which an attempt counts as one that got somewhere."""
STALL_SECONDS: Final = 60.0
"""How long a registry may take no byte."""
STORE_SECONDS: Final = 900.0
"""How long a registry may take over storing what it has got."""
_BINARY: Final = {"Content-Type": "application/octet-stream"}

Moved = Callable[[int], None]
Result = TypeVar("Result")


@dataclass(slots=True)
class _Upload:
    """An upload under way."""

    url: str
    """Where it goes on."""
    offset: int = 0
    """How much of it the registry has."""
    piecewise: bool = False


class Pusher:
    """Puts content of `store` into one repository."""

    def __init__(self, repository: Repository, store: ContentStore) -> None:
        """Raises NotFound if no host of the registry takes pushes."""
        self._repository = repository
        self._store = store
        self._host = repository.able("push")[0]

    @property
    def name(self) -> str:
        return f"registry {self._host.authority}, repository {self._repository.reference.repository}"

    async def has(self, descriptor: Descriptor, name: str = "") -> bool:
        """Whether the repository has it; for a manifest with a `name`, whether that is what it is called there."""
        headers = {"Accept": f"{descriptor.media_type}, */*"}

        async def ask() -> bool:
            try:
                async with self._request(self._url(descriptor, name), "HEAD", descriptor, headers=headers) as response:
                    return not name or response.headers.get("Docker-Content-Digest", "") == descriptor.digest
            except NotFound:
                return False

        return await self._patiently(ask)

    async def document(self, descriptor: Descriptor, data: bytes, name: str = "") -> None:
        """Put a manifest or an index under its digest, or under `name`."""
        headers = {"Content-Type": descriptor.media_type}

        async def put() -> str:
            url = self._url(descriptor, name)
            async with self._request(url, "PUT", descriptor, headers=headers, body=lambda: data) as response:
                return response.headers.get("Docker-Content-Digest", "")

        stated = await self._patiently(put)
        if stated and stated != descriptor.digest:
            raise DataLoss(f"{self.name}: manifest {descriptor.digest} was stored as {stated[:100]!r}")

    async def blob(self, descriptor: Descriptor, sources: Sequence[str], moved: Moved) -> bool:
        """Upload a blob; False where the registry took it from one of the repositories `sources`.

        Raises:
            Unavailable, Unauthenticated, PermissionDenied, ResourceExhausted: the registry does not take it.
            NotFound, DataLoss: the store does not have it, or the registry got other bytes.
        """
        upload = await self._patiently(lambda: self._begin(descriptor, sources))
        if upload is None:
            return False
        attempt = 0
        while True:
            attempt += 1
            start = upload.offset
            try:
                await self._upload(upload, descriptor, moved)
                return True
            except TooLarge:
                if upload.piecewise:
                    raise
                again = _Upload("", piecewise=True)
            except Transient as error:
                await pause(self._repository.retry, attempt, error)
                again = await self._state(upload, descriptor)
                if again.offset - start >= PROGRESS:
                    attempt = 0
            upload = again if again.url else await self._restart(descriptor, piecewise=again.piecewise)

    async def _begin(self, descriptor: Descriptor, sources: Sequence[str] = ()) -> _Upload | None:
        """Open an upload; None where the blob was mounted."""
        url = f"{self._base}/blobs/uploads/"
        for source in sources[:1]:
            scope = f"repository:{source}:pull"
            try:
                query = f"?mount={descriptor.digest}&from={source}"
                async with self._request(f"{url}{query}", "POST", descriptor, also=scope) as response:
                    return None if response.status == 201 else _Upload(self._location(response))
            except (Unauthenticated, PermissionDenied, NotFound):
                pass  # what may not be read there can be uploaded here
        async with self._request(url, "POST", descriptor) as response:
            return _Upload(self._location(response))

    async def _restart(self, descriptor: Descriptor, *, piecewise: bool) -> _Upload:
        upload = await self._patiently(lambda: self._begin(descriptor))
        assert upload is not None
        upload.piecewise = piecewise
        return upload

    async def _state(self, upload: _Upload, descriptor: Descriptor) -> _Upload:
        """How much of an upload arrived; one without URL where it can't go on."""
        lost = _Upload("", piecewise=upload.piecewise)
        try:
            async with self._request(upload.url, "GET", descriptor) as response:
                first, _, last = response.headers.get("Range", "").removeprefix("bytes=").partition("-")
                # 0-0 is said of nothing at all as well.
                if first != "0" or not last.isdigit() or not 0 < int(last) < descriptor.size:
                    return lost
                return _Upload(self._location(response, upload.url), int(last) + 1, piecewise=True)
        except CarinaError:
            return lost

    async def _upload(self, upload: _Upload, descriptor: Descriptor, moved: Moved) -> None:
        async with blobs.opened(self._store, descriptor) as blob:
            while upload.piecewise and upload.offset < descriptor.size:
                end = min(upload.offset + PIECE, descriptor.size)
                body = _Body(blob, upload.offset, end, moved)
                headers = {**_BINARY, **body.headers, "Content-Range": f"{upload.offset}-{end - 1}"}
                async with self._sending(upload.url, "PATCH", descriptor, headers, body) as response:
                    upload.url, upload.offset = self._location(response, upload.url), end
            mark = "&" if "?" in upload.url else "?"
            rest = _Body(blob, upload.offset, descriptor.size, moved)
            url = f"{upload.url}{mark}digest={descriptor.digest}"
            async with self._sending(url, "PUT", descriptor, {**_BINARY, **rest.headers}, rest):
                pass

    @contextlib.asynccontextmanager
    async def _sending(
        self, url: str, method: str, descriptor: Descriptor, headers: Mapping[str, str], body: "_Body"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request with a part of a blob; a failure of the store is told, not what it does to the request."""
        try:
            async with (
                body.watched(),
                self._request(url, method, descriptor, headers=headers, body=body, wait=STORE_SECONDS) as response,
            ):
                yield response
        except TimeoutError as error:
            raise Transient(f"{self.name}: no bytes of blob {descriptor.digest} are taken") from error
        except Unavailable:
            if body.failure is not None:
                raise body.failure from None
            raise
        except DataLoss as error:
            raise Transient(f"{self.name}: blob {descriptor.digest} can't go on where it was") from error

    @contextlib.asynccontextmanager
    async def _request(
        self, url: str, method: str, descriptor: Descriptor, **how: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{'manifest' if _is_document(descriptor) else 'blob'} {descriptor.digest}"
        async with self._repository.request(self._host, url, what=what, method=method, **how) as response:
            yield response

    def _location(self, response: aiohttp.ClientResponse, otherwise: str = "") -> str:
        location = response.headers.get("Location", "")
        if location:
            return self._repository.target(str(response.url), location, self._host)
        if otherwise:
            return otherwise
        raise Unavailable(f"{self.name}: the registry does not say where an upload goes")

    async def _patiently(self, act: Callable[[], Awaitable[Result]]) -> Result:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await act()
            except Transient as error:
                await pause(self._repository.retry, attempt, error)

    @property
    def _base(self) -> str:
        return f"{self._host.base}/{self._repository.reference.repository}"

    def _url(self, descriptor: Descriptor, name: str) -> str:
        kind = "manifests" if _is_document(descriptor) else "blobs"
        return self._repository.url(self._host, kind, name or descriptor.digest)


class _Body:
    """Bytes of a blob as the body of a request, read when the connection takes them."""

    def __init__(self, blob: blobs.Blob, start: int, end: int, moved: Moved) -> None:
        self.failure: CarinaError | None = None
        self._blob = blob
        self._start = start
        self._end = end
        self._moved = moved
        self._timeout: asyncio.Timeout | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Length": str(self._end - self._start)}

    def __call__(self) -> "AsyncIterator[bytes] | bytes":
        return _Bytes(self) if self._end > self._start else b""

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Raises TimeoutError when nothing is taken any more."""
        async with asyncio.timeout(STALL_SECONDS) as self._timeout:
            yield

    async def read(self, offset: int) -> bytes:
        """The bytes after `offset` of the part; empty at its end."""
        at = self._start + offset
        self._moved(at)
        if self._timeout and not self._timeout.expired():
            seconds = STALL_SECONDS if at < self._end else STALL_SECONDS + STORE_SECONDS
            self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)
        if at >= self._end:
            return b""
        try:
            return await self._blob.read(at, min(blobs.PIECE, self._end - at))
        except CarinaError as error:
            self.failure = error
            raise


class _Bytes:
    """One sending of a body. Not a generator: nothing has to be closed when a request is given up."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._sent = 0

    def __aiter__(self) -> "_Bytes":
        return self

    async def __anext__(self) -> bytes:
        piece = await self._body.read(self._sent)
        if not piece:
            raise StopAsyncIteration
        self._sent += len(piece)
        return piece


def _is_document(descriptor: Descriptor) -> bool:
    return manifest.is_index(descriptor.media_type) or manifest.is_manifest(descriptor.media_type)
