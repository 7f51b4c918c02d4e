"""The descriptor lane's second socket: a one-time token is redeemed for one open file descriptor (SCM_RIGHTS)."""

import asyncio
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import Final, Self

from carina.aio.threads import in_thread
from carina.errors import NotFound, ResourceExhausted, Unavailable

LIFETIME: Final = 30.0
TOKEN: Final = 32
MAX_OFFERS: Final = 1024


class LaneServer:
    """Owns the socket and the descriptors that are on offer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offers: dict[bytes, tuple[int, asyncio.TimerHandle]] = {}

    def offer(self, descriptor: int) -> bytes:
        """Take a descriptor over and return its token, good for one use within 30 s; then the descriptor is closed."""
        if len(self._offers) >= MAX_OFFERS:
            os.close(descriptor)
            raise ResourceExhausted(f"{self.path}: {MAX_OFFERS} descriptors wait to be fetched")
        token = secrets.token_bytes(TOKEN)
        expiry = asyncio.get_running_loop().call_later(LIFETIME, self._expire, token)
        self._offers[token] = (descriptor, expiry)
        return token

    def _expire(self, token: bytes) -> None:
        descriptor, _ = self._offers.pop(token)
        os.close(descriptor)

    async def __aenter__(self) -> Self:
        self._socket = await in_thread(_bind, self.path)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)
        return self

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(peer, self._answer, peer)
        loop.call_later(LIFETIME, self._drop, peer)

    def _drop(self, peer: socket.socket) -> None:
        if peer.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(peer)
            peer.close()

    def _answer(self, peer: socket.socket) -> None:
        try:
            _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            token = peer.recv(TOKEN)
            offered = self._offers.pop(token, None)
            if offered is None:
                return
            descriptor, expiry = offered
            expiry.cancel()
            try:
                if uid in (0, os.geteuid()):
                    socket.send_fds(peer, [b"1"], [descriptor])
            finally:
                os.close(descriptor)
        except OSError:
            pass
        finally:
            self._drop(peer)

    async def __aexit__(self, *args: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for descriptor, expiry in self._offers.values():
            expiry.cancel()
            os.close(descriptor)
        self._offers.clear()
        await in_thread(self.path.unlink, missing_ok=True)


def _bind(path: Path) -> socket.socket:
    """A listening socket at `path`, in place of one that an earlier process left."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    made.bind(os.fspath(path))
    path.chmod(0o660)
    made.listen(128)
    return made


async def redeem(address: str, token: bytes) -> int:
    """Fetch the descriptor of a token.

    Raises:
        Unavailable: nobody answers at the address.
        NotFound: the token is used, expired or unknown.
    """
    return await in_thread(_redeem, address.removeprefix("unix://"), token)


def _redeem(path: str, token: bytes) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as peer:
        peer.settimeout(10)
        try:
            peer.connect(path)
            peer.sendall(token)
            data, descriptors, _, _ = socket.recv_fds(peer, 1, 1)
        except OSError as error:
            raise Unavailable(f"descriptor lane {path} does not answer: {error}") from error
        if not data or not descriptors:
            raise NotFound(f"descriptor lane {path} has nothing for this token: it is used or expired")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]
