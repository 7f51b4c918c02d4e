"""A registry that takes pushes, and breaks off, limits or refuses as a test wants it to."""

import hashlib
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web


class Uploads:
    """Serves for the block: `async with Uploads() as uploads: ...`."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.sessions: dict[str, bytearray] = {}
        self.requests: list[tuple[str, int]] = []
        """Method and length of each request with a body."""
        self.break_after: dict[str, int] = {}
        """Digest of a blob -> bytes after which the connection is broken, once."""
        self.limit = 1 << 30
        self.answer: Callable[[web.Request], web.Response | None] = lambda request: None
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def reference(self) -> str:
        return f"127.0.0.1:{self._port}/some/image:latest"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if (special := self.answer(request)) is not None:
            return special
        kind, name = request.path.split("/")[-2:]
        if kind == "uploads":
            return await self._upload(request, name)
        if kind == "manifests" and request.method == "PUT":
            data = await request.read()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.manifests[name] = self.manifests[digest] = data
            return web.Response(status=201, headers={"Docker-Content-Digest": digest})
        found = (self.blobs if kind == "blobs" else self.manifests).get(name)
        if found is None:
            return web.Response(status=404)
        digest = f"sha256:{hashlib.sha256(found).hexdigest()}"
        return web.Response(body=found, headers={"Docker-Content-Digest": digest})

    async def _upload(self, request: web.Request, name: str) -> web.StreamResponse:
        if request.method == "POST":
            name = secrets.token_hex(8)
            self.sessions[name] = bytearray()
            return web.Response(status=202, headers={"Location": f"/v2/some/image/blobs/uploads/{name}"})
        session = self.sessions[name]
        state = {"Location": request.path, "Range": f"0-{max(0, len(session) - 1)}"}
        if request.method == "GET":
            return web.Response(status=204, headers=state)
        length = request.content_length or 0
        if length > self.limit:
            return web.Response(status=413)
        self.requests.append((request.method, length))
        if (
            request.method == "PATCH"
            and request.headers["Content-Range"] != f"{len(session)}-{len(session) + length - 1}"
        ):
            return web.Response(status=416, headers=state)
        broken = self.break_after.pop(request.query.get("digest", ""), 0)
        async for chunk in request.content.iter_any():
            session += chunk[: broken - len(session)] if broken else chunk
            if broken and len(session) >= broken:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
        if request.method == "PATCH":
            return web.Response(status=202, headers={"Location": request.path})
        digest = f"sha256:{hashlib.sha256(session).hexdigest()}"
        if digest != request.query["digest"]:
            return web.Response(status=400)
        self.blobs[digest] = bytes(session)
        return web.Response(status=201)
