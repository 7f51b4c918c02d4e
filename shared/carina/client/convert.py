"""Images in another form: layers compressed in another way, OCI's media types for Docker's, fewer platforms.

What is not to be changed keeps its bytes, and an image of which nothing is to be changed stays itself.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from carina import context
from carina.content import ContentStore
from carina.content.recompress import recompressed
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, InvalidArgument, NotFound
from carina.images import Image, manifest
from carina.labels import GC_REF_CONTENT
from carina.platforms import Matcher, Platform

CALL_SECONDS: Final = 60.0
MAX_DEPTH: Final = 4
"""Indexes within indexes."""
_SUFFIXES: Final = {"none": "", "gzip": "gzip", "zstd": "zstd"}
_OCI: Final = {
    manifest.DOCKER_INDEX: manifest.OCI_INDEX,
    manifest.DOCKER_MANIFEST: manifest.OCI_MANIFEST,
    manifest.DOCKER_CONFIG: manifest.OCI_CONFIG,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What to make of an image."""

    compression: str = ""
    """`none`, `gzip` or `zstd`; empty: as it is."""
    oci: bool = False
    """OCI's media types in place of Docker's. Implied by zstd, for which Docker has none."""
    platforms: tuple[Platform, ...] = ()
    """All where empty."""


async def convert(content: ContentStore, image: Image, wish: Conversion) -> Descriptor:
    """Store the converted image and return what it is now; the caller has a lease.

    Raises:
        NotFound: content of the image is not here, or nothing of it is for the platforms.
        InvalidArgument: there is no such compression, or the image is malformed.
    """
    if wish.compression and wish.compression not in _SUFFIXES:
        raise InvalidArgument(f"compression {wish.compression!r} is none of {', '.join(_SUFFIXES)}")
    return await _Converter(content, wish, image.name).document(image.target)


class _Converter:
    def __init__(self, content: ContentStore, wish: Conversion, name: str) -> None:
        self._content = content
        self._wish = wish
        self._name = name
        self._oci = wish.oci or wish.compression == "zstd"
        self._matcher = Matcher.exactly(*wish.platforms)
        self._converted: dict[tuple[Digest, str], Descriptor] = {}
        self._turns = asyncio.Semaphore(os.cpu_count() or 1)

    async def document(self, old: Descriptor, depth: int = 0) -> Descriptor:
        from carina.client.image import read

        if depth > MAX_DEPTH:
            raise InvalidArgument(f"image {self._name}: indexes are nested deeper than {MAX_DEPTH}")
        with context.deadline(CALL_SECONDS):
            data = await read(self._content, old)
            labels = dict((await self._content.info(old.digest)).labels)
        parsed = manifest.parse(data, old)
        document: dict[str, Any] = json.loads(data)
        media_type = _OCI.get(old.media_type, old.media_type) if self._oci else old.media_type
        if isinstance(parsed, manifest.Index):
            changed = await self._index(document, parsed, labels, depth)
        else:
            changed = await self._manifest(document, parsed, labels)
        if media_type != old.media_type:
            document["mediaType"] = media_type
            changed = True
        return await self._write(document, media_type, labels) if changed else old

    async def _index(self, document: dict[str, Any], index: manifest.Index, labels: dict[str, str], depth: int) -> bool:
        entries, changed = [], False
        for at, (entry, raw) in enumerate(zip(index.manifests, document["manifests"], strict=True)):
            old = entry.descriptor
            if entry.platform is not None and not self._matcher.matches(entry.platform):
                _forget(labels, old.digest)
                changed = True
                continue
            new = old
            if manifest.is_index(old.media_type) or manifest.is_manifest(old.media_type):
                # Once: few small indexes could name billions of descriptors.
                key = old.digest, old.media_type
                if key not in self._converted:
                    self._converted[key] = await self.document(old, depth + 1)
                new = self._converted[key]
            changed = _replace(raw, old, new, labels, f"m.{at}") or changed
            entries.append(raw)
        if not entries:
            wanted = ", ".join(str(platform) for platform in self._wish.platforms)
            raise NotFound(f"image {self._name} has nothing for platform {wanted}")
        document["manifests"] = entries
        return changed

    async def _manifest(self, document: dict[str, Any], parsed: manifest.Manifest, labels: dict[str, str]) -> bool:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._layer(one), name=f"convert {one.digest}") for one in parsed.layers]
        changed = False
        for at, (old, raw, task) in enumerate(zip(parsed.layers, document.get("layers") or [], tasks, strict=True)):
            changed = _replace(raw, old, task.result(), labels, f"l.{at}") or changed
        if self._oci and parsed.config.media_type in _OCI:
            document["config"]["mediaType"] = _OCI[parsed.config.media_type]
            changed = True
        return changed

    async def _layer(self, old: Descriptor) -> Descriptor:
        """A layer in its new form."""
        base, kind = _split(old.media_type)
        if not base:
            return old
        wanted = self._wish.compression or kind
        media_type = _layer_type(base, wanted, oci=self._oci)
        if wanted == kind or manifest.is_foreign(old.media_type):
            return Descriptor(media_type=media_type, digest=old.digest, size=old.size, annotations=old.annotations)
        async with self._turns:
            with context.deadline(CALL_SECONDS):
                labels = (await self._content.info(old.digest)).labels
            made = await recompressed(self._content, old.digest, wanted, labels=labels)
        return Descriptor(media_type=media_type, digest=made.digest, size=made.size, annotations=old.annotations)

    async def _write(self, document: dict[str, Any], media_type: str, labels: Mapping[str, str]) -> Descriptor:
        data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        digest = Digest.of(data)
        with contextlib.suppress(AlreadyExists), context.deadline(CALL_SECONDS):
            async with await self._content.writer(f"convert-{digest}", total=len(data), expected=digest) as writer:
                await writer.truncate(0)
                await writer.write(data)
                await writer.commit(size=len(data), expected=digest, labels=labels)
        return Descriptor(media_type=media_type, digest=digest, size=len(data))


def _replace(raw: dict[str, Any], old: Descriptor, new: Descriptor, labels: dict[str, str], kind: str) -> bool:
    """Put `new` where a document and its labels have `old`."""
    if (old.digest, old.media_type) == (new.digest, new.media_type):
        return False
    raw |= {"mediaType": new.media_type, "digest": new.digest, "size": new.size}
    _forget(labels, old.digest)
    labels[f"{GC_REF_CONTENT}.{kind}"] = new.digest
    return True


def _forget(labels: dict[str, str], digest: Digest) -> None:
    for key in [key for key, value in labels.items() if value == digest and key.startswith(GC_REF_CONTENT)]:
        del labels[key]


def _split(media_type: str) -> tuple[str, str]:
    """The media type of a layer without its compression, and that; empty for what is no layer that we know."""
    for base in (manifest.DOCKER_LAYER_FOREIGN, manifest.DOCKER_LAYER):
        if media_type.startswith(base):
            suffix = media_type.removeprefix(base)
            return (base, suffix[1:] or "none") if suffix in ("", ".gzip", ".zstd") else ("", "")
    base, _, suffix = media_type.partition("+")
    if base in (manifest.OCI_LAYER, manifest.OCI_LAYER_FOREIGN) and suffix in ("", "gzip", "zstd"):
        return base, suffix or "none"
    return "", ""


def _layer_type(base: str, kind: str, *, oci: bool) -> str:
    docker = base in (manifest.DOCKER_LAYER, manifest.DOCKER_LAYER_FOREIGN)
    if docker and not oci:
        return f"{base}.{_SUFFIXES[kind]}".rstrip(".")
    if docker:
        base = manifest.OCI_LAYER if base == manifest.DOCKER_LAYER else manifest.OCI_LAYER_FOREIGN
    return f"{base}+{_SUFFIXES[kind]}".rstrip("+")
