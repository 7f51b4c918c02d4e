"""Collections without a service: the same functions, on a connection, step by step."""

import contextlib
import sqlite3
from collections.abc import Generator, Iterator

from carina.sqlite import now
from metadatad import candidates
from metadatad.eventlog import Limits
from metadatad.records import Transaction
from metadatad.sweep import Swept, sweep


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[Transaction]:
    """A transaction of the block's, which is undone where the block is left in any other way than by its end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield Transaction(connection, Limits())
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def steps(
    connection: sqlite3.Connection, *, chunk: int = 1000, moment: int | None = None
) -> Generator[Swept, None, None]:
    """A collection up to its end, with what it removed since the step before.

    There is a step before the commit of each transaction and one after it; whoever goes no further has crashed there.
    """
    moment = now() if moment is None else moment
    while True:
        examined = candidates.examine(connection, moment)
        removed = False
        yield Swept()
        for namespace, nodes in examined.dead.items():
            for start in range(0, len(nodes), chunk):
                with transaction(connection) as one:
                    swept = sweep(one, namespace, nodes[start : start + chunk], moment, doomed=frozenset(nodes))
                    yield Swept()
                removed = removed or bool(swept.objects)
                yield swept
        if examined.settled:
            with transaction(connection):
                candidates.settle(connection, examined)
                yield Swept()
            yield Swept()
        if not (examined.more or removed):
            return


def collect(connection: sqlite3.Connection, *, moment: int | None = None) -> Swept:
    """A whole collection."""
    swept = Swept()
    for step in steps(connection, moment=moment):
        swept.add(step)
    return swept
