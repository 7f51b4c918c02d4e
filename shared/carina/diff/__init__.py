"""Layers: a layer applied to mounts, and the difference of two trees as a layer."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from carina.descriptor import Descriptor
from carina.mount import Mount


class Differ(Protocol):
    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync_fs: bool = True,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Descriptor:
        """Apply a layer's changes to the tree of `mounts`.

        `payloads` are for stream processors, by their ids: messages `google.protobuf.Any`, as bytes.

        Returns:
            A descriptor of the uncompressed layer: its digest is the diff id.

        Raises:
            NotFound: the layer is not in the content store.
            Unimplemented: the media type is not one of a layer.
            InvalidArgument: the layer is not what its media type says, or tries to leave the tree.
            ResourceExhausted: a disk or limit is full.
        """

    async def diff(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date_epoch: datetime | None = None,
    ) -> Descriptor:
        """Write what `upper` changes on `lower` as a layer into the content store."""
