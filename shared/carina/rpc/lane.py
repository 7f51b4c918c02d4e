"""The descriptor lane's second socket: a one-time token is redeemed for one open file descriptor (SCM_RIGHTS).

A token is good for one use within 30 seconds. Both sides use plain non-blocking sockets and `add_reader`,
for neither asyncio nor uvloop passes descriptors through its transports.
"""

import asyncio
import os
import secrets
import socket
import struct
import time
from pathlib import Path
from typing import Final, Self

from carina import context
from carina.aio.threads import in_thread
from carina.config import socket_path
from carina.errors import DeadlineExceeded, NotFound, ResourceExhausted, Unavailable
from carina.rpc.sockets import Bound, admits, bind
from carina.rpc.sockets import peer as peer_of

LIFETIME: Final = 30.0
"""Seconds that an offer stands, and that a peer may take to name its token."""
TOKEN: Final = 32
"""Bytes."""
MAX_OFFERS: Final = 1024
MAX_PEERS: Final = 256
ANSWER_SECONDS: Final = 10.0
_GIVEN: Final = b"1"
_REFUSED: Final = b"0"
_INT: Final = struct.Struct("i")


class LaneServer:
    """Owns the socket and the descriptors that are on offer. Peers must be root, our user, or of the group `gid`."""

    def __init__(self, path: Path, *, gid: int | None = None) -> None:
        self.path = path
        self._gid = gid
        self._bound: Bound | None = None
        self._offers: dict[bytes, tuple[int, asyncio.TimerHandle]] = {}
        self._peers: dict[socket.socket, asyncio.TimerHandle] = {}

    def offer(self, descriptor: int) -> bytes:
        """Take a descriptor over and return its token. Whatever happens, the descriptor is closed here in the end.

        Raises:
            ResourceExhausted: too many descriptors wait to be fetched.
        """
        if len(self._offers) >= MAX_OFFERS:
            os.close(descriptor)
            raise ResourceExhausted(f"descriptor lane {self.path}: {MAX_OFFERS} descriptors wait to be fetched")
        token = secrets.token_bytes(TOKEN)
        expiry = asyncio.get_running_loop().call_later(LIFETIME, self._withdraw, token)
        self._offers[token] = descriptor, expiry
        return token

    def _withdraw(self, token: bytes) -> None:
        descriptor, expiry = self._offers.pop(token)
        expiry.cancel()
        os.close(descriptor)

    async def __aenter__(self) -> Self:
        self._bound = await in_thread(bind, self.path, mode=0o660, gid=self._gid, kind=socket.SOCK_SEQPACKET)
        self._gid = self._bound.gid
        asyncio.get_running_loop().add_reader(self._bound.sock, self._accept, self._bound.sock)
        return self

    def _accept(self, listening: socket.socket) -> None:
        try:
            peer, _ = listening.accept()
        except OSError:
            return
        peer.setblocking(False)
        if len(self._peers) >= MAX_PEERS or not admits(peer_of(peer), gid=self._gid):
            peer.close()
            return
        loop = asyncio.get_running_loop()
        self._peers[peer] = loop.call_later(LIFETIME, self._drop, peer)
        loop.add_reader(peer, self._answer, peer)

    def _drop(self, peer: socket.socket) -> None:
        self._peers.pop(peer).cancel()
        asyncio.get_running_loop().remove_reader(peer)
        peer.close()

    def _answer(self, peer: socket.socket) -> None:
        try:
            token = peer.recv(TOKEN)
            if token in self._offers:
                try:
                    socket.send_fds(peer, [_GIVEN], [self._offers[token][0]])
                finally:
                    self._withdraw(token)
            elif token:
                peer.send(_REFUSED)
        except OSError:
            pass
        self._drop(peer)

    async def __aexit__(self, *args: object) -> None:
        assert self._bound is not None
        asyncio.get_running_loop().remove_reader(self._bound.sock)
        self._bound.sock.close()
        for peer in list(self._peers):
            self._drop(peer)
        for token in list(self._offers):
            self._withdraw(token)
        await in_thread(self._bound.unlink)


async def redeem(address: str, token: bytes) -> int:
    """Fetch the descriptor of a token; the caller closes it.

    Raises:
        Unavailable: nobody answers at the address.
        NotFound: the token is used, expired or unknown.
        DeadlineExceeded: the call's deadline is over.
    """
    path = socket_path(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as peer:
        try:
            await _connect(peer, path)
            peer.send(token)
            await _readable(peer, path)
            # socket.recv_fds ignores its flags, and a descriptor must never be inheritable, not even for an instant.
            data, extra, _, _ = peer.recvmsg(len(_GIVEN), socket.CMSG_SPACE(_INT.size), socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"descriptor lane {path} does not answer: {error.strerror or error}") from error
    for level, kind, content in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            (descriptor,) = _INT.unpack(content)
            return int(descriptor)
    if not data:
        raise Unavailable(f"descriptor lane {path} closed the connection")
    raise NotFound(f"descriptor lane {path} has nothing for this token: it is used or expired")


async def _connect(peer: socket.socket, path: Path) -> None:
    """A full backlog is the one thing that a non-blocking connection to a unix socket may have to wait for."""
    limit = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return peer.connect(os.fspath(path))
        except BlockingIOError:
            if time.monotonic() > limit:
                raise
            await asyncio.sleep(0.005)


async def _readable(peer: socket.socket, path: Path) -> None:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def arrive() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(peer, arrive)
    remaining = context.current().remaining
    try:
        async with asyncio.timeout(ANSWER_SECONDS if remaining is None else min(remaining, ANSWER_SECONDS)):
            await arrived
    except TimeoutError:
        if remaining is not None and remaining < ANSWER_SECONDS:
            raise DeadlineExceeded(f"descriptor lane {path}: no answer in the time given") from None
        raise Unavailable(f"descriptor lane {path} does not answer") from None
    finally:
        loop.remove_reader(peer)
