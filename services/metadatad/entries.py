"""One back end: the channel to it, what is built on it, and whether it answers.

It is asked for something that is not there, which goes all the way through it: that tells a process that hangs,
one that is not what it should be, and one whose disk is gone, from one that works.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from carina import context
from carina.aio.threads import in_thread
from carina.backends import Backend
from carina.config import socket_path
from carina.content.client import RemoteContentStore
from carina.descriptor import Descriptor
from carina.diff.client import RemoteDiffer
from carina.digest import Digest
from carina.errors import AlreadyExists, CarinaError, FailedPrecondition, NotFound, Unavailable, Unimplemented
from carina.leases import Lease
from carina.leases.client import RemoteLeaseManager
from carina.rpc.client import Channel, connect
from carina.sandboxes.client import RemoteSandboxController
from carina.snapshots.client import RemoteSnapshotter
from metadatad.description import described
from metadatad.gate import Gate
from metadatad.peers import Peer
from metadatad.removal import Remover
from metadatad.snapshots import NamespacedSnapshotter

PROBE_SECONDS: Final = 2.0
"""How long a back end may take to answer a question of no consequence."""
ABSENT: Final = "carina-probe-of-an-absent-object"
_NO_LAYER: Final = Descriptor(
    media_type="application/vnd.carina.probe", digest=Digest.of(ABSENT.encode()), size=len(ABSENT)
)
_NOUNS: Final = {
    "snapshot": "snapshotter",
    "content": "content store",
    "diff": "differ",
    "sandbox": "sandbox controller",
}
_UNKNOWN: Final = ("unknown service", "unknown method", "method not found")
"""How servers say that they lack a service altogether: grpc-go, ours, and gRPC's other implementations."""

Key = tuple[str, str]
"""Type and name."""

log = logging.getLogger(__name__)


class Entry:
    """A back end of the registry."""

    def __init__(self, backend: Backend, *, answer_seconds: float, work_seconds: float) -> None:
        self.backend = backend
        """As it was last known to be."""
        self.stated = backend
        """As it was configured or added, or where it was moved to."""
        self.home = backend
        """As it was configured or added: where it is back."""
        self.gate = Gate(f"{backend.type} back end {backend.name}")
        self.remover: Remover | None = None
        self.snapshotter: NamespacedSnapshotter | None = None
        self.asked = False
        """Whether it answered when it was last asked."""
        self.slow = False
        """Whether it ran into the limit then, rather than fail at once."""
        self.wake = asyncio.Event()
        """Set to have it asked again at once."""
        self.on_health: Callable[[str, bool], None] = lambda name, serving: None
        self._seconds = (answer_seconds, work_seconds)
        self._turn = asyncio.Lock()
        self.channel, self.peer = self._connect()

    @property
    def key(self) -> Key:
        return self.stated.type, self.stated.name

    @property
    def remote(self) -> RemoteSnapshotter:
        """The snapshotter over there."""
        return RemoteSnapshotter(self.channel, self.stated.snapshotter or self.stated.name)

    def restate(self, stated: Backend) -> Channel | None:
        """Take over what the configuration says now. Returns the channel that is not used any more, if there is one."""
        before, self.stated = self.stated, stated
        self.asked = False
        self.wake.set()
        if _place(before) == _place(stated):
            self.backend = replace(stated, error=self.backend.error)
            return None
        old = self.channel
        self.backend = replace(stated, error="it was not asked yet")
        self.channel, self.peer = self._connect()
        return old

    def _connect(self) -> tuple[Channel, Peer]:
        stated = self.stated
        noun = "snapshotter" if stated.type == "snapshot" else f"{stated.type} back end"
        peer = Peer(
            name=f"{noun} {stated.name}",
            namespace=stated.namespace,
            lease=stated.lease,
            answer_seconds=self._seconds[0],
            work_seconds=self._seconds[1],
        )
        peer.breaker.on_open = self.wake.set
        channel = connect(stated.address)
        channel.on_lost = self._lost
        return channel, peer

    def _lost(self) -> None:
        if self.asked:
            self.wake.set()

    async def probe(self) -> None:
        """Find out how it is."""
        async with self._turn:
            stated, channel, begun = self.stated, self.channel, time.monotonic()
            found, error = stated, ""
            try:
                async with _asking(self.peer):
                    await self._ask(stated, channel)
                    if stated.lease:
                        await _hold(stated.lease, channel)
                    # Each time: another process may have taken its place.
                    found = await described(stated, channel)
            except CarinaError as caught:
                error = await in_thread(_reason, stated.address, str(caught) or type(caught).__name__)
            if stated is self.stated:
                self.slow = bool(error) and time.monotonic() - begun > PROBE_SECONDS / 2
                self._known(found if not error else self.backend, error)

    def _known(self, found: Backend, error: str) -> None:
        before, first = self.backend.error, not self.asked
        self.backend = replace(found, error=error)
        self.asked = not error
        if error == before and not (first and not error):
            return
        self.on_health(self.stated.name, not error)
        if error:
            log.log(logging.DEBUG if before else logging.WARNING, "%s: %s", self.peer.name, error)
        elif before:
            log.info("%s answers again", self.peer.name)

    async def _ask(self, stated: Backend, channel: Channel) -> None:
        try:
            if stated.type == "snapshot":
                await RemoteSnapshotter(channel, stated.snapshotter or stated.name).stat(ABSENT)
            elif stated.type == "content":
                await RemoteContentStore(channel).status(ABSENT)
            elif stated.type == "sandbox":
                await RemoteSandboxController(channel, stated.name).status(ABSENT)
            else:
                await _ask_differ(channel)
        except NotFound:
            pass
        except Unimplemented as error:
            noun = _NOUNS[stated.type]
            raise FailedPrecondition(f"what answers at {stated.address} is no {noun}: {error}") from error


async def _ask_differ(channel: Channel) -> None:
    """There is no harmless question that a differ must answer well: one that it refuses is answered, too."""
    try:
        await RemoteDiffer(channel).apply(_NO_LAYER, ())
    except Unavailable:
        raise
    except Unimplemented as error:
        if any(words in str(error).lower() for words in _UNKNOWN):
            raise
    except CarinaError:
        if context.current().remaining == 0.0:
            raise


async def _hold(lease: str, channel: Channel) -> None:
    """Have the standing lease."""
    with contextlib.suppress(AlreadyExists):
        await RemoteLeaseManager(channel).create(Lease(id=lease))


@contextlib.asynccontextmanager
async def _asking(peer: Peer) -> AsyncIterator[None]:
    """A probe is a call of its own, with nothing of whoever caused it."""
    call = context.Call(namespace=peer.namespace or "carina", deadline=time.monotonic() + PROBE_SECONDS)
    with context.use(call):
        async with peer.probing(PROBE_SECONDS):
            yield


def _reason(address: str, error: str) -> str:
    path = socket_path(address)
    if path.exists() and not path.is_socket():
        return f"nothing answers at {address}: it is no socket"
    return error


def _place(backend: Backend) -> tuple[str, ...]:
    """What calls to a back end depend on."""
    return backend.address, backend.namespace, backend.snapshotter, backend.lease
