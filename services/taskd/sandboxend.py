"""The end of a sandbox's shim: asked for, waited for, and brought about where neither helps."""

import asyncio
import contextlib
import logging
from typing import Final

from carina.api.containerd.runtime.sandbox import v1 as wire
from carina.errors import CarinaError
from taskd.leftovers import kill_leftovers, remove_socket
from taskd.runtime import is_own
from taskd.sandbox import Sandboxed
from taskd.shim import Launcher, Shim

_SECONDS: Final = 15.0

log = logging.getLogger(__name__)


async def disconnected(shim: Shim, seconds: float) -> bool:
    """Whether the shim's connection ends in that time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await shim.closed()
    return not shim.connected


async def end_shim(sandbox: Sandboxed, launcher: Launcher, *, address: str = "") -> None:
    """Have the shim of a sandbox that failed end, by whatever it understands, and remove what it left.

    `address` is where it was, if it was not reached.
    """
    shim, ended = sandbox.shim, False
    if shim is not None and shim.connected:
        with contextlib.suppress(CarinaError):
            request = wire.ShutdownSandboxRequest(sandbox_id=sandbox.id)
            await sandbox.call("ShutdownSandbox", request, wire.ShutdownSandboxResponse, seconds=_SECONDS)
        # A shim without sandboxes, or whose sandbox failed, knows that it is not needed when it is told so.
        await shim.shutdown(sandbox.id, now=True)
        ended = await disconnected(shim, _SECONDS / 5)
    await kill_leftovers(sandbox.bundle)
    if shim is not None:
        shim.close()
        address = shim.bootstrap.address
    if address:
        await remove_socket(address, locked=sandbox.binary is not None and is_own(sandbox.binary))
    if ended or sandbox.binary is None or is_own(sandbox.binary):
        return
    try:
        await launcher.delete(sandbox.bundle, sandbox.binary)
    except CarinaError as error:
        log.warning("sandbox %s/%s: cleaning up after its shim: %s", *sandbox.key, error)
