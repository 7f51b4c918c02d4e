"""Looks after the services behind the gateway, and says in its health which of them, and of their back ends, answer."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Final, Protocol

from carina import context
from carina.backends.client import RemoteBackendRegistry
from carina.errors import CarinaError, DeadlineExceeded
from carina.rpc.health import ready
from gatewayd.upstream import Upstream

log = logging.getLogger(__name__)

ESSENTIAL: Final = "metadatad"
"""Without it hardly any call can be answered, so the gateway as a whole counts as not serving.
It also knows the back ends."""
UP_SECONDS: Final = 2.0
DOWN_SECONDS: Final = 0.25
"""Time between two looks at a service that answered last time, and at one that did not."""
ANSWER_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 2.0
"""How long we are not ready for services that don't answer at the start."""
SETTLE_PAUSE: Final = 0.02


class Health(Protocol):
    def set(self, name: str, serving: bool | None) -> None: ...


class Listener(Protocol):
    """Of `carina.rpc.server.Listener` what is needed here."""

    @property
    def health(self) -> Health: ...

    def give_up(self, address: str, text: str) -> None: ...


class Watch:
    """All services of one gateway."""

    def __init__(self, upstreams: Mapping[str, Upstream], listener: Listener) -> None:
        self._upstreams = upstreams
        self._listener = listener
        self._backends: set[str] = set()

    async def settle(self) -> None:
        """Look until every service has answered once, for some seconds at the most.

        Services that start together with us need a moment; whoever waits for our readiness finds a health that is true.
        """
        waiting = list(self._upstreams.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while True:
                    answers = await asyncio.gather(*map(self.look, waiting))
                    waiting = [one for one, serving in zip(waiting, answers, strict=True) if not serving]
                    if not waiting:
                        return
                    await asyncio.sleep(SETTLE_PAUSE)

    async def watch(self, upstream: Upstream) -> None:
        """Look again and again, until cancelled."""
        known: bool | None = None
        gone = False
        while True:
            serving = await self.look(upstream)
            if serving is not known:
                (log.info if serving else log.warning)(
                    "%s %s", upstream.name, "answers" if serving else "does not answer"
                )
                known = serving
                if serving:
                    await self._describe(upstream)
            if upstream.stalled and not gone:
                log.warning("%s: calls that wait for it fail", upstream.silence)
                self._listener.give_up(upstream.channel.address, upstream.silence)
                upstream.channel.drop()
            gone = upstream.stalled
            await asyncio.sleep(UP_SECONDS if serving else DOWN_SECONDS)

    async def look(self, upstream: Upstream) -> bool:
        """Ask a service once how it is and pass the answer on. Returns whether it answers, ready or not."""
        state = ""
        try:
            with context.deadline(ANSWER_SECONDS):
                state = await ready(upstream.channel, upstream.name)
            upstream.answered()
        except DeadlineExceeded:
            upstream.unanswered()
        except CarinaError:
            upstream.answered()
        serving = bool(state)
        self._listener.health.set(upstream.name, state == "ok")
        if upstream.name == ESSENTIAL:
            self._listener.health.set("", serving)
            await self._look_behind(upstream, serving=serving)
        return serving

    async def _look_behind(self, upstream: Upstream, *, serving: bool) -> None:
        """What can't be reached does not serve, whoever is to blame."""
        states = dict.fromkeys(self._backends, False)
        if serving:
            with contextlib.suppress(CarinaError), context.deadline(ANSWER_SECONDS):
                listed = await RemoteBackendRegistry(upstream.channel).list()
                states = {backend.name: not backend.error for backend in listed}
        for name in self._backends - states.keys():
            self._listener.health.set(name, None)
        for name, answers in states.items():
            self._listener.health.set(name, answers)
        self._backends = set(states)

    async def _describe(self, upstream: Upstream) -> None:
        with contextlib.suppress(CarinaError), context.deadline(ANSWER_SECONDS):
            upstream.known = await upstream.introspection.plugins()
