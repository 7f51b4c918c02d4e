"""A `Transfer` that is decided on, or loaded, when it is first asked for something."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

from carina.descriptor import Descriptor
from carina.platforms import Platform
from carina.transfer import ANONYMOUS, Access, OnProgress, Referrer, Store, Transfer


class DeferredTransfer(Transfer):
    """The `Transfer` that `choose` returns. It is asked until it returns one, and by one call at a time."""

    def __init__(self, choose: Callable[[], Awaitable[Transfer]]) -> None:
        self._choose = choose
        self._choice: Transfer | None = None
        self._choosing = asyncio.Lock()

    async def _chosen(self) -> Transfer:
        async with self._choosing:
            if self._choice is None:
                self._choice = await self._choose()
            return self._choice

    async def fetch(
        self, reference: str, into: Store, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        await (await self._chosen()).fetch(reference, into, access=access, on_progress=on_progress)

    async def push(
        self, source: Store, reference: str, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        await (await self._chosen()).push(source, reference, access=access, on_progress=on_progress)

    async def referrers(
        self, reference: str, *, artifact_type: str = "", access: Access = ANONYMOUS
    ) -> tuple[Descriptor, Sequence[Referrer]]:
        return await (await self._chosen()).referrers(reference, artifact_type=artifact_type, access=access)

    async def tag(self, name: str, into: Store) -> None:
        await (await self._chosen()).tag(name, into)

    async def load(
        self,
        archive: AsyncIterator[bytes],
        into: Store,
        *,
        compress: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        await (await self._chosen()).load(archive, into, compress=compress, on_progress=on_progress)

    async def save(
        self,
        source: Store,
        *,
        platforms: Sequence[Platform] = (),
        docker: bool = True,
        foreign: bool = True,
        on_progress: OnProgress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        made = await self._chosen()
        saved = made.save(source, platforms=platforms, docker=docker, foreign=foreign, on_progress=on_progress)
        async with aclosing(saved) as chunks:
            async for chunk in chunks:
                yield chunk
