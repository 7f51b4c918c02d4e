"""Readers of blobs as the namespaced view gives them out."""

from typing import Self

from carina.content import Reader
from metadatad.peers import Peer


class BackendReader:
    """A reader of the back end's, with a limit on every call."""

    def __init__(self, reader: Reader, peer: Peer) -> None:
        self._reader = reader
        self._peer = peer

    @property
    def size(self) -> int:
        return self._reader.size

    async def read(self, offset: int, length: int) -> bytes:
        async with self._peer.working():
            return await self._reader.read(offset, length)

    async def close(self) -> None:
        await self._reader.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()


class MemoryReader:
    """A reader of bytes that are in memory already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    async def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    async def close(self) -> None:
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        return
