"""A process killed at each statement of each migration: the schema is that of one version, and nothing is lost."""

import contextlib
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import faults
from carina.sqlite.migrations import apply, migrations, statements

SERVICES = ("metadatad", "snapshotd", "taskd")
STEPS = ("sqlite.migration.step", "sqlite.migration.applied", "sqlite.migration.committed")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Without syncing, which a kill is no reason for: the page cache stays."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


def schema(path: Path) -> list[tuple[str, str | None]]:
    with opened(path) as connection:
        return sorted(connection.execute("SELECT name, sql FROM sqlite_master"), key=lambda row: row[0])


def version(path: Path) -> int:
    with opened(path) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return found


def migrate(path: Path, scripts: list[str]) -> None:
    with opened(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        apply(connection, scripts, name=str(path))


def migrate_and_die(path: Path, scripts: list[str], fault: str) -> int:
    """In a child process that is killed at a fault point; its status."""
    pid = os.fork()
    if not pid:
        try:
            faults.arm({faults.VARIABLE: fault})
            migrate(path, scripts)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("service", SERVICES)
def test_killed_at_every_statement(tmp_path: Path, service: str) -> None:
    """After each kill the database has exactly the schema of its version; the next start brings it to the newest."""
    scripts = migrations(service)
    schemas: list[list[tuple[str, str | None]]] = [[]]
    for number in range(1, len(scripts) + 1):
        migrate(tmp_path / "reference", scripts[:number])
        schemas.append(schema(tmp_path / "reference"))
    total = sum(len(list(statements(script))) for script in scripts)
    kills = [("sqlite.migration.step", number) for number in range(1, total + 1)]
    kills += [(step, number) for step in STEPS[1:] for number in range(1, len(scripts) + 1)]

    for turn, (step, number) in enumerate(kills):
        path = tmp_path / f"database-{turn}"
        assert migrate_and_die(path, scripts, f"{step}:{number}") == -signal.SIGKILL, (step, number)
        assert schema(path) == schemas[version(path)], (step, number)
        migrate(path, scripts)
        assert schema(path) == schemas[-1], (step, number)


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    """What a database of the first version holds is there, once, whichever statement of an upgrade is the last."""
    scripts = migrations("metadatad")
    first = tmp_path / "first"
    migrate(first, scripts[:1])
    with opened(first) as connection:
        connection.execute("INSERT INTO namespaces (name) VALUES ('one')")
        connection.execute(
            "INSERT INTO snapshots (namespace, snapshotter, key, backend_key, kind, created_at, updated_at)"
            " VALUES ('one', 'native', 'key', 'one/1/key', 3, 1, 1)"
        )
    for number in range(1, sum(len(list(statements(script))) for script in scripts[1:]) + 1):
        path = Path(shutil.copy(first, tmp_path / f"database-{number}"))
        assert migrate_and_die(path, scripts, f"sqlite.migration.step:{number}") == -signal.SIGKILL
        migrate(path, scripts)
        with opened(path) as connection:
            assert connection.execute("SELECT key, backend_key FROM snapshots").fetchall() == [("key", "one/1/key")]
