"""Where a command goes: the address, the namespace, and how long it may take."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import click

from carina import context
from carina.errors import CarinaError

if TYPE_CHECKING:
    from carina.client import Client

DEADLINE: Final = 60.0
"""Seconds for each short command; what lasts as long as its work sets none."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    address: str | None
    namespace: str
    embedded: str | None = None
    """A directory of images to work on in place of a constellation."""
    timeout: float | None = None
    """Seconds for the whole command, where the caller sets them."""
    connect_timeout: float | None = None
    """Seconds until the server has answered for the first time."""

    def resolve(self) -> str:
        """The gateway's address: as given, or as configured."""
        from carina import config

        return self.address or config.load().gateway

    def run(self, work: Callable[["Client"], Awaitable[Result]], *, deadline: float | None = DEADLINE) -> Result:
        """Run `work` with a client in the namespace of the command line. Signals cancel it, so that it tidies up."""
        import asyncio

        limit = self.timeout or deadline
        ended_by: list[int] = []

        async def main() -> Result:
            import signal

            loop, work_task = asyncio.get_running_loop(), asyncio.current_task()

            def end(number: int) -> None:
                ended_by.append(number)
                if work_task is not None:
                    work_task.cancel()

            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    loop.add_signal_handler(number, end, number)
            return await inner()

        async def inner() -> Result:
            async with self.client() as client:
                if self.connect_timeout and self.embedded is None:
                    with context.deadline(self.connect_timeout):
                        await client.channel.open()
                with context.deadline(limit) if limit else contextlib.nullcontext():
                    return await work(client)

        try:
            return asyncio.run(main())
        except (asyncio.CancelledError, CarinaError):
            if ended_by:
                raise click.exceptions.Exit(128 + ended_by[0]) from None
            raise

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator["Client"]:
        context.validate_identifier(self.namespace, "namespace")
        if self.embedded is not None:
            from pathlib import Path

            from carina.client.embedded import embedded

            with context.within(namespace=self.namespace):
                async with embedded(Path(self.embedded)) as client:
                    yield client
            return
        from carina.cli import lean

        lean.spare()
        from carina.client import Client

        address = self.resolve()
        async with Client(address) as client:
            with context.within(namespace=self.namespace):
                try:
                    yield client
                except CarinaError as error:
                    error.add_note(f"address {address}")
                    raise
