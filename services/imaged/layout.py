"""A directory with an OCI image layout as a place where images come from (OCI image specification, image-layout.md).

oci-layout      {"imageLayoutVersion": "1.0.0"}
index.json      manifests, with their names as annotations
blobs/sha256/   content
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final, NoReturn

from carina.aio.threads import in_thread
from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import DataLoss, InvalidArgument, NotFound, Unavailable, Unimplemented
from carina.images import manifest
from carina.images.manifest import Entry
from carina.reference import Reference
from imaged.sources import Destination, Source

PIECE: Final = 1 << 20
REF_NAME: Final = "org.opencontainers.image.ref.name"
IMAGE_NAME: Final = "io.containerd.image.name"
MAX_REFERRERS: Final = 1_000


class Layout:
    """One reference in a layout: by its whole name, by its tag, or by its digest."""

    def __init__(self, directory: Path, reference: Reference) -> None:
        self._directory = directory
        self._reference = reference

    @property
    def name(self) -> str:
        return f"layout {self._directory}"

    @property
    def title(self) -> str:
        return f"OCI Layout ({self._directory})"

    @property
    def reference(self) -> Reference:
        return self._reference

    async def resolve(self) -> Descriptor:
        entries = [entry.descriptor for entry in await in_thread(self._entries)]
        reference = self._reference
        for entry in entries:
            if reference.digest and entry.digest == reference.digest:
                return entry
        if not reference.digest:
            for key, wanted in ((IMAGE_NAME, str(reference)), (REF_NAME, str(reference)), (REF_NAME, reference.tag)):
                found = [entry for entry in entries if entry.annotations.get(key) == wanted]
                if found:
                    return found[0]
        raise NotFound(f"{self.name} has no {reference}")

    def source(self, slots: asyncio.Semaphore) -> Source:
        return self

    def destination(self, store: ContentStore) -> Destination:
        raise Unimplemented(f"pushing into {self.name}; exporting makes layouts")

    async def referrers(self, digest: Digest, artifact_type: str = "") -> list[Entry]:
        found = []
        for one in (await in_thread(self._entries))[:MAX_REFERRERS]:
            entry = one.descriptor
            if not manifest.is_manifest(entry.media_type) or entry.size > manifest.MAX_SIZE:
                continue
            document: Any = json.loads(await self.read(entry))
            subject = document.get("subject") if isinstance(document, dict) else None
            if isinstance(subject, dict) and subject.get("digest") == digest:
                kind = document.get("artifactType") or document.get("config", {}).get("mediaType", "")
                if artifact_type in ("", kind):
                    found.append(Entry(descriptor=entry, artifact_type=str(kind)))
        return found

    def distrust(self, descriptor: Descriptor) -> bool:
        return False

    async def read(self, descriptor: Descriptor) -> bytes:
        return b"".join([chunk async for chunk in self.stream(descriptor)])

    async def stream(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        path = self._directory / "blobs" / descriptor.digest.algorithm / descriptor.digest.hex
        while True:
            piece, size = await in_thread(self._piece, path, offset, descriptor)
            if size != descriptor.size:
                raise DataLoss(
                    f"{self.name}: content {descriptor.digest} has {size} bytes there,"
                    f" its descriptor says {descriptor.size}"
                )
            if not piece:
                return
            offset += len(piece)
            yield piece

    def _piece(self, path: Path, offset: int, descriptor: Descriptor) -> tuple[bytes, int]:
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(offset)
                return file.read(PIECE), size
        except FileNotFoundError as error:
            raise NotFound(f"{self.name} has no content {descriptor.digest}") from error
        except OSError as error:
            raise Unavailable(f"{self.name}: content {descriptor.digest} can't be read: {error.strerror}") from error

    def _entries(self) -> tuple[manifest.Entry, ...]:
        self._document("oci-layout")
        index = manifest.parse(
            data := self._document("index.json"),
            Descriptor(media_type=manifest.OCI_INDEX, digest=Digest.of(data), size=len(data)),
        )
        if not isinstance(index, manifest.Index):
            self._fail("index.json", "is not an index")
        return index.manifests

    def _document(self, name: str) -> bytes:
        try:
            with (self._directory / name).open("rb") as file:
                data = file.read(manifest.MAX_SIZE + 1)
        except OSError as error:
            raise InvalidArgument(f"{self.name} is not an OCI image layout: {name}: {error.strerror}") from error
        if len(data) > manifest.MAX_SIZE:
            self._fail(name, f"is larger than {manifest.MAX_SIZE} bytes")
        return data

    def _fail(self, name: str, problem: str) -> NoReturn:
        raise InvalidArgument(f"{self.name}: {name} {problem}")
