"""Sandbox controllers that are plugged in. Our own does not exist yet: what is for it is Unimplemented."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from carina import context
from carina.backends.plugged import Plugged
from carina.errors import DeadlineExceeded, NotFound, Unavailable, Unimplemented
from carina.rpc.client import Channel

OWN: Final = "shim"
"""The name of containerd's own controller for shims."""


class PluggedControllers:
    """`carina.sandboxes.server.Controllers`: those that metadatad knows, as it last told."""

    def __init__(self, plugged: Plugged, *, call_seconds: float, work_seconds: float) -> None:
        self._plugged = plugged
        self._call_seconds = call_seconds
        self._work_seconds = work_seconds

    @contextlib.asynccontextmanager
    async def reach(self, sandboxer: str, *, work: bool = False, endless: bool = False) -> AsyncIterator[Channel]:
        if sandboxer in {"", OWN}:
            raise Unimplemented(f"sandbox controller {OWN!r} does not exist here: name one that is plugged in")
        backend = await self._plugged.find(sandboxer)
        if backend is None:
            raise NotFound(f"sandbox controller {sandboxer!r} does not exist")
        seconds = self._work_seconds if work else self._call_seconds
        name = f"sandbox controller {sandboxer}"
        with self._plugged.calling(backend) as channel:
            if endless:
                async with channel.attended(name, seconds):
                    yield channel
                return
            begun = time.monotonic()
            try:
                with context.deadline(seconds):
                    yield channel
            except DeadlineExceeded as error:
                if time.monotonic() - begun < seconds - 0.1:
                    raise  # the caller's own
                raise Unavailable(f"{name} did not answer for {seconds:.3g} s") from error
