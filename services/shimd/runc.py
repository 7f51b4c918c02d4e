"""runc's command lines, and its error messages."""

import itertools
import json
import os
from collections.abc import Mapping
from typing import Any, Final

from carina.errors import CarinaError, FailedPrecondition, NotFound, Unavailable
from shimd.children import Children
from shimd.config import DEFAULT_ROOT

_NUMBERS: Final = itertools.count(1)
_MAX_LOG: Final = 1 << 20


class Runc:
    """The runtime as one container's options have it."""

    def __init__(self, children: Children, bundle: str, *, namespace: str, options: Mapping[str, Any]) -> None:
        self.options = options
        self._children = children
        self._bundle = bundle
        self.binary = options.get("binary_name") or "runc"
        root = options.get("root") or DEFAULT_ROOT
        self.root = os.path.join(root, namespace)

    def _command(self, log: str, arguments: tuple[str, ...]) -> list[str]:
        command = [self.binary, "--root", self.root, "--log", log, "--log-format", "json"]
        if self.options.get("systemd_cgroup"):
            command.append("--systemd-cgroup")
        return [*command, *arguments]

    async def run(self, *arguments: str, descriptors: Mapping[int, int] | None = None) -> None:
        """Run it to its end; standard descriptors that are not given are /dev/null.

        Raises:
            NotFound: the container does not exist, or the runtime's binary.
            FailedPrecondition: it is not in a state for this.
            CarinaError: it failed; the message is runc's.
        """
        log = os.path.join(self._bundle, f".runc-{next(_NUMBERS)}.log")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            own = {0: null, 1: null, 2: null, **(descriptors or {})}
            _, ended = self._children.start(self._command(log, arguments), own)
        except FileNotFoundError as error:
            raise NotFound(f"runtime {self.binary} is not installed") from error
        except OSError as error:
            raise Unavailable(f"runtime {self.binary} can't be executed: {error.strerror}") from error
        finally:
            os.close(null)
        try:
            status = await ended
            if status:
                raise _error(arguments, status, _last_message(log))
        finally:
            try:
                os.unlink(log)
            except FileNotFoundError:
                pass


def _last_message(log: str) -> str:
    try:
        with open(log, "rb") as file:
            lines = file.read(_MAX_LOG).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            if entry["level"] in ("error", "fatal"):
                return str(entry["msg"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return ""


def _error(arguments: tuple[str, ...], status: int, message: str) -> CarinaError:
    verb = arguments[0]
    # dockerd and others look for these words.
    text = f"OCI runtime {verb} failed: {message or f'runc ended with status {status} and no message'}"
    if "container does not exist" in message:
        return NotFound(text)
    if message.startswith("cannot ") or "container not running" in message:
        return FailedPrecondition(text)
    return CarinaError(text)
