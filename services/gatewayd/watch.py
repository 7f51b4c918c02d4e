"""Looks after the services behind the gateway, and says in its health which of them answer."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Final, Protocol

from carina import context
from carina.errors import CarinaError
from carina.rpc.client import Channel
from carina.rpc.health import probe

log = logging.getLogger(__name__)

ESSENTIAL: Final = "metadatad"
"""Without it hardly any call can be answered, so the gateway as a whole counts as not serving."""
UP_SECONDS: Final = 2.0
DOWN_SECONDS: Final = 0.25
"""Time between two looks at a service that answered last time, and at one that did not."""
ANSWER_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 2.0
"""How long we are not ready for services that don't answer at the start."""
SETTLE_PAUSE: Final = 0.02


class Health(Protocol):
    def set(self, name: str, serving: bool) -> None: ...


async def settle(channels: Mapping[str, Channel], health: Health) -> None:
    """Look until every service has answered once, for some seconds at the most.

    Services that start together with us need a moment; whoever waits for our readiness finds a health that is true.
    """
    waiting = dict(channels)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                answers = await asyncio.gather(*(look(name, channel, health) for name, channel in waiting.items()))
                waiting = {name: waiting[name] for name, serving in zip(waiting, answers, strict=True) if not serving}
                if not waiting:
                    return
                await asyncio.sleep(SETTLE_PAUSE)


async def watch(name: str, channel: Channel, health: Health) -> None:
    """Look again and again, until cancelled."""
    known: bool | None = None
    while True:
        serving = await look(name, channel, health)
        if serving is not known:
            (log.info if serving else log.warning)("%s %s", name, "answers" if serving else "does not answer")
            known = serving
        await asyncio.sleep(UP_SECONDS if serving else DOWN_SECONDS)


async def look(name: str, channel: Channel, health: Health) -> bool:
    """Ask a service for its health once and pass the answer on."""
    try:
        with context.deadline(ANSWER_SECONDS):
            state, _ = await probe(channel)
    except CarinaError:
        state = ""
    health.set(name, state == "ok")
    if name == ESSENTIAL:
        health.set("", state == "ok")
    return state == "ok"
