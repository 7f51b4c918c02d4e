"""What to do next, after a failure whose cause lies outside of the command."""

import contextlib
import os
import re
import socket
import stat
from collections.abc import Iterator
from typing import Final

from carina.errors import CarinaError, InvalidArgument, NotFound, Unavailable

SECONDS: Final = 1.0
"""For what listens to say something."""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""RFC 9113 section 3.4, and an empty SETTINGS frame."""
_SETTINGS: Final = 4
_OURS: Final = re.compile(r"\b(?:contentd|snapshotd|metadatad|imaged|taskd|gatewayd)\b")
"""A service of ours is away, rather than what it was to reach: a registry, a plugin."""
_MEANT: Final = re.compile(r"(\S+) is not a (?:setting|service)[^:]*: expected one of (.*)|$^")


def of(error: CarinaError) -> Iterator[str]:
    """Lines for people, none where nothing is known."""
    yield from _of_file(error)
    address = next(
        (note.partition(" ")[2] for note in getattr(error, "__notes__", ()) if note.startswith("address ")), ""
    )
    if isinstance(error, Unavailable) and address:
        yield from about(address.removeprefix("unix://"), str(error))
    elif isinstance(error, NotFound) and "no such" not in str(error):
        yield from _of_missing(str(error))
    elif isinstance(error, InvalidArgument) and "platform" in str(error):
        yield "A platform is OS/ARCH[/VARIANT], such as linux/amd64 or linux/arm64/v8."


def _of_file(error: CarinaError) -> Iterator[str]:
    """The line of a configuration file, and the key that was probably meant."""
    name = next((note.partition(" ")[2] for note in getattr(error, "__notes__", ()) if note.startswith("file ")), "")
    if name:
        from pathlib import Path

        from carina.cli.located import line_of

        if found := line_of(Path(name), str(error)):
            yield f"{name}:{found[0]}: {found[1].strip()}"
    if meant := _MEANT.search(str(error)):
        from difflib import get_close_matches

        wrong = meant[1].strip("'").rpartition(".")[2]
        if close := get_close_matches(wrong, meant[2].split(", "), n=1):
            yield f"Did you mean {close[0]}?"


def _of_missing(text: str) -> Iterator[str]:
    for noun, command in (
        ("image", "carina images ls"),
        ("container", "carina containers ls"),
        ("task", "carina tasks ls"),
        ("snapshot", "carina snapshots ls"),
        ("lease", "carina leases ls"),
    ):
        if text.startswith(f"{noun} "):
            yield f"`{command}` lists what there is in this namespace; `carina namespaces ls` the namespaces."
            return


def about(path: str, said: str) -> Iterator[str]:
    """What is the matter with the socket at `path`, of which `said` was said."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        yield f"You may not look into {os.path.dirname(path)}: try again as root."
        return
    except OSError:
        yield "There is no such socket. Is Carina up? `carina up --detach` starts it, `carina status` shows it;"
        yield "--address or CARINA_ADDRESS names another socket."
        return
    if not stat.S_ISSOCK(mode):
        yield f"{path} is not a socket: --address or CARINA_ADDRESS names another."
        return
    yield from _listener(path, said)


def _listener(path: str, said: str) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(SECONDS)
        try:
            probe.connect(path)
        except PermissionError:
            yield "You may not connect to it: try again as root, or as a member of the group in [gateway]."
            return
        except OSError:
            yield "Nobody listens on it any more. `carina up --detach` starts Carina, `carina status` shows it."
            return
        answer = b""
        with contextlib.suppress(OSError):
            probe.sendall(_PREFACE)
            answer = probe.recv(64)
    if answer.startswith(b"HTTP/1"):
        yield "What listens there is a web server, not a gRPC service: --address names another socket."
    elif answer[3:4] != bytes([_SETTINGS]):
        yield "What listens there speaks another protocol than gRPC (a shim's or .ttrpc socket, say):"
        yield "--address names another socket."
    elif _OURS.search(said):
        yield "`carina status` shows which service does not answer, `carina logs SERVICE` why."
