"""Logs of a daemon: one line for each record on the standard error stream, as text or as JSON.

A record that is made while a call is served says which: method, namespace, request id, trace, span and peer.
Nothing is formatted for a record below the level.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from carina import context

FORMATS: Final = ("text", "json")
LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_NOISY: Final = ("h2", "hpack", "grpclib", "asyncio", "aiohttp", "opentelemetry", "urllib3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`[log]`."""

    format: str = "text"
    level: str = "info"
    levels: Mapping[str, str] = field(default_factory=dict)
    """Daemon -> its own level."""

    def level_of(self, name: str) -> int:
        return LEVELS[self.levels.get(name, self.levels.get(name.partition("-")[0], self.level))]


def start(name: str, settings: Settings | None = None) -> None:
    """Send the records of this process, the daemon `name`, to the standard error stream."""
    settings = settings or Settings()
    level = settings.level_of(name)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json(name) if settings.format == "json" else Text(name))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def fields() -> dict[str, str]:
    """What is known of the call that is being served."""
    call = context.current()
    known = {"method": call.method, "namespace": call.namespace, "request": call.request, "peer": call.peer}
    if call.trace is not None:
        parts = call.trace.split("-")
        if len(parts) >= 4:
            known["trace"], known["span"] = parts[1], parts[2]
    return {name: value for name, value in known.items() if value}


class Text(logging.Formatter):
    """time, level, service, message; then what is known of the call, as `name=value`."""

    converter = staticmethod(time.gmtime)

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03dZ %(levelname)s {service} %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        known = fields()
        return line + "".join(f" {name}={_word(value)}" for name, value in known.items())


def _word(value: str) -> str:
    return value if value.isprintable() and " " not in value and '"' not in value else json.dumps(value)


class Json(logging.Formatter):
    """One object in one line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        made: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "message": record.getMessage(),
            **fields(),
            "logger": record.name,
        }
        if record.exc_info:
            made["error"] = self.formatException(record.exc_info)
        return json.dumps(made, ensure_ascii=False)
