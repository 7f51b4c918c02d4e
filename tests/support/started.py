"""A few services on scratch directories, forked, each as a test wants it."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.forked import Nursery, Service

STORES = ("contentd", "snapshotd", "metadatad")


class Services:
    """Services on one root directory, with their sockets and logs in `state`."""

    def __init__(self, nursery: Nursery, root: Path, state: Path) -> None:
        self.root = root
        self.state = state
        self.running: dict[str, Service] = {}
        self._nursery = nursery

    def start(self, name: str, *, fault: str = "", careless: bool = False) -> Service:
        """Start a service, or the next one of its name; it need not be ready yet."""
        more = ("--snapshotter", "native") if name == "snapshotd" else ()
        arguments = ("--root", str(self.root), "--state", str(self.state), *more)
        log = self.state / f"{name}.log"
        self.running[name] = self._nursery.start(name, *arguments, log=log, fault=fault, careless=careless)
        return self.running[name]

    def ready(self) -> None:
        """Wait until they answer; one that is armed may be dead before that."""
        for service in self.running.values():
            assert service.ready() or service.fault, service.log.read_text()

    def kill(self) -> None:
        for service in self.running.values():
            service.kill()


@contextlib.contextmanager
def started(
    nursery: Nursery,
    root: Path,
    state: Path,
    *names: str,
    faults: Mapping[str, str] | None = None,
    careless: bool = False,
) -> Iterator[Services]:
    """Services that answer; some are armed with a fault point. All are dead after the block."""
    services = Services(nursery, root, state)
    try:
        for name in names:
            services.start(name, fault=(faults or {}).get(name, ""), careless=careless)
        services.ready()
        yield services
    finally:
        services.kill()
