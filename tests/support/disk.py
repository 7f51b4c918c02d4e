"""Disks without room."""

import errno
import os
from pathlib import Path


def fill(disk: Path) -> Path:
    """Take all that is left of the disk."""
    path = disk / "fill"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    finally:
        os.close(descriptor)
    return path
