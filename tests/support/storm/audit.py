"""After a round: is everything there that was acknowledged, do records and stores agree, is nothing left over?"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Final, TypeVar

from carina import context
from carina.check import Finding, Options
from carina.check.client import RemoteChecker
from carina.client import Client
from carina.client.image import describe, read
from carina.digest import Digest
from carina.errors import CarinaError, NotFound, Unimplemented
from carina.events import Cursor, Edge
from carina.gc.client import RemoteCollector
from carina.images import Image
from carina.images.manifest import chain_ids
from support.ledger import Key
from support.storm.accounts import Accounts
from support.storm.peers import SECONDS, Ours, Peer, mounts, processes
from support.storm.work import UNPACKED_NOT, Worker, data_of

T = TypeVar("T")
DESCRIPTORS: Final = 64 + 40
"""Descriptors by which a service may differ from one that has just started: 64 blobs are kept open for the next."""


async def patiently(call: Callable[[], Awaitable[T]], *, seconds: float = SECONDS) -> T:
    """Call until it doesn't fail, except for what can't be otherwise."""
    limit = time.monotonic() + seconds
    while True:
        try:
            with context.deadline(20):
                return await call()
        except (NotFound, Unimplemented):
            raise
        except CarinaError:
            if time.monotonic() > limit:
                raise
        await asyncio.sleep(0.1)


async def recovered(peer: Peer, accounts: Accounts, client: Client) -> bool:
    """Whether everything answers again within a minute."""
    limit = time.monotonic() + SECONDS
    parts: dict[str, Callable[[], Awaitable[object]]] = {
        "tasks": client.tasks.list,
        "images": client.images.list,
        "leases": client.leases.list,
        "content": lambda: _first(client),
        "snapshots": client.snapshotter("overlayfs").cleanup,
    }
    with context.within(namespace=peer.namespaces[0]):
        for name, call in parts.items():
            try:
                await patiently(call, seconds=max(1.0, limit - time.monotonic()))
            except Unimplemented:
                pass
            except CarinaError as error:
                accounts.stuck.append(f"{name} does not come back: {error}")
                return False
    return True


async def _first(client: Client) -> None:
    async for _ in client.content.walk():
        return


async def losses(client: Client, accounts: Accounts) -> None:
    """Read back everything that is promised."""
    allowed = accounts.ledger.allowed()
    found: dict[Key, Hashable] = {}
    for key, values in allowed.items():
        try:
            found[key] = await patiently(lambda: _value(client, key))  # noqa: B023
        except NotFound:
            found[key] = None
        except CarinaError as error:
            found[key] = f"{type(error).__name__}: {error}"
        if str(found[key]).endswith(UNPACKED_NOT) and found[key] in values:
            await patiently(lambda: _drop_image(client, key))  # noqa: B023
            found[key] = None
        elif found[key] not in values:
            expected = " or ".join(sorted(f"{value!r:.90}" for value in values))
            accounts.lost.append(f"{key[0]} {key[1]} is {found[key]!r:.200}, not {expected}")
    accounts.settle(found)


async def _drop_image(client: Client, key: Key) -> None:
    """What was pulled half-way is nothing to go on with."""
    namespace, _, name = key[1].partition("/")
    with context.within(namespace=namespace):
        await client.images.delete(name, sync=True)


async def _value(client: Client, key: Key) -> Hashable:
    kind, (namespace, _, name) = key[0], key[1].partition("/")
    with context.within(namespace=namespace):
        if kind == "lease":
            id = key[1].replace("/", "-")
            return "there" if id in {lease.id for lease in await client.leases.list()} else None
        if kind in ("image", "loaded"):
            return await _image(client, await client.images.get(name), unpacked=kind == "image")
        data = data_of(key)
        info = await client.content.info(Digest.of(data))
        async with await client.content.reader(info.digest) as reader:
            there = await reader.read(0, info.size)
        labels = {key: value for key, value in info.labels.items() if "distribution.source" not in key}
        return tuple(sorted(labels.items())) if there == data else "other bytes"


async def _image(client: Client, image: Image, *, unpacked: bool) -> Hashable:
    """Its digest, if all of it is there with the right bytes."""
    described = await describe(client.content, image)
    for layer in described.manifest.layers:
        if Digest.of(await read(client.content, layer)) != layer.digest:
            return f"layer {layer.digest} has other bytes"
    if unpacked:
        chain = chain_ids(described.config.diff_ids)[-1]
        try:
            await client.snapshotter("overlayfs").stat(str(chain))
        except NotFound:
            return f"{image.target.digest}{UNPACKED_NOT}"
    return str(image.target.digest)


async def disagreements(client: Client, accounts: Accounts, *, repair: bool) -> None:
    """What `carina check` finds, once what was cut off is settled and collected.

    `repair`: on a full disk the row of an ingest can't be removed either; it would expire after a day.
    """
    limit = time.monotonic() + SECONDS
    while True:
        wrong = ["no check"]
        with contextlib.suppress(CarinaError):
            with context.deadline(60):
                await RemoteCollector(client.channel).run(sync=True)
                if repair:
                    async for _ in RemoteChecker(client.channel).check(Options(repair=True, hash=False)):
                        pass
                found = RemoteChecker(client.channel).check(Options())
                wrong = [_told(one) async for one in found if isinstance(one, Finding)]
        if not wrong:
            return
        if time.monotonic() > limit:
            accounts.leaked += [f"check: {text}" for text in wrong]
            return
        await asyncio.sleep(0.5)


def _told(one: Finding) -> str:
    return f"{one.type} {one.id}: {one.kind}, {one.detail}"


class EventAudit:
    """The log of events, round by round: numbers without a gap, and what it says of each container."""

    def __init__(self) -> None:
        self._place: Cursor | None = None

    async def check(self, client: Client, accounts: Accounts, *, full: bool) -> None:
        """With a full disk an event can't be kept; containerd's shims tell it five times, and no more."""
        topics: dict[str, list[str]] = {}
        try:
            async for entry in client.event_log.read(self._place or Edge.OLDEST, follow=False):
                if entry.envelope is None:
                    continue
                last, self._place = self._place, entry.cursor
                if last and entry.cursor.log == last.log and entry.cursor.sequence != last.sequence + 1:
                    accounts.lost.append(f"event {entry.cursor} follows {last}")
                for run in accounts.runs:
                    if run.id.encode() in entry.envelope.event.value and entry.envelope.namespace == run.namespace:
                        topics.setdefault(run.id, []).append(entry.envelope.topic)
        except CarinaError as error:
            accounts.lost.append(f"the log of events can't be read: {error}")
            return
        for run in accounts.runs if not full else ():
            self._check_run(topics.get(run.id, []), run.id, accounts, started=run.started)

    def _check_run(self, topics: list[str], id: str, accounts: Accounts, *, started: bool) -> None:
        order = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
        own = [topic for topic in topics if topic in order]
        # Processes executed in it have exits of their own, and so does a container deleted while it ran.
        firsts = [own.index(topic) for topic in order if topic in own]
        if started and (missing := [topic for topic in order[:3] if topic not in own]):
            accounts.lost.append(f"events of {id}: no {', '.join(missing)}, only {', '.join(topics)}")
        if started and firsts != sorted(firsts):
            accounts.lost.append(f"events of {id} are not in their order: {', '.join(own)}")
        for topic in order[:2] + order[3:]:
            if own.count(topic) > 1 and topic != "/tasks/delete":
                accounts.lost.append(f"events of {id}: {topic} {own.count(topic)} times")


async def tidied(workers: list[Worker], accounts: Accounts) -> None:
    """Every container accounted for, and removed."""
    tidier = workers[0]
    for run in accounts.runs:
        limit = time.monotonic() + SECONDS
        while True:
            try:
                async with asyncio.timeout(SECONDS):
                    accounts.lost += await tidier.tidy(run)
                break
            except (CarinaError, TimeoutError) as error:
                if time.monotonic() > limit:
                    accounts.stuck.append(f"container {run.id} can't be removed: {type(error).__name__} {error}")
                    break
            await asyncio.sleep(0.2)


class Log:
    """What services say of mistakes of their own."""

    def __init__(self, peer: Peer) -> None:
        self._path = peer.log
        self._read = 0

    def check(self, accounts: Accounts, *, excused: bool) -> None:
        """Tracebacks since the last time; without memory there may be any."""
        data = self._path.read_bytes()[self._read :] if self._path.exists() else b""
        self._read += len(data)
        if not excused:
            pieces = data.decode(errors="replace").split("Traceback (most recent call last)")
            for piece in pieces[1:]:
                lines = [line for line in piece.splitlines()[1:60] if line and not line.startswith(" ")]
                accounts.leaked.append(f"a traceback in the log: {lines[0][:200] if lines else piece[:200]}")


class Census:
    """What is there beside the promised: processes, mounts, control groups, FIFOs, bundles, descriptors, files."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._descriptors: dict[str, int] = {}

    async def check(self, accounts: Accounts) -> None:
        """What is removed in the background has half a minute."""
        limit = time.monotonic() + 30
        while (left := await asyncio.to_thread(self._left)) and time.monotonic() < limit:
            await asyncio.sleep(0.2)
        accounts.leaked += left
        for name, pid in self._peer.services().items():
            with contextlib.suppress(OSError):
                count = len(os.listdir(f"/proc/{pid}/fd"))
                lowest = self._descriptors[name] = min(count, self._descriptors.get(name, count))
                if count > lowest + DESCRIPTORS:
                    accounts.leaked.append(f"{name} has {count} descriptors, and had {lowest}")

    def _left(self) -> list[str]:
        peer = self._peer
        lines = dict(processes())
        left = [f"shim {pid}: {lines.get(pid, '')[:160]}" for pid in peer.shims()]
        left += [f"mount {mount}" for mount in mounts(peer.directory) if mount != str(peer.disk)]
        left += [f"control group {path}" for path in peer.control_groups()]
        for path in peer.state.rglob("*") if isinstance(peer, Ours) else ():
            with contextlib.suppress(OSError):
                if path.is_fifo() or path.name == "config.json":
                    left.append(f"file {path}")
        if isinstance(peer, Ours):
            left += [f"file {path}" for path in _temporary(peer.root)]
        return left


def _temporary(root: Path) -> list[Path]:
    """Files that only exist while something is being made."""
    found = []
    for folder, folders, files in os.walk(root):
        if Path(folder).name in ("snapshots", "blobs"):
            folders.clear()
        found += [Path(folder, name) for name in files if name.endswith((".tmp", ".new"))]
    return found


def memory(peer: Peer) -> dict[str, float]:
    """Proportional set size in MiB (proc_pid_smaps(5))."""
    result = {}
    for name, pid in peer.services().items():
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            result[name] = round(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024, 1)
    return result
