"""Our own differ, and external ones for the media types that it does not know."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.errors import Unimplemented
from carina.mount import Mount


class Differs:
    """A `Differ` that asks each of its differs in turn until one does not answer Unimplemented."""

    def __init__(self, own: Differ, external: Mapping[str, Differ]) -> None:
        self._differs = [own, *external.values()]

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = True) -> Descriptor:
        for differ in self._differs:
            try:
                return await differ.apply(layer, mounts, sync_fs=sync_fs)
            except Unimplemented as error:
                failure = error
        raise failure

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
        for differ in self._differs:
            try:
                return await differ.diff(
                    lower,
                    upper,
                    media_type=media_type,
                    ref=ref,
                    labels=labels,
                    source_date_epoch=source_date_epoch,
                )
            except Unimplemented as error:
                failure = error
        raise failure
