"""A service behind the gateway: the channel to it, and what was last known of it."""

import logging
import time
from collections.abc import Sequence

from carina.errors import Unavailable
from carina.introspection import Introspection, Plugin
from carina.introspection.client import RemoteIntrospection
from carina.rpc.client import Channel, connect

log = logging.getLogger(__name__)


class Upstream:
    """Calls are passed on to a service that was just silent, since it may only be busy, but not for ever:
    after `stall` seconds without any answer to the question how it is, it counts as dead, as if its process were gone.
    """

    def __init__(self, name: str, address: str, *, stall: float = 0.0) -> None:
        self.name = name
        self.channel: Channel = connect(address)
        self.introspection: Introspection = RemoteIntrospection(self.channel)
        self.known: Sequence[Plugin] = ()
        """Its plugins, as it described them last."""
        self._stall = stall
        """0: it is waited for."""
        self._answered = time.monotonic()
        self._silent = False
        self._left: list[Channel] = []
        """Channels to where it was before, for the calls that are under way there."""

    def move(self, channel: Channel) -> None:
        """Pass new calls on to another address; those under way go on where they are."""
        for old in [old for old in self._left if not old.in_flight]:
            self._left.remove(old)
            old.close()
        self._left.append(self.channel)
        self.channel = channel
        self.introspection = RemoteIntrospection(channel)
        self.known = ()
        self.answered()

    @property
    def silence(self) -> str:
        """In words, for how long it has not answered; empty while it does, or fails at once."""
        if not self._silent:
            return ""
        return f"{self.name} does not answer since {time.monotonic() - self._answered:.0f} s"

    @property
    def stalled(self) -> bool:
        return self._silent and 0 < self._stall <= time.monotonic() - self._answered

    def route(self) -> Channel:
        """Raises Unavailable: it has not answered for long."""
        if self.stalled:
            raise Unavailable(self.silence)
        return self.channel

    def answered(self) -> None:
        """Also that nobody is there is an answer."""
        self._answered = time.monotonic()
        self._silent = False

    def unanswered(self) -> None:
        self._silent = True

    def close(self) -> None:
        for channel in (self.channel, *self._left):
            channel.close()
