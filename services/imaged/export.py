"""Images into archives: an OCI image layout in a tar stream, with what `docker load` wants to see besides."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from carina import context
from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument, NotFound
from carina.images import manifest
from carina.images.manifest import Index
from carina.platforms import Matcher, Platform, host
from carina.transfer import Store
from imaged.archive import IMAGE_NAME, REF_NAME, described
from imaged.blobs import chunks
from imaged.fetch import MAX_DOCUMENTS, Wish, choose, read_blob
from imaged.ingest import CALL_SECONDS
from imaged.progress import Tracker
from imaged.pull import Stores
from imaged.tarstream import END, header, padding


async def save(
    stores: Stores,
    source: Store,
    platforms: Sequence[Platform],
    *,
    docker: bool = True,
    foreign: bool = True,
    tracker: Tracker,
) -> AsyncGenerator[bytes, None]:
    """The images of `source` as an OCI layout in a tar stream, with what `docker load` wants to see besides."""
    tracker.say("Exporting")
    wanted = [*([source.name] if source.name else []), *(one.name for one in source.extra_references)]
    if not wanted:
        raise InvalidArgument("the source names no image")
    blobs: dict[Digest, Descriptor] = {}
    entries: list[dict[str, Any]] = []
    compatible: list[dict[str, Any]] = []
    for name in wanted:
        with context.deadline(CALL_SECONDS):
            image = await stores.images.get(name)
        export = _Export(stores.content, Wish(platforms=tuple(platforms)), name)
        await export.walk(image.target, 0)
        blobs |= export.blobs
        tag = name.partition("@")[0].rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
        annotations = {**image.target.annotations, IMAGE_NAME: name, **({REF_NAME: tag} if tag else {})}
        entries.append({**described(image.target), "annotations": annotations})
        compatible += export.docker(name)
    index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": entries}
    yield _document("oci-layout", {"imageLayoutVersion": "1.0.0"})
    yield _document("index.json", index)
    if docker and compatible:
        yield _document("manifest.json", compatible)
    for descriptor in blobs.values():
        if not foreign and manifest.is_foreign(descriptor.media_type):
            continue
        tracker.step("exporting", descriptor, 0)
        yield header(_path(descriptor), descriptor.size)
        async with aclosing(chunks(stores.content, descriptor)) as pieces:
            async for piece in pieces:
                yield piece
        yield padding(descriptor.size)
        tracker.step("complete", descriptor)
    yield END
    tracker.say("Completed export")


class _Export:
    """Goes through one image and notes the content to write."""

    def __init__(self, store: ContentStore, wish: Wish, name: str) -> None:
        self._store = store
        self._wish = wish
        self._name = name
        self._images: list[tuple[Platform, Descriptor, tuple[Descriptor, ...]]] = []
        self._walked: dict[Digest, NotFound | None] = {}
        """With what was missing below it."""
        self.blobs: dict[Digest, Descriptor] = {}

    async def walk(self, descriptor: Descriptor, depth: int) -> None:
        """Once for each document: few small indexes could name billions of descriptors."""
        if descriptor.digest in self._walked:
            known = self._walked[descriptor.digest]
            if known is not None:
                raise known
            return
        if len(self._walked) >= MAX_DOCUMENTS:
            raise InvalidArgument(f"image {self._name}: there are too many manifests")
        self._walked[descriptor.digest] = None
        try:
            await self._walk(descriptor, depth)
        except NotFound as error:
            self._walked[descriptor.digest] = error
            raise

    async def _walk(self, descriptor: Descriptor, depth: int) -> None:
        data = await read_blob(self._store, descriptor)
        if data is None:
            raise NotFound(f"image {self._name}: content {descriptor.digest} is not there")
        if depth > manifest.MAX_DEPTH:
            raise InvalidArgument(f"image {self._name}: indexes are nested too deeply")
        document = manifest.parse(data, descriptor)
        self.blobs[descriptor.digest] = descriptor
        if isinstance(document, Index):
            await self._children(document, depth)
            return
        for child in document.children:
            with context.deadline(CALL_SECONDS):
                await self._store.info(child.digest)
            self.blobs[child.digest] = child
        config = await read_blob(self._store, document.config)
        if config is not None and manifest.is_config(document.config.media_type):
            platform = manifest.parse_config(config, document.config).platform
            self._images.append((platform, document.config, document.layers))

    async def _children(self, document: Index, depth: int) -> None:
        count, missing = len(self._images), None
        for child, _ in choose(document, self._wish, name=self._name):
            try:
                await self.walk(child, depth + 1)
            except NotFound as error:
                # A pull of one platform leaves the others out; so does an export of all that is there.
                self.blobs.pop(child.digest, None)
                missing = error
        if missing is not None and count == len(self._images):
            raise missing

    def docker(self, name: str) -> list[dict[str, Any]]:
        """The entry of manifest.json, of the image that suits this machine best."""
        matcher = Matcher.only(host())
        ranked = [(matcher.rank(one[0]), at) for at, one in enumerate(self._images)]
        chosen = min(((rank, at) for rank, at in ranked if rank is not None), default=None)
        if chosen is None:
            return []
        _, config, layers = self._images[chosen[1]]
        return [{"Config": _path(config), "RepoTags": [name], "Layers": [_path(layer) for layer in layers]}]


def _document(name: str, value: object) -> bytes:
    data = json.dumps(value).encode()
    return header(name, len(data)) + data + padding(len(data))


def _path(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"
