"""Who moves images: the Transfer service where there is one, else this process, from the interfaces that it has.

A containerd before 1.7 has no such service, and no service reaches an object in our process.
What is composed is the code of imaged, loaded by name (see `carina.client.embedded`).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

from carina.descriptor import Descriptor
from carina.errors import Unimplemented
from carina.introspection import Introspection
from carina.platforms import Platform
from carina.transfer import ANONYMOUS, Access, OnProgress, Referrer, Store, Transfer

SERVICE = "type==io.containerd.grpc.v1,id==transfer"


class AvailableTransfer(Transfer):
    """The service's where it has one, which is asked once; else what `compose` makes."""

    def __init__(self, introspection: Introspection, remote: Transfer, compose: Callable[[], Transfer]) -> None:
        self._introspection = introspection
        self._remote = remote
        self._compose = compose
        self._chosen: Transfer | None = None
        self._choosing = asyncio.Lock()

    async def choose(self) -> Transfer:
        async with self._choosing:
            if self._chosen is None:
                try:
                    there = bool(await self._introspection.plugins([SERVICE]))
                except Unimplemented:
                    there = True  # a service by itself, which says what it serves when it is called
                self._chosen = self._remote if there else self._compose()
        return self._chosen

    async def fetch(
        self, reference: str, into: Store, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        await (await self.choose()).fetch(reference, into, access=access, on_progress=on_progress)

    async def push(
        self, source: Store, reference: str, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        await (await self.choose()).push(source, reference, access=access, on_progress=on_progress)

    async def referrers(
        self, reference: str, *, artifact_type: str = "", access: Access = ANONYMOUS
    ) -> tuple[Descriptor, Sequence[Referrer]]:
        return await (await self.choose()).referrers(reference, artifact_type=artifact_type, access=access)

    async def tag(self, name: str, into: Store) -> None:
        await (await self.choose()).tag(name, into)

    async def load(
        self,
        archive: AsyncIterator[bytes],
        into: Store,
        *,
        compress: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        await (await self.choose()).load(archive, into, compress=compress, on_progress=on_progress)

    async def save(
        self,
        source: Store,
        *,
        platforms: Sequence[Platform] = (),
        docker: bool = True,
        foreign: bool = True,
        on_progress: OnProgress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        saved = (await self.choose()).save(
            source, platforms=platforms, docker=docker, foreign=foreign, on_progress=on_progress
        )
        async with aclosing(saved) as chunks:
            async for chunk in chunks:
                yield chunk
