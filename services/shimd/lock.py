"""The lock of a group's socket: whoever starts or ends its shim holds it, and the last one removes its file."""

import fcntl
import os


class GroupLock:
    """To be entered, then taken; it is let go of at the end of the block."""

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        self._descriptor = -1

    def __enter__(self) -> "GroupLock":
        return self

    def _take(self, flags: int) -> bool:
        """Raises BlockingIOError."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, flags)
        try:
            if os.stat(self._path).st_ino == os.fstat(self._descriptor).st_ino:
                return True
        except FileNotFoundError:
            pass
        # Its last holder has removed it.
        os.close(self._descriptor)
        self._descriptor = -1
        return False

    def wait(self) -> None:
        while not self._take(fcntl.LOCK_EX):
            pass

    def try_now(self) -> bool:
        try:
            return self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False

    def remove(self) -> None:
        os.unlink(self._path)

    def leave(self) -> None:
        """Let go of it in this process: after a fork the other has it too."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        self.leave()
