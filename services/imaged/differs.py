"""Our own differ and those that are plugged in, asked in turn: the first that takes a media type does the work.

Which ones are plugged in is metadatad's to know, and so is which one has taken the place of our own, by a swap.
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from carina.backends import Backend
from carina.backends.plugged import Plugged
from carina.descriptor import Descriptor
from carina.diff import Differ
from carina.diff.client import RemoteDiffer
from carina.errors import FailedPrecondition, Unimplemented
from carina.mount import Mount

OWN: Final = "walking"
"""The name of our own differ, as of containerd's."""
Work = Callable[[Differ], Awaitable[Descriptor]]


class Differs:
    """A `Differ` that asks the differs of `order` in turn until one does not answer Unimplemented.

    Without an order these are our own and then every one that is plugged in. `stall` is for how long one that works
    may not even answer a ping.
    """

    def __init__(self, own: Differ, plugged: Plugged, *, order: Sequence[str] = (), stall: float = 60.0) -> None:
        self._own = own
        self._plugged = plugged
        self._order = order
        self._stall = stall

    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync_fs: bool = True,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Descriptor:
        async def work(differ: Differ) -> Descriptor:
            if differ is not self._own and _is_half(mounts):
                raise FailedPrecondition("a differ that is plugged in needs the layers below the one that it applies")
            return await differ.apply(layer, mounts, sync_fs=sync_fs, payloads=payloads)

        if _is_half(mounts) and await self._swapped() is not None:
            return await work(self._own)

        return await self._first(work, layer.media_type)

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
        async def work(differ: Differ) -> Descriptor:
            return await differ.diff(
                lower, upper, media_type=media_type, ref=ref, labels=labels, source_date_epoch=source_date_epoch
            )

        return await self._first(work, media_type)

    async def _first(self, work: Work, media_type: str) -> Descriptor:
        asked: list[str] = []
        failure: Unimplemented | None = None
        async with contextlib.aclosing(self._in_turn()) as differs:
            async for name, backend in differs:
                asked.append(name)
                try:
                    if backend is None:
                        return await work(self._own)
                    return await self._outside(work, backend)
                except Unimplemented as error:
                    failure = error
        if failure is not None and asked == [OWN]:
            raise failure
        said = f"asked: {', '.join(asked)}" if asked else f"none of {', '.join(self._order)} is plugged in"
        raise Unimplemented(f"no differ takes the media type {media_type!r} ({said})") from failure

    async def _in_turn(self) -> AsyncGenerator[tuple[str, Backend | None], None]:
        """Names and plugins; no plugin stands for our own differ."""
        if not self._order:
            yield OWN, await self._swapped()
            for backend in await self._plugged.all():
                if backend.name != OWN:
                    yield backend.name, backend
            return
        for name in self._order:
            if name == OWN:
                yield OWN, await self._swapped()
            elif (found := await self._plugged.find(name)) is not None:
                yield name, found

    async def _swapped(self) -> Backend | None:
        """The differ that has taken the place of our own, if one has."""
        return await self._plugged.find(OWN)

    async def _outside(self, work: Work, backend: Backend) -> Descriptor:
        with self._plugged.calling(backend) as channel:
            async with channel.attended(f"differ {backend.name}", self._stall):
                return await work(RemoteDiffer(channel))


def _is_half(mounts: Sequence[Mount]) -> bool:
    """Whether this is the upper half of an overlay, which only our own differ writes to without mounting it."""
    return len(mounts) == 1 and mounts[0].type == "overlay" and not any("lowerdir" in it for it in mounts[0].options)
