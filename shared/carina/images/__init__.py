"""Images: a name, a descriptor, labels. The record is the image; deleting it is deleting the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from carina.descriptor import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None
    updated_at: datetime | None = None


class ImageStore(Protocol):
    """Image records of the call's namespace (`carina.context`)."""

    async def get(self, name: str) -> Image:
        """Raises NotFound."""

    async def list(self, filters: Sequence[str] = ()) -> Sequence[Image]: ...

    async def create(self, image: Image) -> Image:
        """Raises AlreadyExists, or InvalidArgument for a name, target or label that can't be."""

    async def update(self, image: Image, fields: Sequence[str] = ()) -> Image:
        """Fields: `labels`, `labels.KEY`, `target`, `annotations`, `annotations.KEY`; all if empty. Raises NotFound."""

    async def delete(self, name: str, *, sync: bool = False, target: Descriptor | None = None) -> None:
        """Remove the record; with `sync`, return when the disk is clean of what nothing refers to any more.

        Raises:
            NotFound: no such image, or it no longer has the given target.
        """
