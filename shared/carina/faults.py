"""Fault points: named steps at which a test has a process killed, stopped or failed.

    CARINA_FAULT=contentd.commit.named            killed when it gets there
    CARINA_FAULT=contentd.commit.named:3:stop     stopped when it gets there for the third time
    CARINA_FAULT=contentd.commit.named:1:error    the step fails

Switched off, a point costs one comparison. Nothing but `arm`, which a daemon calls when it starts, switches one on.
The names are the literals in the calls of `point`: tests find them by reading the code, and fail where one of them
is never reached.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from carina.errors import InvalidArgument, Unavailable

VARIABLE: Final = "CARINA_FAULT"
ACTIONS: Final = ("kill", "stop", "error")


@dataclass(slots=True)
class _Armed:
    name: str
    left: int
    action: str


_armed: _Armed | None = None


def point(name: str) -> None:
    """Be killed, be stopped or raise Unavailable here, if this is the point that the process was armed with."""
    if _armed is not None and _armed.name == name:
        _reached(_armed)


def arm(environment: Mapping[str, str]) -> None:
    """Switch on the point that the environment names, and any other off.

    Raises:
        InvalidArgument: the variable can't be read.
    """
    global _armed
    setting = environment.get(VARIABLE, "")
    name, _, rest = setting.partition(":")
    count, _, action = rest.partition(":")
    if (count and not count.isdecimal()) or (action and action not in ACTIONS):
        raise InvalidArgument(f"{VARIABLE}={setting}: expected NAME[:COUNT[:{'|'.join(ACTIONS)}]]")
    _armed = _Armed(name, int(count or 1), action or "kill") if name else None


def _reached(armed: _Armed) -> None:
    armed.left -= 1
    if armed.left != 0:
        return
    if armed.action == "error":
        raise Unavailable(f"fault point {armed.name}: told to fail here")
    os.kill(os.getpid(), signal.SIGKILL if armed.action == "kill" else signal.SIGSTOP)
