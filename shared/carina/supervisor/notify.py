"""The socket where services say READY=1, by the protocol of sd_notify(3)."""

import os
import socket
import struct
from pathlib import Path
from typing import Final, Self

_CREDENTIALS: Final = struct.Struct("3i")


class NotifySocket:
    """A datagram socket that learns each sender's pid from the kernel (SO_PASSCRED)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        self._socket.bind(os.fspath(path))
        path.chmod(0o600)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[tuple[int, dict[str, str]]]:
        """What has arrived: (pid, assignments) each."""
        messages: list[tuple[int, dict[str, str]]] = []
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return messages
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid, _, _ = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])
                    lines = data.decode(errors="replace").splitlines()
                    messages.append((pid, dict(line.split("=", 1) for line in lines if "=" in line)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)
