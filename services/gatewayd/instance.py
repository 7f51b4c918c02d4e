"""Who this instance is: a UUID that lasts as long as its root directory."""

import contextlib
import os
import secrets
import uuid
from pathlib import Path
from typing import Final

from carina.errors import DataLoss

FILE: Final = "uuid"
PRIVATE: Final = 0o700


def identity(root: Path) -> str:
    """Read the UUID, or make and keep one, durably, where there is none yet.

    Raises:
        DataLoss: what is kept there is no UUID.
    """
    root.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    root.chmod(PRIVATE)
    path = root / FILE
    if not path.exists():
        _keep(path, str(uuid.uuid4()))
    text = path.read_text(errors="replace").strip()
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise DataLoss(f"{path} does not hold a UUID: remove it to get a new one") from error


def _keep(path: Path, text: str) -> None:
    """Write a file that appears whole; the first of two writers wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
