"""Serves any backup."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing

from carina.api.carina.backup.v1 import BackupBase, ReadRequest, ReadResponse
from carina.backup import Backup


class BackupService(BackupBase):
    def __init__(self, backup: Backup) -> None:
        self._backup = backup

    async def read(self, message: ReadRequest) -> AsyncIterator[ReadResponse]:
        hasher = hashlib.sha256()
        async with aclosing(self._backup.read()) as pieces:
            async for piece in pieces:
                hasher.update(piece)
                yield ReadResponse(data=piece)
        yield ReadResponse(digest=f"sha256:{hasher.hexdigest()}")
