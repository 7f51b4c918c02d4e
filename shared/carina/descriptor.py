"""Descriptors and platforms as the OCI image specification has them (descriptor.md, image-index.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from carina.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Names content: what it is, which bytes, how many."""

    media_type: str
    digest: Digest
    size: int
    """Bytes."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()
    """Where else the content can be had."""
