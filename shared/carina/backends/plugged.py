"""Plugins of one type, as the registry lists them, called by a service that needs them."""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from carina import context
from carina.backends import Backend, BackendRegistry
from carina.errors import CarinaError
from carina.rpc.client import Channel, connect

ASK_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class Plugged:
    """What is plugged in now, and channels to it. While the registry does not answer, what it said last counts."""

    def __init__(self, registry: BackendRegistry, type: str) -> None:
        self._registry = registry
        self._type = type
        self._known: Sequence[Backend] = ()
        self._not_before = 0.0
        """When the registry is asked again, after it did not answer."""
        self._channels: dict[str, Channel] = {}

    async def all(self) -> Sequence[Backend]:
        """Plugins of the type, in the order of the registry, whether they answer or not."""
        if time.monotonic() < self._not_before:
            return self._known
        try:
            with context.use(context.Call()), context.deadline(ASK_SECONDS):
                self._known = [backend for backend in await self._registry.list() if backend.type == self._type]
        except CarinaError as error:
            self._not_before = time.monotonic() + ASK_SECONDS
            log.warning("which plugins of type %s there are is not known anew: %s", self._type, error)
        return self._known

    async def find(self, name: str) -> Backend | None:
        return next((backend for backend in await self.all() if backend.name == name), None)

    def channel(self, backend: Backend) -> Channel:
        channel = self._channels.get(backend.address)
        if channel is None:
            channel = self._channels[backend.address] = connect(backend.address)
        return channel

    @contextlib.contextmanager
    def calling(self, backend: Backend) -> Iterator[Channel]:
        """The calls of the block carry the namespace and lease that the plugin is to have."""
        call = context.current()
        with context.use(
            replace(call, namespace=backend.namespace or call.namespace, lease=backend.lease or call.lease)
        ):
            yield self.channel(backend)

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
