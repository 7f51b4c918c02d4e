"""What a shim is told: by containerd's arguments, and by the environment.

CARINA_SHIM_GROUP=namespace     # who shares a shim: namespace, pod or container
CARINA_SHIM_IDLE_SECONDS=60     # how long a shim without containers stays
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from carina.errors import InvalidArgument
from carina.shim import GROUP_VARIABLE, GROUPINGS

IDLE_VARIABLE: Final = "CARINA_SHIM_IDLE_SECONDS"
DEFAULT_ROOT: Final = "/run/containerd/runc"
"""Of runc's state, as containerd has it."""
ACTIONS: Final = ("start", "delete")
_FLAGS: Final = ("namespace", "id", "address", "bundle", "publish-binary", "socket", "log-level")
_SWITCHES: Final = ("debug", "info", "v", "version")


class Config(NamedTuple):
    """A named tuple, since every start waits for the import of dataclasses."""

    action: str = ""
    namespace: str = ""
    id: str = ""
    address: str = ""
    """The socket of the daemon that we belong to."""
    events: str = ""
    """Where events are published: the daemon's ttrpc socket."""
    bundle: str = ""
    info: bool = False
    version: bool = False
    grouping: str = "namespace"
    idle_seconds: float = 60.0
    bootstrap: int = 0
    """Highest bootstrap version that the caller reads; 0 for the address alone."""


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Arguments in the style of Go: `-name value` or `-name=value`, with one or two dashes, then the action.

    Raises:
        InvalidArgument: one is not known, or has no value.
    """
    flags, action = _flags(list(arguments))
    address = flags.get("address") or environment.get("GRPC_ADDRESS", "")
    grouping = environment.get(GROUP_VARIABLE) or "namespace"
    if grouping not in GROUPINGS:
        raise InvalidArgument(f"{GROUP_VARIABLE}={grouping} is not valid: expected one of {', '.join(GROUPINGS)}")
    return Config(
        action=action,
        namespace=flags.get("namespace") or environment.get("NAMESPACE", ""),
        id=flags.get("id", ""),
        address=address,
        events=environment.get("TTRPC_ADDRESS") or f"{address}.ttrpc",
        bundle=flags.get("bundle") or os.getcwd(),
        info="info" in flags,
        version="v" in flags or "version" in flags,
        grouping=grouping,
        idle_seconds=_seconds(environment.get(IDLE_VARIABLE, "60")),
        bootstrap=_whole(environment.get("MAX_SHIM_VERSION", "0")),
    )


def _flags(rest: list[str]) -> tuple[dict[str, str], str]:
    flags: dict[str, str] = {}
    while rest and rest[0].startswith("-"):
        name, separator, value = rest.pop(0).lstrip("-").partition("=")
        if name in _SWITCHES:
            flags[name] = "true"
        elif name not in _FLAGS:
            raise InvalidArgument(f"-{name} is not an argument: expected {', '.join((*_FLAGS, *_SWITCHES))}")
        elif separator:
            flags[name] = value
        elif rest:
            flags[name] = rest.pop(0)
        else:
            raise InvalidArgument(f"-{name} has no value")
    action = rest[0] if rest else ""
    if action and action not in ACTIONS:
        raise InvalidArgument(f"action {action} is not known: expected start or delete")
    return flags, action


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise InvalidArgument(f"{IDLE_VARIABLE}={text} is not valid: expected a number of seconds up to a day")
    return seconds


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
