"""What a tree takes on disk."""

import os
from pathlib import Path

from carina.linux.errnos import translated


def measure(directory: Path) -> tuple[int, int]:
    """Bytes allocated and inodes of a tree, its top included; what has several names counts once.

    Raises:
        CarinaError: the tree can't be read.
    """
    linked: set[tuple[int, int]] = set()
    pending = [str(directory)]
    try:
        size, inodes = os.lstat(directory).st_blocks * 512, 1
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # a container at work
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif status.st_nlink > 1:
                        if (identity := (status.st_dev, status.st_ino)) in linked:
                            continue
                        linked.add(identity)
                    size += status.st_blocks * 512
                    inodes += 1
    except OSError as error:
        raise translated(error, f"measuring {directory}") from error
    return size, inodes
