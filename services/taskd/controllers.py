"""The sandbox controllers that there are: our own, and those that are plugged in, as metadatad last told."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from carina import context
from carina.api.containerd.services.sandbox.v1 import ControllerBase, ControllerStub
from carina.backends.plugged import Plugged
from carina.errors import DeadlineExceeded, NotFound, Unavailable
from carina.events import Envelope
from carina.sandboxes import End, SandboxController
from carina.sandboxes.server import ControllerService
from taskd import rpc
from taskd.outbox import Kind, Outbox, Subject

OWN: Final = ("", "shim")
"""Names of our own: containerd's for its controller over shims, and none."""


class AllControllers:
    """`carina.sandboxes.server.Controllers`."""

    def __init__(
        self,
        own: SandboxController,
        plugged: Plugged,
        outbox: Outbox,
        *,
        call_seconds: float,
        work_seconds: float,
    ) -> None:
        self._own = ControllerService(own)
        self._plugged, self._outbox = plugged, outbox
        self._call_seconds = call_seconds
        self._work_seconds = work_seconds

    @contextlib.asynccontextmanager
    async def reach(
        self, sandboxer: str, *, work: bool = False, endless: bool = False
    ) -> AsyncIterator[ControllerBase | ControllerStub]:
        if sandboxer in OWN:
            yield self._own
            return
        backend = await self._plugged.find(sandboxer)
        if backend is None:
            raise NotFound(f"sandbox controller {sandboxer!r} does not exist")
        seconds = self._work_seconds if work else self._call_seconds
        name = f"sandbox controller {sandboxer}"
        with self._plugged.calling(backend) as channel:
            if endless:
                async with channel.attended(name, seconds):
                    yield ControllerStub(channel)
                return
            begun = time.monotonic()
            try:
                with context.deadline(seconds):
                    yield ControllerStub(channel)
            except DeadlineExceeded as error:
                if time.monotonic() - begun < seconds - 0.1:
                    raise  # the caller's own
                raise Unavailable(f"{name} did not answer for {seconds:.3g} s") from error

    async def _tell(self, sandboxer: str, envelope: Envelope) -> None:
        """Our own controller tells of its sandboxes itself."""
        if sandboxer not in OWN:
            await self._outbox.record(envelope, Subject(kind=Kind.OTHER))

    async def created(self, sandboxer: str, id: str) -> None:
        await self._tell(sandboxer, rpc.sandbox_created(context.namespace(), id))

    async def started(self, sandboxer: str, id: str) -> None:
        await self._tell(sandboxer, rpc.sandbox_started(context.namespace(), id))

    async def exited(self, sandboxer: str, id: str, end: End) -> None:
        """Told to each who waits, as containerd does it: nobody else hears of the end."""
        await self._tell(sandboxer, rpc.sandbox_exited(context.namespace(), id, end))
