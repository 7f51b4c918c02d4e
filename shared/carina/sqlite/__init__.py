"""SQLite for asyncio: one writer, a few snapshot readers, whole transactions as plain functions.

A transaction is a function of a `sqlite3.Connection`. It runs in the connection's own thread in one hop, so nothing can
be awaited inside it, and a caller that is cancelled leaves either all of it or nothing.
What was committed survives power loss (WAL with `synchronous=FULL`).
"""

from carina.sqlite.database import Database, open_database
from carina.sqlite.values import from_time, now, to_time

__all__ = ["Database", "from_time", "now", "open_database", "to_time"]
