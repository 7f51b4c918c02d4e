"""Where a command goes: the address, the namespace, and how long it may take."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from carina import config, context

if TYPE_CHECKING:
    from carina.client import Client

DEADLINE: Final = 60.0
"""Seconds for each short command; what lasts as long as its work sets none."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    address: str | None
    namespace: str
    embedded: Path | None = None
    """A directory of images to work on in place of a constellation."""

    def resolve(self) -> str:
        """The gateway's address: as given, or as configured."""
        return self.address or config.load().gateway

    def run(self, work: Callable[["Client"], Awaitable[Result]], *, deadline: float | None = DEADLINE) -> Result:
        """Run `work` with a client in the namespace of the command line."""

        async def main() -> Result:
            async with self.client() as client:
                with context.deadline(deadline) if deadline else contextlib.nullcontext():
                    return await work(client)

        return asyncio.run(main())

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator["Client"]:
        from carina.client import Client

        context.validate_identifier(self.namespace, "namespace")
        if self.embedded is not None:
            from carina.client.embedded import embedded

            with context.within(namespace=self.namespace):
                async with embedded(self.embedded) as client:
                    yield client
            return
        async with Client(self.resolve()) as client:
            with context.within(namespace=self.namespace):
                yield client
