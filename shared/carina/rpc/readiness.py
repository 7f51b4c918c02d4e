"""Whether a service can do its work now: it tries, again and again, and says so in its health under its own name.

The empty name of a service's health says that the process answers; its own name says that its data path works.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from carina import context, meter
from carina.errors import CarinaError
from carina.meter import Family, Kind, Sample
from carina.rpc.health import Health

PERIOD_SECONDS: Final = 5.0
FAILED_SECONDS: Final = 1.0
"""Time between two looks after one that went well, and after one that did not."""
LIMIT_SECONDS: Final = 5.0
"""What takes longer does not work."""

log = logging.getLogger(__name__)


class Readiness:
    """`check` tries what the service `name` does for its clients, and raises what stands in the way."""

    def __init__(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self.error = ""
        """What stands in the way, in words; empty while nothing does."""
        self._check = check

    async def watch(self, health: Health) -> None:
        """Look until cancelled, and tell `health`."""
        meter.source(self._families)
        while True:
            error = await self._look(health)
            if error != self.error:
                if error and not self.error:
                    log.error("not ready: %s", error)
                elif not error:
                    log.info("ready again")
                self.error = error
            health.set(self.name, not error)
            await asyncio.sleep(FAILED_SECONDS if error else PERIOD_SECONDS)

    async def _look(self, health: Health) -> str:
        """What is wrong. What hangs in the kernel can't be cancelled: it is told, and waited for."""
        look = asyncio.get_running_loop().create_task(self._outcome(), name=f"readiness of {self.name}")
        try:
            while not (await asyncio.wait([look], timeout=LIMIT_SECONDS))[0]:
                if not self.error:
                    self.error = f"{self.name}: reading and writing takes longer than {LIMIT_SECONDS:g} s"
                    log.error("not ready: %s", self.error)
                    health.set(self.name, False)
            return look.result()
        finally:
            look.cancel()

    async def _outcome(self) -> str:
        try:
            with context.use(context.Call(namespace="carina")), context.deadline(LIMIT_SECONDS):
                await self._check()
        except CarinaError as error:
            return str(error) or type(error).__name__
        return ""

    def _families(self) -> list[Family]:
        sample = Sample("", (("name", self.name),), float(not self.error))
        return [Family("carina_ready", "Whether the service can do its work.", Kind.GAUGE, (sample,))]
