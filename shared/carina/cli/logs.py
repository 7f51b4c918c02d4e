"""logs: what services have said, wherever that went.

The kernel tells where: the standard error of the process that listens on a service's socket is a file (`carina up
--detach`), the journal (systemd), or somebody's terminal. A service that is down has left its log in the usual place.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from carina import config as configuration
from carina.cli.target import Target
from carina.config import Config, daemon, socket_path
from carina.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable

POLL_SECONDS: Final = 0.2
_SUPERVISOR: Final = "carina"
_TAIL_CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Where a service's log is: a file, or a unit of the journal."""

    name: str
    file: Path | None = None
    unit: str = ""


def _services(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    with contextlib.suppress(Exception):
        names = [daemon(service) for service in configuration.load().services]
        return [CompletionItem(name) for name in (*names, _SUPERVISOR) if name.startswith(incomplete)]
    return []


@click.command()
@click.argument("services", nargs=-1, metavar="[SERVICE]...", shell_complete=_services)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="Lines from the end.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Directory of everything that lasts.")
@click.option("--state", type=click.Path(path_type=Path), metavar="DIR", help="Directory of sockets and bundles.")
@click.pass_obj
def logs(
    target: Target,
    services: Sequence[str],
    follow: bool,
    lines: int,
    file: Path | None,
    root: Path | None,
    state: Path | None,
) -> None:
    """Show what a service has logged.

    A SERVICE is contentd, metadatad and so on, or carina for the supervisor; without one, it is all of them.
    """
    if target.address and not (state or file):
        state = socket_path(target.address).parent
    config = configuration.load(file, root=root, state=state)
    sources = [_source(config, name) for name in services] if services else list(_every(config))
    if not sources:
        raise NotFound(f"there are no logs below {config.root / 'log'}, and nothing of Carina's runs")
    _show(sources, lines=lines, follow=follow)


def _every(config: Config) -> Iterator[Source]:
    for service in config.services:
        with contextlib.suppress(NotFound, Unavailable):
            yield _source(config, daemon(service))
    with contextlib.suppress(NotFound):
        yield _source(config, _SUPERVISOR)


def _source(config: Config, name: str) -> Source:
    """Raises InvalidArgument, NotFound, PermissionDenied, Unavailable: there is no such service, or no log of it."""
    known = {daemon(service): service for service in config.services}
    name = known_name(name, config)
    usual = config.root / "log" / f"{name}.log"
    if name in known and (found := _of_process(config.services[known[name]], name)):
        return found
    try:
        if usual.is_file():
            return Source(name, file=usual)
    except PermissionError as error:
        raise PermissionDenied(f"{usual} is not readable: try again as root") from error
    if _has_unit(unit := _unit(name)):
        return Source(name, unit=unit)
    raise NotFound(f"{name} has logged nothing here: there is neither {usual} nor a unit {unit}")


def known_name(name: str, config: Config) -> str:
    """A service's name as it is, or as the configuration has it (`content`). Raises InvalidArgument."""
    names = {daemon(service): daemon(service) for service in config.services}
    names |= {service: daemon(service) for service in config.services} | {_SUPERVISOR: _SUPERVISOR}
    if name not in names:
        from difflib import get_close_matches

        close = get_close_matches(name, names, n=1)
        meant = (
            f"did you mean {names[close[0]]}?" if close else f"expected one of {', '.join(sorted(set(names.values())))}"
        )
        raise InvalidArgument(f"there is no service {name!r}: {meant}")
    return names[name]


def _of_process(address: str, name: str) -> Source | None:
    """Where the standard error of the process goes that listens on a socket; None where that can't be told."""
    from carina.supervisor import survivors

    pid = survivors.listener(socket_path(address))
    if pid is None:
        return None
    try:
        place = os.readlink(f"/proc/{pid}/fd/2")
    except PermissionError as error:
        raise PermissionDenied(f"where {name} (pid {pid}) logs to is not yours to see: try again as root") from error
    except OSError:
        return None
    if place.startswith("socket:"):
        return Source(name, unit=_unit_of(pid) or _unit(name))
    if place.startswith(("/dev/", "pipe:")):
        raise Unavailable(f"{name} (pid {pid}) logs to {place}, where whoever started it reads it")
    return Source(name, file=Path(place.removesuffix(" (deleted)")))


def _unit_of(pid: int) -> str:
    """The systemd unit of a process, from its control group."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            last = line.rpartition("/")[2]
            if last.endswith(".service"):
                return last
    return ""


def _unit(name: str) -> str:
    service, _, snapshotter = name.partition("-")
    return f"{service}@{snapshotter}.service" if snapshotter else f"{service}.service"


def _has_unit(unit: str) -> bool:
    template = unit.partition("@")[0] + "@.service" if "@" in unit else unit
    return any((Path(place) / template).exists() for place in ("/etc/systemd/system", "/lib/systemd/system"))


def _show(sources: Sequence[Source], *, lines: int, follow: bool) -> None:
    prefixed = len(sources) > 1
    journal = [source for source in sources if source.unit]
    files = [_File(source, prefixed=prefixed) for source in sources if source.file is not None]
    if journal:
        _show_journal([source.unit for source in journal], lines=lines, follow=follow and not files)
    for one in files:
        one.last(lines)
    while follow and files:
        if sum(one.more() for one in files) == 0:
            time.sleep(POLL_SECONDS)


def _show_journal(units: Sequence[str], *, lines: int, follow: bool) -> None:
    command = ["journalctl", "--no-pager", "--output=short-iso", f"--lines={lines}"]
    command += [f"--unit={unit}" for unit in units] + (["--follow"] if follow else [])
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise Unavailable(f"the journal can't be read: journalctl: {error.strerror}") from error
    if status:
        raise click.exceptions.Exit(status)


class _File:
    """The end of a log, and what is added to it; one that is put aside or truncated is followed into the new one."""

    def __init__(self, source: Source, *, prefixed: bool) -> None:
        assert source.file is not None
        self._path = source.file
        self._prefix = f"{source.name} | " if prefixed else ""
        self._offset = 0
        self._inode = 0
        self._rest = b""

    def last(self, lines: int) -> None:
        """Print the last lines. Raises NotFound, PermissionDenied."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                self._inode, self._offset = found.st_ino, found.st_size
                self._print(_tail(file, found.st_size, lines))
        except FileNotFoundError as error:
            raise NotFound(f"log {self._path} is gone") from error
        except PermissionError as error:
            raise PermissionDenied(f"log {self._path} is not readable: try again as root") from error

    def more(self) -> bool:
        """Print what has come; whether there was something."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset = found.st_ino, 0
                file.seek(self._offset)
                data = file.read(1 << 20)
                self._offset += len(data)
        except OSError:
            return False  # it is being put aside
        self._print(data)
        return bool(data)

    def _print(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            click.echo(self._prefix + _harmless(line.decode(errors="replace")))


def _harmless(line: str) -> str:
    """A line of a log, which may quote a stranger, without what would steer the terminal."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line)


def _tail(file: Any, size: int, lines: int) -> bytes:
    """The last lines of a file."""
    data, at = b"", size
    while at > 0 and data.count(b"\n") <= lines:
        step = min(_TAIL_CHUNK, at)
        at -= step
        file.seek(at)
        data = file.read(step) + data
    kept = data.split(b"\n")
    return b"\n".join(kept[-(lines + 1) :] if lines else [kept[-1]])
