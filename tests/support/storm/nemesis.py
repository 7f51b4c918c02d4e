"""What goes wrong in a storm. Each kind hurts something for a while and makes it whole again before it returns.

A kind is a coroutine function of the peer, the accounts and the round's source of chance; it returns what it did.
"""

import asyncio
import contextlib
import errno
import os
import random
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.storm.accounts import Accounts
from support.storm.peers import Peer, processes

DESCRIPTORS: Final = 24
"""Descriptors beyond those in use which a service is left with."""
MEMORY: Final = 6 << 20
"""Bytes of address space, likewise."""


@dataclass
class Harm:
    """What was done to whom."""

    kind: str
    hurt: set[str] = field(default_factory=set)
    """Services whose calls may suffer; `*` for all."""
    detail: str = ""


Kind = Callable[[Peer, Accounts, random.Random], Awaitable[Harm]]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _some(peer: Peer, chance: random.Random) -> tuple[str, int] | None:
    services = sorted(peer.services().items())
    return chance.choice(services) if services else None


async def kill_service(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """SIGKILL to one service, or to several within a moment."""
    hurt = set()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if chosen := _some(peer, chance):
            _signal(chosen[1], signal.SIGKILL)
            hurt.add(chosen[0])
        await asyncio.sleep(chance.random() * 0.3)
    return Harm("kill service", hurt, ", ".join(sorted(hurt)))


async def kill_everything(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """SIGKILL to all services at once, as an operator's mistake or the kernel does; containers go on."""
    for pid in peer.services().values():
        _signal(pid, signal.SIGKILL)
    return Harm("kill all services", {"*"})


async def stop_service(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """SIGSTOP to a service for seconds."""
    chosen = _some(peer, chance)
    if chosen is None:
        return Harm("stop service")
    seconds = chance.uniform(0.5, 5)
    _signal(chosen[1], signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        _signal(chosen[1], signal.SIGCONT)
    return Harm("stop service", {chosen[0]}, f"{chosen[0]} for {seconds:.1f} s")


def _shim(peer: Peer, chance: random.Random) -> int | None:
    shims = sorted(peer.shims())
    return chance.choice(shims) if shims else None


async def kill_shim(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """SIGKILL to a shim; its containers may go with it, which whoever waits must be told."""
    pid = _shim(peer, chance)
    if pid is None:
        return Harm("kill shim", detail="there was none")
    line = dict(processes()).get(pid, "")
    own = "containerd-shim-carina" in line
    for run in accounts.runs:  # ours is replaced, and its containers go on
        if not run.removed and f" {run.namespace} " in f"{line} " and (not own and run.id in line.split()):
            run.excused = True
    _signal(pid, signal.SIGKILL)
    return Harm("kill shim", {"taskd"}, "ours" if own else "containerd's")


async def stop_shim(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    pid = _shim(peer, chance)
    if pid is None:
        return Harm("stop shim", detail="there was none")
    seconds = chance.uniform(0.5, 4)
    _signal(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        _signal(pid, signal.SIGCONT)
    return Harm("stop shim", {"taskd"}, f"{seconds:.1f} s")


def _workers(peer: Peer) -> list[int]:
    """Processes that services have started for a piece of work."""
    found = []
    for pid in peer.services().values():
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


async def kill_worker(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """SIGKILL to the next process that a service has for a piece of work: a layer's, a shim's start."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + 3
    while loop.time() < limit:
        if workers := _workers(peer):
            pid = chance.choice(workers)
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:60]
                _signal(pid, signal.SIGKILL)
                return Harm("kill worker", {"imaged", "taskd"}, line)
        await asyncio.sleep(0.01)
    return Harm("kill worker", detail="there was none")


async def registry_away(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """The registry dies in the middle of whatever it sends, and comes back."""
    if peer.registry is None:
        return Harm("registry away", detail="there was none")
    peer.registry.kill()
    try:
        await asyncio.sleep(chance.uniform(0.5, 3))
    finally:
        await asyncio.to_thread(peer.registry.__enter__)
    return Harm("registry away", {"imaged"})


async def fill_disk(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """Not a byte is left for seconds."""
    path = peer.disk / "filler"
    await asyncio.to_thread(_fill, path)
    try:
        await asyncio.sleep(chance.uniform(1, 3))
    finally:
        path.unlink()
    return Harm("full disk", {"*"})


def _fill(path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        size = 64 << 20
        offset = 0
        while size >= 4096:
            try:
                os.posix_fallocate(descriptor, offset, size)
                offset += size
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    finally:
        os.close(descriptor)


async def fill_inodes(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """No file can be made for seconds."""
    folder = peer.disk / "many"
    folder.mkdir()
    made = await asyncio.to_thread(_make_files, folder)
    try:
        await asyncio.sleep(chance.uniform(1, 3))
    finally:
        await asyncio.to_thread(shutil.rmtree, folder)
    return Harm("full inode table", {"*"}, f"{made} files")


def _make_files(folder: Path) -> int:
    number = 0
    with contextlib.suppress(OSError):
        while True:
            os.close(os.open(folder / str(number), os.O_CREAT | os.O_WRONLY, 0o600))
            number += 1
    return number


async def few_descriptors(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """A service can open hardly any file for seconds."""
    chosen = _some(peer, chance)
    if chosen is None:
        return Harm("few descriptors")
    name, pid = chosen
    with contextlib.suppress(ProcessLookupError, FileNotFoundError), _limited(pid, resource.RLIMIT_NOFILE) as limit:
        limit(len(os.listdir(f"/proc/{pid}/fd")) + DESCRIPTORS // chance.choice((1, 4, 24)))
        await asyncio.sleep(chance.uniform(1, 3))
    return Harm("few descriptors", {name}, name)


async def little_memory(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """A service gets hardly any memory for a second: requests fail, or it dies."""
    chosen = _some(peer, chance)
    if chosen is None:
        return Harm("little memory")
    name, pid = chosen
    with contextlib.suppress(ProcessLookupError, FileNotFoundError), _limited(pid, resource.RLIMIT_AS) as limit:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit(pages * os.sysconf("SC_PAGESIZE") + MEMORY // chance.choice((1, 6, 24)))
        await asyncio.sleep(chance.uniform(0.5, 2))
    return Harm("little memory", {name}, name)


@contextlib.contextmanager
def _limited(pid: int, what: int) -> Iterator[Callable[[int], object]]:
    before = resource.prlimit(pid, what)
    try:
        yield lambda value: resource.prlimit(pid, what, (value, before[1]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


KILLS: Final[Sequence[Kind]] = (kill_service, stop_service, kill_shim, stop_shim, registry_away)
"""What makes sense for any peer."""
OURS: Final[Sequence[Kind]] = (
    kill_service, stop_service, kill_shim, stop_shim, kill_everything, kill_worker, fill_disk, fill_inodes,
    few_descriptors, little_memory, registry_away,
)  # fmt: skip
