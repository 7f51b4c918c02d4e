"""What becomes of a database that is damaged, gone, or of somebody else: one sentence, a way out, and nothing lost."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carina.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted
from carina.sqlite import copies, open_database
from carina.sqlite.migrations import migrations
from metadatad import backup, found, salvage
from metadatad.backup import DatabaseBackup
from metadatad.rebuild import read_list
from metadatad.restore import restore

STATE = Path(f"/tmp/carina-lost-{os.getpid()}")
"""A socket's path must be short."""
WAY_OUT = "go on with `carina metadata restore FILE`, from a backup, or `carina metadata rebuild`, from the stores"
VERSIONS = len(migrations("metadatad"))


def make(path: Path, images: int = 3) -> None:
    """A database as metadatad leaves it, with some rows."""

    async def fill() -> None:
        async with open_database(path, "metadatad") as database:
            await database.write(lambda c: insert(c, images))

    path.parent.mkdir(parents=True, exist_ok=True)
    asyncio.run(fill())


def insert(connection: sqlite3.Connection, images: int) -> None:
    connection.execute("INSERT INTO namespaces (name) VALUES ('one')")
    connection.executemany(
        "INSERT INTO images (namespace, name, media_type, digest, size, created_at, updated_at) "
        "VALUES ('one', ?, 'application/x', ?, 1, 1, 1)",
        [(f"registry.example/image-{number:05}", f"sha256:{number:064x}") for number in range(images)],
    )
    connection.execute("INSERT INTO tombstones (type, backend, key, created_at) VALUES ('content', '', 'x', 1)")
    connection.execute("INSERT INTO sequences (name, value) VALUES ('backend', 7)")


def images_of(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM images ORDER BY name")]


def metadatad(root: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "metadatad", "--root", str(root), "--state", str(STATE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    return done.returncode, done.stdout + done.stderr


def starts(root: Path) -> tuple[int, str]:
    """What a start that must fail says."""
    status, said = metadatad(root)
    assert "Traceback" not in said
    (line,) = said.splitlines()
    return status, line


@pytest.fixture(autouse=True)
def no_state() -> Iterator[None]:
    yield
    shutil.rmtree(STATE, ignore_errors=True)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "metadatad" / "metadata.sqlite"
    make(path)
    return path


def pages(path: Path) -> int:
    return path.stat().st_size // 4096


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"nonsense" * 1000),
    "a wrong page": lambda path: overwrite(path, 4096 * (pages(path) // 2), os.urandom(4096)),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_database_is_refused_with_a_way_out(tmp_path: Path, database: Path, kind: str) -> None:
    """The service does not start, names the file and the commands to go on with, and changes nothing."""
    DAMAGE[kind](database)
    before = database.read_bytes() if database.exists() else None

    status, line = starts(tmp_path)

    assert status == 1
    assert f"ERROR metadatad database {database} is " in line
    assert line.endswith(WAY_OUT)
    assert (database.read_bytes() if database.exists() else None) == before


def test_a_newer_schema_is_refused(tmp_path: Path, database: Path) -> None:
    """A database of a newer version is not damaged: the versions are named, nothing is to be restored."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    status, line = starts(tmp_path)
    assert status == 1
    assert "has schema version 99" in line
    assert "restore" not in line


@pytest.mark.root
@pytest.mark.parametrize("kind", ["read-only", "full"])
def test_a_disk_that_takes_nothing(tmp_path: Path, database: Path, kind: str) -> None:
    """A read-only or full file system is named in one sentence, and the database is as before."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with tmpfs(disk):
        root = disk / "root"
        make(root / "metadatad" / "metadata.sqlite")
        before = (root / "metadatad" / "metadata.sqlite").read_bytes()
        if kind == "full":
            with contextlib.suppress(OSError), (disk / "ballast").open("wb") as file:
                while file.write(b"x" * 4096):
                    file.flush()
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        status, said = metadatad(root, "restore", str(database))
        assert status == 1
        assert said.startswith("Error: ")
        assert said.count("\n") == 1
        assert re.search("no space left|full" if kind == "full" else "read-only", said)
        assert (root / "metadatad" / "metadata.sqlite").read_bytes() == before
        if kind == "read-only":
            assert starts(root)[0] == 1


@contextlib.contextmanager
def tmpfs(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_backup_beside_writers(tmp_path: Path) -> None:
    """A backup holds one moment, is whole, and nothing of it stays beside the database."""
    path, copied = tmp_path / "metadata.sqlite", tmp_path / "copied"
    async with open_database(path, "metadatad") as database:
        await database.write(lambda c: insert(c, 2000))
        reading = DatabaseBackup(path)
        stream = reading.read()
        data = await anext(stream)
        with pytest.raises(FailedPrecondition, match="another backup"):
            await anext(reading.read())
        await database.write(lambda c: c.execute("DELETE FROM images") and None)
        async for piece in stream:
            data += piece
        await asyncio.to_thread(copied.write_bytes, data)
        assert await asyncio.to_thread(images_of, copied) == [f"registry.example/image-{n:05}" for n in range(2000)]
        names = await asyncio.to_thread(os.listdir, tmp_path)
        assert [name for name in names if ".copy-" in name] == []


def test_leftovers_of_a_copy_go(tmp_path: Path) -> None:
    """What a killed process left of a copy is removed, and nothing else."""
    for name in ("m.sqlite", "m.sqlite.copy-1", "m.sqlite.copy-1-journal", "m.sqlite.new-2", "m.sqlite.before-3"):
        (tmp_path / name).touch()
    backup.remove_leftovers(tmp_path / "m.sqlite")
    assert sorted(os.listdir(tmp_path)) == ["m.sqlite", "m.sqlite.before-3"]


def test_restore(tmp_path: Path, database: Path) -> None:
    """A backup takes the database's place, which is kept; removals and numbers of back then are not believed."""
    saved = tmp_path / "saved"
    copies.copy(database, saved)
    database.write_bytes(b"nonsense")

    status, said = metadatad(tmp_path, "restore", str(saved))

    assert (status, said.splitlines()[0]) == (
        0,
        f"restored {database} from {saved}: 1 namespaces, 3 images",
    )
    assert len(images_of(database)) == 3
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM tombstones").fetchone() == (0,)
        assert connection.execute("SELECT value FROM sequences").fetchone()[0] > 1_000_000
    (aside,) = database.parent.glob("metadata.sqlite.before-*-??????")
    assert aside.read_bytes() == b"nonsense"
    assert database.stat().st_mode & 0o777 == 0o600


def test_restore_refuses_what_is_no_backup(tmp_path: Path, database: Path) -> None:
    """A file that is missing, damaged, newer or of somebody else is refused, and the database stays in its place."""
    before = database.read_bytes()
    other = tmp_path / "other"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    numbered = tmp_path / "numbered"
    with contextlib.closing(sqlite3.connect(numbered)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute(f"PRAGMA user_version = {VERSIONS}")
    newer, damaged, text = tmp_path / "newer", tmp_path / "damaged", tmp_path / "text"
    copies.copy(database, newer)
    with contextlib.closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    copies.copy(database, damaged)
    os.truncate(damaged, damaged.stat().st_size // 2)
    text.write_text("no database\n" * 1000)
    for file, kind, words in (
        (tmp_path / "none", NotFound, "there is no file"),
        (tmp_path, NotFound, "there is no file"),
        (other, DataLoss, "is not a database of this service"),
        (numbered, DataLoss, "is not a backup of the metadata"),
        (newer, FailedPrecondition, "has schema version 99"),
        (damaged, DataLoss, "damaged"),
        (text, DataLoss, "damaged or no database"),
    ):
        with pytest.raises(kind, match=words):
            restore(database, file)
        assert database.read_bytes() == before
    assert {name.partition("-")[0] for name in os.listdir(database.parent)} == {
        "metadata.sqlite",
        "metadata.sqlite.lock",
    }


def test_restore_beside_a_running_service(tmp_path: Path, database: Path) -> None:
    """While metadatad runs, its database is not replaced."""
    saved = tmp_path / "saved"
    copies.copy(database, saved)
    command = [sys.executable, "-m", "metadatad", "--root", str(tmp_path), "--state", str(STATE)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            limit = time.monotonic() + 30
            while not (STATE / "metadatad.sock").exists():
                assert time.monotonic() < limit
                time.sleep(0.02)
            status, said = metadatad(tmp_path, "restore", str(saved))
        finally:
            process.send_signal(signal.SIGTERM)
    assert status == 1
    assert said == (
        f"Error: database {database} is in use by another process: stop it first, for example with `carina down`\n"
    )


def test_salvage_reads_around_the_damage(tmp_path: Path) -> None:
    """A page that is damaged costs its own rows: those before and after it are still told, and only credible ones."""
    path = tmp_path / "metadata.sqlite"
    make(path, images=3000)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    text = path.read_bytes()
    hit = text.index(b"registry.example/image-01500")
    overwrite(path, hit - hit % 4096, b"\xff" * 4096)

    names = {row["name"] for row in salvage.rows(path, "images")}

    whole = {f"registry.example/image-{number:05}" for number in range(3000)}
    assert names <= whole
    assert {min(whole), max(whole)} <= names
    assert len(names) > 2000
    assert [row["name"] for row in salvage.rows(path, "namespaces")] == ["one"]
    assert list(salvage.rows(tmp_path / "none", "images")) == []


def test_documents_are_understood() -> None:
    """Anything may be in a blob: only what is an index, a manifest or a configuration says something."""
    nothing = (b"", b"{", b"[]", b'{"a": 1}', b"\x1f\x8b", b'{"manifests": 1}', b"[" * 100_000, b'{"layers": []}')
    for data in (*nothing, b'{"a":' * 100_000):
        assert found.understood(data) is None
    index = found.understood(b'{"manifests": [1, {"mediaType": "x", "digest": "bad", "size": 1}, {"digest": 1}]}')
    assert index is not None
    assert (index.labels, index.images) == ({}, ())
    config = found.understood(b'{"rootfs": {"diff_ids": ["sha256:aa"]}}')
    assert config is not None
    assert config.chain == "sha256:aa"


def test_lists_of_images(tmp_path: Path) -> None:
    """Names and digests are taken from any list that has both in a line; what is no list is refused."""
    digest = f"sha256:{'a' * 64}"
    listed = tmp_path / "listed"
    listed.write_text(f"REF TYPE DIGEST SIZE\nregistry/a:1 application/x {digest} 1.0 KiB -\n\nregistry/b:2 {digest}\n")
    assert read_list(listed) == [("registry/a:1", digest), ("registry/b:2", digest)]
    listed.write_text("nothing here\n")
    with pytest.raises(Exception, match="is no list of images"):
        read_list(listed)
    with pytest.raises(NotFound):
        read_list(tmp_path / "none")


@pytest.mark.root
def test_no_room_for_a_copy(tmp_path: Path) -> None:
    """A full disk ends a backup in one sentence, and leaves nothing of it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    make(tmp_path / "metadata.sqlite", images=20_000)
    with tmpfs(disk):
        with pytest.raises(ResourceExhausted, match="full"):
            copies.copy(tmp_path / "metadata.sqlite", disk / "copy")
        assert os.listdir(disk) == []
