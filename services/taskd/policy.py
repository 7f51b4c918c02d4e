"""Restart policies: what the `containerd.io/restart.*` labels of a container wish, in containerd's words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from carina.errors import InvalidArgument
from carina.tasks import Process, Status

STATUS: Final = "containerd.io/restart.status"
POLICY: Final = "containerd.io/restart.policy"
COUNT: Final = "containerd.io/restart.count"
LOG_URI: Final = "containerd.io/restart.loguri"
EXPLICITLY_STOPPED: Final = "containerd.io/restart.explicitly-stopped"
RUNNING: Final = "running"
STOPPED: Final = "stopped"
POLICIES: Final = ("no", "always", "on-failure", "unless-stopped")
_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    most: int = 0
    """Restarts of `on-failure`; 0 for any number."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `always`, `no`, `unless-stopped` or `on-failure[:MOST]`; nothing means `always`.

        Raises:
            InvalidArgument: it is none of them.
        """
        name, colon, most = (text or "always").partition(":")
        if name not in POLICIES or (colon and (name != "on-failure" or not (most.isascii() and most.isdigit()))):
            raise InvalidArgument(f"restart policy {text[:64]!r} is not one of {', '.join(POLICIES)} or on-failure:N")
        return cls(name, int(most[:9]) if most else 0)


def count(labels: Mapping[str, str]) -> int:
    """How often it has been restarted.

    Raises:
        InvalidArgument: the label is not a number.
    """
    text = labels.get(COUNT) or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidArgument(f"label {COUNT} is {text[:64]!r}, not a number")
    return int(text)


def restarts(labels: Mapping[str, str], process: Process | None) -> bool:
    """Whether a container that is to run, and whose first process does not, is started again.

    `process` is what is left of its task. Without a task there is no status, so `on-failure` does nothing then.

    Raises:
        InvalidArgument: the labels say nothing that can be done.
    """
    policy = Policy.parse(labels.get(POLICY, ""))
    match policy.name:
        case "always":
            return True
        case "unless-stopped":
            return labels.get(EXPLICITLY_STOPPED, "") not in _TRUE
        case "on-failure":
            failed = process is not None and process.status is Status.STOPPED and process.exit_status != 0
            return failed and (policy.most == 0 or count(labels) < policy.most)
        case _:
            return False
