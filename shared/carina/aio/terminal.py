"""The controlling terminal (tty(4))."""

import os


def has_terminal() -> bool:
    """Whether the process has one. If not, SIGHUP said that it has gone, or came from somebody else."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True
