"""What a daemon tells the service manager that started it: systemd, or the supervisor of `carina up`."""

import asyncio
import logging
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final, Self

log = logging.getLogger(__name__)

_OURS: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """The protocol of sd_notify(3) and sd_watchdog_enabled(3)."""

    address: str = ""
    """Of the socket that it listens on; empty: there is no manager."""
    watchdog: float = 0.0
    """Seconds without a sign of life after which it takes this process for dead; 0: it does not watch."""

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Self:
        """Read how to reach the manager, and remove it: runc and shims would take it for theirs."""
        address, pid, microseconds = (environment.pop(name, "") for name in _OURS)
        watched = microseconds.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address=address, watchdog=int(microseconds) / 1e6 if watched else 0.0)

    def notify(self, state: str, *, wait: float = 5.0) -> None:
        """Tell it something, within `wait` seconds; a manager that does not listen is no reason to end."""
        if not self.address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(wait)
            try:
                sender.sendto(state.encode(), "\0" + self.address[1:] if self.address.startswith("@") else self.address)
            except OSError as error:
                log.warning("the service manager does not listen on %s: %s", self.address, error)

    def keep_alive(self) -> None:
        """Show signs of life while the running event loop turns, three in each period of the watchdog.

        The loop's own timer sends them: where a callback blocks, calls wait and so does the sign.
        """
        if self.watchdog:
            self.notify("WATCHDOG=1", wait=0)
            asyncio.get_running_loop().call_later(self.watchdog / 3, self.keep_alive)


NOBODY: Final = ServiceManager()
"""For daemons that were started by hand."""
