"""Images in the index.json of an OCI image layout: an image store without a service, for one process at a time.

A record is an entry of the index. The name is in containerd's annotation, the tag in OCI's, labels are annotations
with a prefix, so that other tools read the directory, and find the images by their tags.
"""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from carina import filters as filtering
from carina import labels as label_rules
from carina.aio.threads import in_thread
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from carina.images import Image
from carina.images.fields import fields as image_fields
from carina.images.manifest import OCI_INDEX

IMAGE_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"
LABEL: Final = "io.carina.label."


class LayoutImages:
    """`carina.images.ImageStore` in `directory`, beside the blobs of a `contentd.store.LocalContentStore`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = asyncio.Lock()

    async def get(self, name: str) -> Image:
        found = (await self._load()).get(name)
        if found is None:
            raise NotFound(f"image {name!r} does not exist")
        return found

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Image]:
        matches = filtering.compile(filters)
        return [image for image in (await self._load()).values() if matches(image_fields(image))]

    async def create(self, image: Image) -> Image:
        label_rules.validate(image.labels)
        async with self._lock:
            images = await self._load()
            if image.name in images:
                raise AlreadyExists(f"image {image.name!r} already exists")
            if not image.name:
                raise InvalidArgument("an image needs a name")
            await self._store({**images, image.name: image})
        return image

    async def update(self, image: Image, fields: Sequence[str] = ()) -> Image:
        async with self._lock:
            images = await self._load()
            if image.name not in images:
                raise NotFound(f"image {image.name!r} does not exist")
            made = _changed(images[image.name], image, list(fields) or ["labels", "target"])
            label_rules.validate(made.labels)
            await self._store({**images, image.name: made})
        return made

    async def delete(self, name: str, *, sync: bool = False, target: Descriptor | None = None) -> None:
        async with self._lock:
            images = await self._load()
            found = images.pop(name, None)
            if found is None or (target is not None and found.target.digest != target.digest):
                raise NotFound(f"image {name!r} does not exist")
            await self._store(images)

    async def _load(self) -> dict[str, Image]:
        path = self._directory / "index.json"

        def read() -> dict[str, Image]:
            if not path.exists():
                return {}
            try:
                entries = json.loads(path.read_bytes())["manifests"]
                return {image.name: image for image in map(_image, entries)}
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidArgument(f"{path} is not the index of an OCI image layout") from error

        return await in_thread(read)

    async def _store(self, images: Mapping[str, Image]) -> None:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_entry(one) for one in images.values()]}

        def write() -> None:
            self._directory.mkdir(parents=True, exist_ok=True)
            _replace(self._directory / "oci-layout", {"imageLayoutVersion": "1.0.0"})
            _replace(self._directory / "index.json", index)

        await in_thread(write)


def _replace(path: Path, value: object) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _changed(old: Image, new: Image, fields: Sequence[str]) -> Image:
    for field in fields:
        if field == "target":
            old = replace(old, target=new.target)
        elif field.partition(".")[0] == "labels":
            old = replace(old, labels=label_rules.changed(old.labels, new.labels, [field]))
        else:
            raise Unimplemented(f"image field {field!r} can't be changed in a directory")
    return old


def _entry(image: Image) -> dict[str, Any]:
    last = image.name.partition("@")[0].rpartition("/")[2]
    tag = {REF_NAME: last.partition(":")[2]} if ":" in last else {}
    labels = {f"{LABEL}{key}": value for key, value in image.labels.items()}
    return {
        "mediaType": image.target.media_type,
        "digest": image.target.digest,
        "size": image.target.size,
        "annotations": {**image.target.annotations, IMAGE_NAME: image.name, **tag, **labels},
    }


def _image(entry: Mapping[str, Any]) -> Image:
    annotations = dict(entry.get("annotations") or {})
    name = annotations.pop(IMAGE_NAME, "") or annotations.get(REF_NAME, "") or entry["digest"]
    annotations.pop(REF_NAME, None)
    labels = {key.removeprefix(LABEL): annotations.pop(key) for key in list(annotations) if key.startswith(LABEL)}
    target = Descriptor(
        media_type=entry["mediaType"], digest=Digest(entry["digest"]), size=entry["size"], annotations=annotations
    )
    return Image(name=name, target=target, labels=labels)
