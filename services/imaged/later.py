"""What speaks to registries and archives, loaded when the first transfer asks for it.

An http client takes ten megabytes, and a machine that pulls nothing need not have them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

from carina.aio.threads import in_thread
from carina.descriptor import Descriptor
from carina.platforms import Platform
from carina.transfer import ANONYMOUS, Access, OnProgress, Referrer, Store, Transfer


class LaterTransfers(Transfer):
    """The `Transfer` that `make` returns; it is called once, in a thread."""

    def __init__(self, make: Callable[[], Transfer]) -> None:
        self._make = make
        self._made: Transfer | None = None
        self._making = asyncio.Lock()

    async def _there(self) -> Transfer:
        async with self._making:
            if self._made is None:
                self._made = await in_thread(self._make)
            return self._made

    async def fetch(
        self, reference: str, into: Store, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        await (await self._there()).fetch(reference, into, access=access, on_progress=on_progress)

    async def push(
        self, source: Store, reference: str, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        await (await self._there()).push(source, reference, access=access, on_progress=on_progress)

    async def referrers(
        self, reference: str, *, artifact_type: str = "", access: Access = ANONYMOUS
    ) -> tuple[Descriptor, Sequence[Referrer]]:
        return await (await self._there()).referrers(reference, artifact_type=artifact_type, access=access)

    async def tag(self, name: str, into: Store) -> None:
        await (await self._there()).tag(name, into)

    async def load(
        self,
        archive: AsyncIterator[bytes],
        into: Store,
        *,
        compress: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        await (await self._there()).load(archive, into, compress=compress, on_progress=on_progress)

    async def save(
        self,
        source: Store,
        *,
        platforms: Sequence[Platform] = (),
        docker: bool = True,
        foreign: bool = True,
        on_progress: OnProgress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        made = await self._there()
        saved = made.save(source, platforms=platforms, docker=docker, foreign=foreign, on_progress=on_progress)
        async with aclosing(saved) as chunks:
            async for chunk in chunks:
                yield chunk
