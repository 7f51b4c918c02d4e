"""The life of a daemon's process: from the first signal handler to the exit status."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvloop
from setproctitle import setproctitle

from carina import faults, otel
from carina.aio.notify import NOBODY, ServiceManager
from carina.aio.terminal import has_terminal
from carina.errors import CarinaError
from carina.log import Settings
from carina.log import start as start_log

log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What ends a daemon, as the end of its terminal does. Otherwise SIGHUP asks it to read its configuration again."""


class Lifetime:
    """What a daemon's main function is told of its process, and tells."""

    def __init__(self, name: str, manager: ServiceManager = NOBODY) -> None:
        self.name = name
        self._manager = manager
        self._stopped = asyncio.Event()
        self._reload: asyncio.Event | None = None

    def ready(self) -> None:
        """Say that the service answers now (to the service manager, if there is one)."""
        log.info("ready")
        self._manager.notify("READY=1")
        self._manager.keep_alive()

    def stop(self) -> None:
        """Ask the daemon to end, as SIGTERM does."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._manager.notify("STOPPING=1")

    async def stopped(self) -> None:
        """Return once the process has been asked to end."""
        await self._stopped.wait()

    def reload(self) -> None:
        """Ask the daemon to read its configuration again, as SIGHUP does."""
        if self._reload is None:
            log.info("asked to reload: this service takes its settings over when it is started again")
        else:
            self._reload.set()

    async def asked_to_reload(self) -> None:
        """Return once the process has been asked to read its configuration again."""
        self._reload = self._reload or asyncio.Event()
        await self._reload.wait()
        self._reload.clear()

    @property
    def stopping(self) -> bool:
        return self._stopped.is_set()


def run(name: str, main: Callable[[Lifetime], Awaitable[None]], *, logs: Settings | None = None) -> None:
    """Run `main` as the process's only work and end the process with the status that fits.

    0 after `main` returned, 1 after a failure; a second signal ends the process at once, with 128 and its number.
    """
    raise SystemExit(_run(name, main, logs))


def _run(name: str, main: Callable[[Lifetime], Awaitable[None]], settings: Settings | None) -> int:
    setproctitle(name)
    start_log(name, settings)
    status = 0
    end_tracing = otel.start(name, os.environ)
    try:
        faults.arm(os.environ)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(name, main))
    except* CarinaError as group:
        for error in _leaves(group):
            log.error("%s", error)
        status = 1
    except* Exception:
        log.exception("ended by an unexpected error")
        status = 1
    finally:
        end_tracing()
    return status


async def _supervise(name: str, main: Callable[[Lifetime], Awaitable[None]]) -> None:
    lifetime = Lifetime(name, ServiceManager.take(os.environ))
    with _signals(lifetime):
        await main(lifetime)


@contextlib.contextmanager
def _signals(lifetime: Lifetime) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if lifetime.stopping:
            log.warning("%s again: ending at once", number.name)
            os._exit(128 + number)
        log.info("%s: stopping", number.name)
        lifetime.stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, received, number)
    terminal = has_terminal()

    def hung_up() -> None:
        if terminal and not has_terminal():
            received(signal.SIGHUP)
        else:
            lifetime.reload()

    loop.add_signal_handler(signal.SIGHUP, hung_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*SIGNALS, signal.SIGHUP))
    try:
        yield
    finally:
        for number in (*SIGNALS, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _leaves(group: BaseExceptionGroup[CarinaError]) -> Iterator[CarinaError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
