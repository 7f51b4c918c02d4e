"""A pull's surroundings: stores in memory, and a registry that behaves as each test wants it to."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from carina.content import Info
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.images import Image as StoredImage
from imaged.patience import Retry
from imaged.pull import Stores
from imaged.transfer import Timeouts, Transfers
from support.image import Image
from support.stores import HashingDiffer, MemoryContent, MemoryImages, MemoryLeases, MemorySnapshotter

Answer = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""None: as if the test had put nothing in the way."""


@dataclass
class World:
    """Where a pull puts things."""

    content: MemoryContent = field(default_factory=MemoryContent)
    images: MemoryImages = field(default_factory=MemoryImages)
    leases: MemoryLeases = field(default_factory=MemoryLeases)
    snapshotter: MemorySnapshotter = field(default_factory=MemorySnapshotter)

    def __post_init__(self) -> None:
        self.differ = HashingDiffer(self.content)

    def put(self, name: str, image: Image) -> None:
        """Have an image without a pull."""
        for blob in (*image.blobs, *image.manifests):
            digest = Digest(blob.digest)
            self.content.blobs[digest] = blob.data
            self.content.infos[digest] = Info(digest=digest, size=blob.size)
        root = Descriptor(media_type=image.root.media_type, digest=Digest(image.digest), size=image.root.size)
        self.images.images[name] = StoredImage(name=name, target=root)

    def transfers(self, config_path: Path | None = None) -> Transfers:
        stores = Stores(
            content=self.content,
            images=self.images,
            leases=self.leases,
            snapshotter=lambda name: self.snapshotter,
            differ=self.differ,
        )
        return Transfers(
            stores,
            config_path=config_path,
            retry=Retry(attempts=3, first=0.01, longest=0.05),
            timeouts=Timeouts(connect=2, stall=0.5),
        )


class Hostile:
    """A registry that serves one image, save where a test puts an answer of its own."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, bytes]] = {}
        self.answers: dict[str, Answer] = {}
        self.requests: list[web.Request] = []
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def put(self, image: Image, tag: str = "latest") -> str:
        for blob in image.blobs:
            self.objects[blob.digest] = ("application/octet-stream", blob.data)
        for blob in image.manifests:
            self.objects[blob.digest] = (blob.media_type, blob.data)
        self.objects[tag] = (image.root.media_type, image.root.data)
        return f"{self.host}/some/image:{tag}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        name = request.path.rpartition("/")[2]
        special = self.answers.get(name) or self.answers.get("*")
        if special and (response := await special(request)) is not None:
            return response
        if name not in self.objects:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        media_type, data = self.objects[name]
        start, end = span(request, len(data))
        headers = {"Content-Type": media_type}
        if "Range" in request.headers:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return web.Response(status=206 if "Range" in request.headers else 200, body=data[start:end], headers=headers)


def span(request: web.Request, size: int) -> tuple[int, int]:
    """What a request asks for of `size` bytes."""
    first, _, last = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1, size) if last else size
