"""Collections without a service: the same functions, on a connection, step by step."""

import sqlite3
from collections.abc import Iterator

from carina.sqlite import now
from metadatad import candidates
from metadatad.eventlog import Limits
from metadatad.records import Transaction
from metadatad.sweep import Swept, sweep


def steps(connection: sqlite3.Connection, *, chunk: int = 1000, moment: int | None = None) -> Iterator[Swept]:
    """A collection up to its end, with what each of its transactions removed; each is committed by itself."""
    moment = now() if moment is None else moment
    while True:
        examined = candidates.examine(connection, moment)
        removed = False
        for namespace, nodes in examined.dead.items():
            for start in range(0, len(nodes), chunk):
                connection.execute("BEGIN IMMEDIATE")
                swept = sweep(Transaction(connection, Limits()), namespace, nodes[start : start + chunk], moment)
                connection.execute("COMMIT")
                removed = removed or bool(swept.objects)
                yield swept
        if examined.settled:
            connection.execute("BEGIN IMMEDIATE")
            candidates.settle(connection, examined)
            connection.execute("COMMIT")
            yield Swept()
        if not (examined.more or removed):
            return


def collect(connection: sqlite3.Connection, *, moment: int | None = None) -> Swept:
    """A whole collection."""
    swept = Swept()
    for step in steps(connection, moment=moment):
        swept.add(step)
    return swept
