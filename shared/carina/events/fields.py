"""What a filter sees of an event: `topic`, `namespace`, and fields of the payload as `event.FIELD`."""

from collections.abc import Callable

from carina.events import Envelope
from carina.filters import Adaptor
from carina.typed import TypedValue

Payload = Callable[[TypedValue, tuple[str, ...]], str | None]
"""Reads one field of a payload by its path, of the payloads that it knows."""


def fields(envelope: Envelope, payload: Payload) -> Adaptor:
    def field(path: tuple[str, ...]) -> str | None:
        if path[0] == "event":
            return payload(envelope.event, path[1:])
        if len(path) > 1:
            return None
        return {"topic": envelope.topic, "namespace": envelope.namespace}.get(path[0]) or None

    return field
