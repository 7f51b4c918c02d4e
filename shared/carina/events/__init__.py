"""Events: what happened, by topic, with a typed payload that is passed on as it came.

They are kept in a log, numbered in the order in which they came, within bounds.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, Protocol, Self

from carina.errors import InvalidArgument
from carina.typed import TypedValue

_CURSOR: Final = re.compile(r"(?:([0-9a-f]{1,64}):)?([0-9]{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    timestamp: datetime
    namespace: str
    topic: str
    """`/containers/create`, `/tasks/exit`, ..."""
    event: TypedValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a log: that of the last event which a reader has."""

    log: str = ""
    """The part of the log's history that gave out the sequence: a database that was put back to an earlier state has
    another from there on. Empty: whatever log it is."""
    sequence: int

    def __str__(self) -> str:
        return f"{self.log}:{self.sequence}" if self.log else str(self.sequence)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`LOG:SEQUENCE`, or `SEQUENCE`. Raises InvalidArgument."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise InvalidArgument(f"{text[:80]!r} is no cursor of the event log")
        return cls(log=match[1] or "", sequence=int(match[2]))


class Edge(Enum):
    """A place in the log that is not given by an event."""

    NOW = "now"
    """After the newest event."""
    OLDEST = "oldest"
    """Before the oldest event that is kept."""


Start = Cursor | datetime | Edge
"""After an event, at a moment by the clock of the service, or at an edge of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A place in the log, and the event there."""

    cursor: Cursor
    envelope: Envelope | None = None
    """None: up to here there was nothing that was asked for."""
    lost: bool = False
    """Events that were asked for and precede the next are not kept any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a log holds."""

    newest: Cursor
    oldest: int
    """Number of the oldest event that is kept; one more than the newest where there is none."""
    since: datetime | None
    """When the oldest came; None where there is none."""
    bytes: int
    """What the events take on the disk, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """An event as its source knows it."""

    number: int
    envelope: Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An event of a source that can never be taken."""

    number: int
    reason: str


class EventService(Protocol):
    async def publish(self, topic: str, event: TypedValue) -> None:
        """Send an event of the call's namespace to every subscriber. Raises InvalidArgument."""

    async def forward(self, envelope: Envelope) -> None:
        """Send an event of any namespace, with the time it already has. Raises InvalidArgument."""

    def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Envelope]:
        """Events from now on that match one of the filters; of every namespace unless a filter says otherwise.

        Raises:
            ResourceExhausted: the subscriber is slower than the log: events were lost.
            Unavailable: the service ends.
        """


class EventLog(Protocol):
    def read(
        self, start: Start = Edge.NOW, filters: Sequence[str] = (), *, follow: bool = True, gaps: bool = False
    ) -> AsyncIterator[Entry]:
        """Every event after the start that matches one of the filters, in the order of the log, each once.

        The first entry has no event and says where the reading begins; another such comes now and then while nothing
        matches. Without `follow` it ends with what is in the log now, otherwise it waits for more.
        With `gaps` it goes on after events that are not kept any more, and says so, instead of raising OutOfRange.

        Raises:
            OutOfRange: events that were asked for are not kept any more, or have not come yet.
            FailedPrecondition: the cursor is of another log.
            InvalidArgument: a filter is not valid.
            Unavailable: the service ends.
        """

    async def window(self) -> Window:
        """What the log holds now."""

    async def append(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]:
        """Add events of a source whose numbers rise; those up to the highest that was taken before are passed over.

        So an event that is sent again is in the log once. What can never be taken is answered and passed over too.
        """
