"""How events reach metadatad: into its log, where each is taken once however often it is sent."""

import logging
from collections.abc import Sequence
from typing import Protocol

from carina.errors import InvalidArgument, Unimplemented
from carina.events import Envelope, Numbered, Refused

log = logging.getLogger(__name__)


class Log(Protocol):
    """The part of `carina.events.EventLog` that is needed here."""

    async def append(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]: ...


class Sink(Log, Protocol):
    """Where an outbox sends its events."""

    @property
    def recognises(self) -> bool:
        """Whether an event that is sent again is taken once, also after a restart of ours."""
        ...


class Service(Protocol):
    """The part of `carina.events.EventService` that is needed here."""

    async def forward(self, envelope: Envelope) -> None: ...


class Delivery:
    """A `Sink`: a `Log`, or containerd's Forward where the service has no log.

    Forward knows no numbers: an event is sent once by this process, and once more if it was about to be noted when an
    earlier one died.
    """

    def __init__(self, events: Log, service: Service) -> None:
        self._log: Log | None = events
        self._service = service
        self._sent = ("", 0)

    @property
    def recognises(self) -> bool:
        return self._log is not None

    async def append(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]:
        if self._log is not None:
            try:
                return await self._log.append(source, events)
            except Unimplemented:
                log.info("the metadata service has no log of events: they are forwarded one by one")
                self._log = None
        return await self._forward(source, events)

    async def _forward(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]:
        refused = []
        for one in events:
            if source == self._sent[0] and one.number <= self._sent[1]:
                continue
            try:
                await self._service.forward(one.envelope)
            except InvalidArgument as error:
                refused.append(Refused(number=one.number, reason=str(error)))
            self._sent = source, one.number
        return refused
