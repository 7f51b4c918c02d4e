"""up, down, status, version: the constellation as a whole."""

import asyncio
import contextlib
import functools
import importlib
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from carina import config as configuration
from carina import context
from carina.cli import output
from carina.cli.located import check, located
from carina.cli.target import Target
from carina.config import Config, daemon, socket_path
from carina.errors import CarinaError, FailedPrecondition, PermissionDenied, Unavailable
from carina.supervisor import lock, survivors
from carina.supervisor.supervisor import Entry, Supervisor, make_directories, open_log

PATH = click.Path(path_type=Path)
LIST_SECONDS = 1.0
"""For the list of plugins, which metadatad has ready."""


def _configured(function: Any) -> Any:
    for decorator in (
        click.option("--state", type=PATH, metavar="DIR", help="Directory of sockets and bundles."),
        click.option("--root", type=PATH, metavar="DIR", help="Directory of everything that lasts."),
        click.option("--config", "file", type=PATH, metavar="FILE", help="Configuration file."),
    ):
        function = decorator(function)
    return function


def _entries(config: Config) -> dict[str, Entry]:
    """Load every daemon's code once, before any process is forked."""
    entries: dict[str, Entry] = {}
    for service in config.services:
        if service not in config.external:
            name = daemon(service).partition("-")[0]
            importlib.import_module(f"{name}.daemon")
            start = importlib.import_module(f"{name}.__main__").start
            snapshotter = [service.partition(".")[2]] if service.startswith("snapshots.") else []
            entries[service] = functools.partial(_enter, start, config, snapshotter)
    return entries


def _enter(start: Any, config: Config, more: Sequence[str], _arguments: Sequence[str]) -> None:
    """As its command does, but without parsing the command line: that would write to a megabyte that all share."""
    start(config.path, config.root, config.state, *more)


@click.command()
@_configured
@click.option("--detach", is_flag=True, help="Return when everything is ready; services log below the root directory.")
def up(file: Path | None, root: Path | None, state: Path | None, detach: bool) -> None:
    """Bring every service up under one supervisor."""
    if os.geteuid() != 0:
        raise PermissionDenied("carina up needs root: it mounts file systems and runs containers")
    # The services are given the same file, wherever they run.
    with located(file or configuration.DEFAULT_PATH):
        config = configuration.load(file.absolute() if file else None, root=root, state=state)
        check(config)
    if detach:
        _detach(config)
        return
    _title("carina up")
    Supervisor(config, _entries(config), on_ready=lambda: click.echo(_ready_line(config))).run()


def _ready_line(config: Config) -> str:
    return f"carina is ready on {config.gateway}"


def _title(text: str) -> None:
    import setproctitle

    setproctitle.setproctitle(text)


def _detach(config: Config) -> None:
    """Fork a supervisor into a session of its own, and wait until it says that it is ready, or why not."""
    make_directories(config)
    logs = config.root / "log"
    logs.mkdir(exist_ok=True, mode=0o700)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setsid()
        _run_detached(config, logs, writing)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    if not text.startswith("ready"):
        os.waitpid(pid, 0)
        raise Unavailable(text or f"the supervisor was killed while starting: see {logs / 'carina.log'}")
    click.echo(_ready_line(config))


def _run_detached(config: Config, logs: Path, answer: int) -> None:
    waiting = os.fdopen(answer, "wb", buffering=0)

    def ready() -> None:
        with waiting:
            waiting.write(b"ready")

    status, failure = 1, "the constellation was stopped while starting"
    try:
        _leave_caller(logs, answer)
        _title("carina up")
        Supervisor(config, _entries(config), on_ready=ready, log_directory=logs).run()
        status = 0
    except CarinaError as error:
        failure = str(error)
        click.echo(f"carina: {failure}", err=True)
    except BaseException as error:
        failure = f"a bug: {type(error).__name__}: {error} (see {logs / 'carina.log'})"
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            if not waiting.closed:
                waiting.write(failure.encode(errors="replace"))
        os._exit(status)


def _leave_caller(logs: Path, answer: int) -> None:
    """Keep nothing of who called: neither descriptors (a lock of a script, say) nor directory."""
    os.closerange(3, answer)
    os.closerange(answer + 1, os.sysconf("SC_OPEN_MAX"))
    log, null = open_log(logs / "carina.log"), os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir("/")
    os.umask(0o022)


@click.command()
@_configured
def down(file: Path | None, root: Path | None, state: Path | None) -> None:
    """Stop every service; running containers go on."""
    if os.geteuid() != 0:
        raise PermissionDenied("carina down needs root: the services are root's")
    config = configuration.load(file, root=root, state=state)
    supervisor = lock.holder(config.root)
    if supervisor is not None:
        survivors.end([supervisor], grace=60)
    running = survivors.find(config)
    survivors.end(list(running.values()), grace=10)
    if supervisor is None and not running:
        raise FailedPrecondition(f"no constellation is running on root {config.root}")
    click.echo(f"carina is down: root {config.root}")


@click.command()
@_configured
@click.pass_obj
def status(target: Target, file: Path | None, root: Path | None, state: Path | None) -> None:
    """Show every service's health, process, memory and address."""
    config = configuration.load(file, root=root, state=state)
    rows = asyncio.run(_status(config, target.address))
    output.table(("SERVICE", "HEALTH", "PID", "VERSION", "UPTIME", "MEMORY", "ADDRESS"), rows)
    if any(row[1] != "ok" for row in rows):
        raise click.exceptions.Exit(1)


async def _status(config: Config, gateway: str | None) -> list[Sequence[str]]:
    services = [(daemon(service), address) for service, address in config.services.items()]
    if gateway:
        services = [(name, gateway if name == "gatewayd" else address) for name, address in services]
    rows = [_row(name, address) for name, address in services]
    found = await asyncio.gather(asyncio.gather(*rows), _plugged(config, gateway))
    return [row for part in found for row in part]


async def _plugged(config: Config, gateway: str | None) -> Sequence[Sequence[str]]:
    """Plugins, as metadatad knows them, or else as they are configured."""
    from carina.backends.client import RemoteBackendRegistry
    from carina.rpc.client import connect

    channel = connect(gateway or config.gateway)
    plugins: Sequence[Any] = list(config.proxy_plugins.values())
    known = False
    try:
        with context.deadline(LIST_SECONDS):
            plugins = [plugin for plugin in await RemoteBackendRegistry(channel).list() if not plugin.own]
            known = True
    except CarinaError:
        pass
    finally:
        channel.close()
    rows = []
    for plugin in plugins:
        health = ("error" if plugin.error else "ok") if known else None
        rows.append(_row(f"{plugin.name} ({plugin.type})", plugin.address, health))
    return list(await asyncio.gather(*rows))


async def _row(name: str, address: str, known: str | None = None) -> Sequence[str]:
    """A line of the table; `known` is the health where somebody else has asked for it already."""
    from carina.rpc.client import connect
    from carina.rpc.health import probe

    path = socket_path(address)
    pid = await asyncio.to_thread(survivors.listener, path)
    if pid is None:
        return (name, await asyncio.to_thread(_silence, path), "-", "-", "-", "-", address)
    channel = connect(address)
    health, version = "error", "-"
    try:
        if known != "error":
            with context.deadline(2):
                health, version = await probe(channel, name if known is None else "")
    except CarinaError as error:
        health = type(error).__name__.lower()
    finally:
        channel.close()
    uptime, memory = await asyncio.to_thread(_process, pid)
    return (
        name,
        health if known is None or health == "deadlineexceeded" else known,
        str(pid),
        version,
        uptime,
        memory,
        address,
    )


def _silence(path: Path) -> str:
    """Why nobody answers on a socket: `denied` where this user may not ask, `down` where there is nobody."""
    try:
        path.stat()
    except PermissionError:
        return "denied"
    except OSError:
        return "down"
    return "down" if os.access(path, os.W_OK) else "denied"


def _process(pid: int) -> tuple[str, str]:
    """Uptime and proportional set size (proc_pid_smaps(5)) of a process, `-` where they can't be read."""
    try:
        started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    except (OSError, StopIteration, ValueError):
        return "-", "-"
    return output.duration(uptime), output.size(pss * 1024)
