"""The shim itself: everything that is opened, in order, and when it ends.

A shim without containers stays for a while, so that the next one needs no new interpreter. Before it ends it takes the
group's lock and its socket out of the way, and looks for a connection that came meanwhile.
"""

import os
import signal
import socket as sockets
import time
from collections.abc import Callable
from typing import Final

from shimd import takeover
from shimd.birth import sandbox
from shimd.children import Children
from shimd.config import Config
from shimd.events import Publisher
from shimd.lock import GroupLock
from shimd.loop import Loop, Timer
from shimd.process import Group
from shimd.rpc import Service
from shimd.ttrpc import Server

_GRACE: Final = 5.0
"""Seconds that a client has for its first call, however short the idle time is."""
_TOLD_SECONDS: Final = 5.0
"""For events to be taken, before the end that was asked for."""
_PAUSE: Final = 0.05
_LEAST: Final = 1.0
"""Seconds between a connection and the end: whoever only looks whether we are there will connect again."""


def serve(config: Config, listener: sockets.socket, path: str) -> None:
    """Until there is nothing to do for a while."""
    loop = Loop()
    children = Children(loop)
    children.begin()
    publisher = Publisher(loop, config.events, namespace=config.namespace)
    group = Group(loop=loop, children=children, namespace=config.namespace, socket=path, publish=publisher.publish)
    life = _Life(loop, config, path)
    service = Service(
        group, sandbox=sandbox(config), changed=life.touch, ended=life.end, closed=lambda: life.close(publisher)
    )
    server = Server(loop, listener, service.answer, life.touch)
    for container in takeover.containers(group, os.path.dirname(config.bundle)):
        service.containers[container.id] = container
    life.begin(service=service, server=server, publisher=publisher)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    loop.run()


class _Life:
    """Ends the shim when it has been idle long enough."""

    def __init__(self, loop: Loop, config: Config, path: str) -> None:
        self._loop, self._config, self._path = loop, config, path
        self._born = time.monotonic()
        self._timer: Timer | None = None
        self._busy: Callable[[], bool] = lambda: True
        self._server: Server | None = None

    def begin(self, *, service: Service, server: Server, publisher: Publisher) -> None:
        def busy() -> bool:
            service.forget_removed()
            return service.busy or not publisher.idle

        self._busy, self._server = busy, server
        self.touch()

    def touch(self) -> None:
        """Something happened: count anew."""
        if self._timer is not None:
            self._timer.cancel()
        left = self._born + _GRACE - time.monotonic()
        self._timer = self._loop.later(max(self._config.idle_seconds, left, _LEAST), self._idle)

    def _idle(self) -> None:
        if self._busy() or not self.end():
            self.touch()

    def close(self, publisher: Publisher) -> None:
        """End as soon as the answer has been given and the events have been taken, or after some seconds."""
        limit = time.monotonic() + _TOLD_SECONDS

        def look() -> None:
            if not publisher.idle and time.monotonic() < limit:
                self._loop.later(_PAUSE, look)
            elif not self.end():
                self.touch()

        self._loop.later(_PAUSE, look)

    def end(self) -> bool:
        """End now, unless somebody is about to use us."""
        if self._server is None:
            return False
        with GroupLock(self._path) as held:
            if not held.try_now():
                return False
            aside = f"{self._path}.end"
            try:
                os.rename(self._path, aside)
            except FileNotFoundError:
                aside = ""
            before = len(self._server.connections)
            self._server.accept()
            if len(self._server.connections) > before:
                if aside:
                    os.rename(aside, self._path)
                return False
            if aside:
                os.unlink(aside)
            held.remove()
        self._loop.stop()
        return True
