"""What a blob says of itself: a manifest or index names its children, an index may name images, a configuration layers.

Plain functions over bytes that anybody may have written: what is not understood says nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.labels import GC_REF_CONTENT

MAX_SIZE: Final = 4 * 1024 * 1024
"""Bytes of a document, as registries limit manifests."""
IMAGE_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Document:
    """What the bytes of a blob say."""

    media_type: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """The references to its children, named as containerd names them."""
    images: tuple[tuple[str, Descriptor], ...] = ()
    """Names that an index gives to what it holds."""
    chain: str = ""
    """Chain id of a configuration's layers: the name of its top snapshot."""


def understood(data: bytes) -> Document | None:
    """None for what is no document of an image."""
    if not data.lstrip().startswith(b"{"):
        return None
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    stated = parsed.get("mediaType")
    if isinstance(parsed.get("manifests"), list):
        children = list(_descriptors(parsed["manifests"]))
        labels = {f"{GC_REF_CONTENT}.m.{number}": str(child.digest) for number, child in enumerate(children)}
        return Document(stated if isinstance(stated, str) else INDEX, labels, tuple(_names(children)))
    if isinstance(parsed.get("layers"), list) and isinstance(parsed.get("config"), dict):
        config = {f"{GC_REF_CONTENT}.config": str(one.digest) for one in _descriptors([parsed["config"]])}
        layers = {f"{GC_REF_CONTENT}.l.{n}": str(one.digest) for n, one in enumerate(_descriptors(parsed["layers"]))}
        return Document(stated if isinstance(stated, str) else MANIFEST, config | layers)
    rootfs = parsed.get("rootfs")
    if isinstance(rootfs, dict) and isinstance(rootfs.get("diff_ids"), list):
        return Document("", chain=_chain(rootfs["diff_ids"]))
    return None


def _descriptors(values: list[Any]) -> Iterator[Descriptor]:
    for value in values:
        try:
            annotations = value.get("annotations") or {}
            yield Descriptor(
                media_type=str(value["mediaType"]),
                digest=Digest(str(value["digest"])),
                size=int(value["size"]),
                annotations={str(key): str(text) for key, text in annotations.items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError, InvalidArgument):
            continue


def _names(children: list[Descriptor]) -> Iterator[tuple[str, Descriptor]]:
    for child in children:
        name = child.annotations.get(IMAGE_NAME) or child.annotations.get(REF_NAME, "")
        if "/" in name and child.size > 0 and child.media_type:  # a bare tag names nothing
            yield name, child


def _chain(diff_ids: list[Any]) -> str:
    chain = ""
    for diff_id in diff_ids:
        if not isinstance(diff_id, str):
            return ""
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else diff_id
    return chain
