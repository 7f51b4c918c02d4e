"""A copy of the records while they are in use."""

from collections.abc import AsyncGenerator
from typing import Protocol


class Backup(Protocol):
    def read(self) -> AsyncGenerator[bytes, None]:
        """The bytes of a database that holds every record as of one moment.

        Raises:
            ResourceExhausted: there is no room for a copy.
            FailedPrecondition: another copy is being read.
            DataLoss: the database is damaged; or, of a remote one, what came is not what was sent.
        """
