"""Events: what happened, by topic, with a typed payload that is passed on as it came."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from carina.typed import TypedValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    timestamp: datetime
    namespace: str
    topic: str
    """`/containers/create`, `/tasks/exit`, ..."""
    event: TypedValue


class EventService(Protocol):
    async def publish(self, topic: str, event: TypedValue) -> None:
        """Send an event of the call's namespace to every subscriber. Raises InvalidArgument."""

    async def forward(self, envelope: Envelope) -> None:
        """Send an event of any namespace, with the time it already has. Raises InvalidArgument."""

    def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Envelope]:
        """Events from now on that match one of the filters; of every namespace unless a filter says otherwise."""
