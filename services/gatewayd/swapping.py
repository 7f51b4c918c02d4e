"""Services behind the gateway moved to other addresses, live: `images` and `tasks`. Back ends are metadatad's to move.

asked       what is at the new address answers, and is of that kind
compared    tasks: every task that the old one has, the new one has, with the same process
recorded    `swaps.json`, whole and on the disk
moved       new calls go to the new one; those under way end at the old one, however long they last
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from carina import context, faults
from carina.aio.threads import in_thread
from carina.api.containerd.services.transfer.v1 import TransferRequest, TransferStub
from carina.config import socket_path
from carina.errors import (
    CarinaError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from carina.namespaces.client import RemoteNamespaceStore
from carina.rpc.client import Channel, connect
from carina.swap import Lacking, Place
from carina.swap.client import RemoteSwapper
from carina.tasks.client import RemoteTaskService
from gatewayd.upstream import Upstream

FILE: Final = "swaps.json"
DAEMONS: Final = {"images": "imaged", "tasks": "taskd"}
ASK_SECONDS: Final = 5.0
PAIR_SECONDS: Final = 2.0
"""How long a client may take from opening a stream to beginning the transfer that it is for."""
ABSENT: Final = "carina-probe-of-an-absent-object"
_UNKNOWN: Final = ("unknown service", "unknown method", "method not found")


class Listener(Protocol):
    def unpaired_streams(self, address: str) -> int:
        """Connections with streams at an address, and no transfer that they belong to."""


def where(root: Path, homes: Mapping[str, str]) -> dict[str, str]:
    """Daemon -> address, as moved, unless the configuration was changed since then. It may block.

    Raises:
        DataLoss: the file is damaged.
    """
    found = dict(homes)
    for daemon, entry in _read(root).items():
        if homes.get(daemon) == entry["home"]:
            found[daemon] = entry["address"]
    return found


def _read(root: Path) -> dict[str, dict[str, str]]:
    path = root / FILE
    try:
        found: dict[str, dict[str, str]] = json.loads(path.read_text())
        return {daemon: {"home": entry["home"], "address": entry["address"]} for daemon, entry in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataLoss(f"{path} can't be read: remove it to go back to the configured addresses") from error


def _write(root: Path, entries: Mapping[str, Any]) -> None:
    temporary = root / f".{FILE}.{secrets.token_hex(4)}"
    with temporary.open("x") as file:
        file.write(json.dumps(entries))
        file.flush()
        os.fsync(file.fileno())
    faults.point("gatewayd.swap.written")
    temporary.rename(root / FILE)
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class GatewaySwapper:
    """`carina.swap.Swapper` of the whole constellation."""

    def __init__(
        self, root: Path, upstreams: Mapping[str, Upstream], homes: Mapping[str, str], listener: Listener
    ) -> None:
        self._root = root
        self._upstreams = upstreams
        self._homes = homes
        self._listener = listener
        self._turn = asyncio.Lock()

    @property
    def _backends(self) -> RemoteSwapper:
        return RemoteSwapper(self._upstreams["metadatad"].route())

    async def swap(self, services: Sequence[str], to: Place | None) -> Sequence[str]:
        if not set(services) & {*DAEMONS, "metadata"}:
            return await self._backends.swap(services, to)
        if "metadata" in services:
            raise Unimplemented(
                "metadata can't be moved live, for imaged and taskd call it too: name another address in "
                "[services.metadata] and start everything again, or move content, snapshots.NAME and diff"
            )
        if len(services) != 1:
            raise InvalidArgument(f"{services[0]} is moved alone")
        async with self._turn:
            return await self._move(services[0], to)

    async def missing(self, service: str, to: Place) -> AsyncIterator[Lacking]:
        async for page in self._backends.missing(service, to):
            yield page

    async def _move(self, service: str, to: Place | None) -> Sequence[str]:
        daemon = DAEMONS[service]
        upstream, home = self._upstreams[daemon], self._homes[daemon]
        if to is not None and to != Place(address=to.address):
            raise InvalidArgument(f"{service} takes no settings: the calls of clients go there as they are")
        address = home if to is None else to.address
        if socket_path(address) in {socket_path(other.channel.address) for other in self._upstreams.values()}:
            if socket_path(address) == socket_path(upstream.channel.address):
                return ()
            raise InvalidArgument(f"{address} is the address of another service")
        channel = connect(address)
        try:
            with context.deadline(ASK_SECONDS):
                await _ask(service, channel, address)
            if service == "tasks":
                await self._compare_tasks(upstream, channel, address)
            await self._paired(upstream.channel.address)
        except BaseException:
            channel.close()
            raise
        entries = await in_thread(_read, self._root)
        entries[daemon] = {"home": home, "address": address}
        await in_thread(_write, self._root, entries)
        faults.point("gatewayd.swap.recorded")
        upstream.move(channel)
        return [f"{service} is at {address} now"]

    async def _compare_tasks(self, upstream: Upstream, channel: Channel, address: str) -> None:
        """Raises FailedPrecondition: the new one does not have a task that the old one has."""
        missing = []
        for namespace in await RemoteNamespaceStore(self._upstreams["metadatad"].route()).list():
            with context.within(namespace=namespace.name), context.deadline(ASK_SECONDS):
                old = await RemoteTaskService(upstream.route()).list()
                new = (
                    {(task.container_id, task.pid) for task in await RemoteTaskService(channel).list()}
                    if old
                    else set()
                )
            missing += [
                f"{one.container_id} of namespace {namespace.name}"
                for one in old
                if (one.container_id, one.pid) not in new
            ]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise FailedPrecondition(
                f"tasks can't be moved: {address} does not have task {', '.join(missing[:3])}{more}, which run now"
            )

    async def _paired(self, address: str) -> None:
        """A stream at the old one is of no use to a transfer at the new one."""
        limit = time.monotonic() + PAIR_SECONDS
        while self._listener.unpaired_streams(address):
            if time.monotonic() > limit:
                raise FailedPrecondition("a stream is open for a transfer that has not begun: try again")
            await asyncio.sleep(0.05)


async def _ask(service: str, channel: Channel, address: str) -> None:
    """Raises Unavailable or FailedPrecondition: nobody answers, or something that is not of this kind."""
    try:
        if service == "tasks":
            with context.within(namespace="carina"):
                await RemoteTaskService(channel).get(ABSENT)
        else:
            await TransferStub(channel).transfer(TransferRequest())
    except NotFound:
        return
    except Unavailable as error:
        raise Unavailable(f"{service} can't be moved to {address}: {error}") from error
    except Unimplemented as error:
        if service == "tasks" or any(words in str(error).lower() for words in _UNKNOWN):
            raise FailedPrecondition(
                f"{service} can't be moved: what answers at {address} is another service"
            ) from error
    except CarinaError as error:
        if context.current().remaining == 0.0:
            raise Unavailable(f"{service} can't be moved: what is at {address} does not answer") from error
