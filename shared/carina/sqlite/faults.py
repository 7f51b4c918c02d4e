"""SQLite's result codes as errors of the domain, where a caller can act upon them."""

import sqlite3
from typing import Final

from carina.errors import CarinaError, DataLoss, Internal, ResourceExhausted, Unavailable

_CLASSES: Final[dict[int, tuple[type[CarinaError], str]]] = {
    sqlite3.SQLITE_FULL: (ResourceExhausted, "can't grow: the disk or quota is full"),
    sqlite3.SQLITE_IOERR: (Unavailable, "can't be read or written"),
    sqlite3.SQLITE_BUSY: (Unavailable, "is locked by another process"),
    sqlite3.SQLITE_LOCKED: (Unavailable, "is locked"),
    sqlite3.SQLITE_READONLY: (Unavailable, "is read-only"),
    sqlite3.SQLITE_CANTOPEN: (Unavailable, "can't be opened"),
    sqlite3.SQLITE_CORRUPT: (DataLoss, "is damaged"),
    sqlite3.SQLITE_NOTADB: (DataLoss, "is damaged or no database"),
    sqlite3.SQLITE_TOOBIG: (ResourceExhausted, "refuses a value: it is too big"),
}


def translated(error: sqlite3.Error, name: str) -> CarinaError:
    """The domain's error for one of SQLite's; Internal for what only a mistake of ours brings about."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:  # the index of the log could not be made larger
        code = sqlite3.SQLITE_FULL
    if code is not None and (code & 0xFF) in _CLASSES:
        kind, text = _CLASSES[code & 0xFF]
        return kind(f"database {name} {text} ({error})")
    return Internal(f"database {name}: {error}")
