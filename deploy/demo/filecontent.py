"""A content store in fewer than a hundred lines, to be swapped in live: filecontent.py DIRECTORY SOCKET."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import quote, unquote

from carina import plugin
from carina.content import Info, Status
from carina.digest import Digest
from carina.errors import AlreadyExists, FailedPrecondition, NotFound


class Reader(AbstractAsyncContextManager["Reader"]):
    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    async def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    async def close(self) -> None:
        self._file.close()

    async def __aexit__(self, *args: object) -> None:
        await self.close()


class Writer(Reader):
    def __init__(self, store: "FileContent", ref: str, total: int) -> None:
        self._store, self._ref, self._total = store, ref, total
        self._path = store.ingests / quote(ref, safe="")
        self._file = self._path.open("a+b", buffering=0)

    @property
    def status(self) -> Status:
        return Status(ref=self._ref, offset=os.fstat(self._file.fileno()).st_size, total=self._total)

    async def write(self, data: bytes) -> None:
        self._file.write(data)

    async def truncate(self, offset: int) -> None:
        self._file.truncate(offset)

    async def digest(self) -> Digest:
        return Digest.of(self._path.read_bytes())

    async def commit(self, *, size: int = 0, expected: Digest | None = None, **labels: object) -> Digest:
        digest = await self.digest()
        if expected not in (None, digest) or size not in (0, self.status.offset):
            raise FailedPrecondition(f"ingest {self._ref} is {digest}, not {expected}")
        os.fsync(self._file.fileno())
        self._path.rename(self._store.blobs / digest)
        return digest


class FileContent:
    def __init__(self, directory: Path) -> None:
        self.blobs, self.ingests = directory / "blobs", directory / "ingests"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.ingests.mkdir(exist_ok=True)

    def _existing(self, path: Path) -> Path:
        if not path.exists():
            raise NotFound(f"{unquote(path.name)} does not exist")
        return path

    async def info(self, digest: Digest) -> Info:
        return Info(digest=digest, size=self._existing(self.blobs / digest).stat().st_size)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        for path in self.blobs.iterdir():
            yield await self.info(Digest(path.name))

    async def delete(self, digest: Digest) -> None:
        self._existing(self.blobs / digest).unlink()

    async def reader(self, digest: Digest) -> Reader:
        return Reader(self._existing(self.blobs / digest))

    async def status(self, ref: str) -> Status:
        return Status(ref=ref, offset=self._existing(self.ingests / quote(ref, safe="")).stat().st_size)

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        return [await self.status(unquote(path.name)) for path in self.ingests.iterdir()]

    async def writer(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> Writer:
        if expected and (self.blobs / expected).exists():
            raise AlreadyExists(f"content {expected} already exists")
        return Writer(self, ref, total)

    async def abort(self, ref: str) -> None:
        self._existing(self.ingests / quote(ref, safe="")).unlink()


if __name__ == "__main__":
    plugin.serve(FileContent(Path(sys.argv[1]).absolute()), Path(sys.argv[2]).absolute())
