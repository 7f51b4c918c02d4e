"""A backup over a socket."""

import hashlib
from collections.abc import AsyncGenerator

from carina.api.carina.backup.v1 import BackupStub, ReadRequest
from carina.errors import DataLoss
from carina.rpc.client import Channel


class RemoteBackup:
    """`Backup` of the service at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._stub = BackupStub(channel)

    async def read(self) -> AsyncGenerator[bytes, None]:
        hasher, digest = hashlib.sha256(), ""
        async for answer in self._stub.read(ReadRequest()):
            hasher.update(answer.data)
            digest = answer.digest
            if answer.data:
                yield answer.data
        if digest != f"sha256:{hasher.hexdigest()}":
            raise DataLoss("the backup ended before it was complete")
