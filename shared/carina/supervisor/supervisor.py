"""The supervisor: starts services, restarts those that end, stops them in order, and passes SIGHUP on to them.

starting --READY=1--> ready --exit--> waiting (0.1 s, doubled up to 5 s) --> starting
"""

import contextlib
import gc
import os
import selectors
import signal
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from carina.aio.terminal import has_terminal
from carina.config import Config, daemon, socket_path
from carina.errors import CarinaError, FailedPrecondition, Unavailable
from carina.supervisor import lock, survivors
from carina.supervisor.notify import NotifySocket

START_LIMIT: Final = 30.0
"""Seconds until every service must be ready."""
STOP_GRACE: Final = 10.0
"""Seconds that a service has to end after SIGTERM."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
STOP_ORDER: Final = (("gateway",), ("images", "tasks"), ("metadata",), ("content", "snapshots"))

LARGE_LOG: Final = 16 * 1024 * 1024
"""Bytes of a log that is put aside when its service is started."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

Entry = Callable[[Sequence[str]], None]
"""A daemon's main, given its command line without the program's name."""


@dataclass(slots=True)
class Child:
    """One service and its present process."""

    service: str
    entry: Entry
    arguments: list[str]
    pid: int = 0
    started: float = 0.0
    ready: bool = False
    ever_ready: bool = False
    pause: float = FIRST_PAUSE
    restart_at: float | None = None

    @property
    def name(self) -> str:
        return daemon(self.service)


def _say(text: str) -> None:
    # Whoever read this may have gone with the terminal: no reason to stop.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"carina: {text}\n")
        sys.stderr.flush()


@dataclass(slots=True)
class Supervisor:
    """Runs one constellation until told to stop."""

    config: Config
    entries: dict[str, Entry]
    on_ready: Callable[[], None]
    log_directory: Path | None = None
    """Where services' output goes, a file each; None: where the supervisor's own goes."""
    _children: list[Child] = field(default_factory=list)
    _stopping: bool = False
    _stop_signals: int = 0
    _terminal: bool = False
    """Whether it was started from a terminal."""

    def run(self) -> None:
        """Returns after an orderly stop.

        Raises:
            FailedPrecondition: root or state directory belong to a running constellation.
            Unavailable: a service did not become ready.
        """
        make_directories(self.config)
        self._terminal = has_terminal()
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock.hold(self.config.root, "root"))
            stack.enter_context(lock.hold(self.config.state, "state directory"))
            self._replace_survivors()
            wake = stack.enter_context(_signals(self._on_signal))
            notify = stack.enter_context(NotifySocket(self.config.state / "notify.sock"))
            gc.collect()
            gc.freeze()
            self._children = [
                Child(service, entry, self._arguments(service)) for service, entry in self.entries.items()
            ]
            stack.callback(self._stop_all)
            for child in self._children:
                self._start(child)
            self._supervise(wake, notify)

    def _replace_survivors(self) -> None:
        running = survivors.find(self.config)
        if running:
            _say(f"replacing services of an earlier supervisor: {', '.join(sorted(map(daemon, running)))}")
            survivors.end(list(running.values()), grace=STOP_GRACE)

    def _arguments(self, service: str) -> list[str]:
        arguments = ["--root", str(self.config.root), "--state", str(self.config.state)]
        if self.config.path:
            arguments += ["--config", str(self.config.path)]
        kind, _, name = service.partition(".")
        if kind == "snapshots":
            arguments += ["--snapshotter", name]
        return arguments

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return
        if number == signal.SIGHUP and not (self._terminal and not has_terminal()):
            self._reload()
            return
        self._stopping = True
        self._stop_signals += 1
        if self._stop_signals > 1:
            for child in self._children:
                if child.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)

    def _reload(self) -> None:
        """Have services read their configuration again; one that is starting has just done so."""
        for child in self._children:
            if child.pid and child.ready:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGHUP)

    def _supervise(self, wake: socket.socket, notify: NotifySocket) -> None:
        limit = time.monotonic() + START_LIMIT
        announced = False
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            selector.register(notify, selectors.EVENT_READ)
            while not self._stopping:
                selector.select(self._next_wait(limit, announced=announced))
                with contextlib.suppress(BlockingIOError):
                    wake.recv(4096)
                self._take_ready(notify)
                self._reap(announced=announced)
                self._restart_due()
                if not announced and all(child.ready for child in self._children):
                    announced = True
                    with contextlib.suppress(OSError):
                        self.on_ready()
                if not announced and time.monotonic() > limit:
                    late = ", ".join(child.name for child in self._children if not child.ready)
                    raise Unavailable(f"not ready after {START_LIMIT:.0f} s: {late}")

    def _next_wait(self, limit: float, *, announced: bool) -> float | None:
        moments = [child.restart_at for child in self._children if child.restart_at is not None]
        if not announced:
            moments.append(limit)
        return max(0.0, min(moments) - time.monotonic()) + 0.001 if moments else None

    def _take_ready(self, notify: NotifySocket) -> None:
        for pid, assignments in notify.receive():
            if assignments.get("READY") != "1":
                continue
            for child in self._children:
                if child.pid == pid:
                    child.ready = child.ever_ready = True

    def _reap(self, *, announced: bool) -> None:
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.pid, child.ready = 0, False
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            if not announced and not child.ever_ready:
                raise Unavailable(f"{child.name} {how} while starting")
            if time.monotonic() - child.started > 2 * LONGEST_PAUSE:
                child.pause = FIRST_PAUSE
            _say(f"{child.name} (pid {pid}) {how}, starting it again in {child.pause:.1f} s")
            child.restart_at = time.monotonic() + child.pause
            child.pause = min(2 * child.pause, LONGEST_PAUSE)

    def _restart_due(self) -> None:
        for child in self._children:
            if child.restart_at is not None and child.restart_at <= time.monotonic():
                try:
                    self._start(child)
                except OSError as error:
                    _say(f"{child.name} can't be started, trying again in {LONGEST_PAUSE:.0f} s: {error}")
                    child.restart_at = time.monotonic() + LONGEST_PAUSE

    def _start(self, child: Child) -> None:
        child.started, child.restart_at, child.ready = time.monotonic(), None, False
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # A signal that met our handlers in the new process would be lost, and the service not stop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            child.pid = os.fork()
            if not child.pid:
                self._serve(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _serve(self, child: Child) -> NoReturn:
        """The new process, to its end; whatever goes wrong before the service has a log is told here."""
        status = 70
        try:
            self._become(child)
            child.entry(child.arguments)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except CarinaError as error:
            sys.stderr.write(f"{child.name}: {error}\n")
            status = 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _become(self, child: Child) -> None:
        """In the new process: nothing of the supervisor's stays but its memory."""
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.setsid()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if self.log_directory:
            output = open_log(self.log_directory / f"{child.name}.log")
            os.dup2(output, 1)
            os.dup2(output, 2)
        os.environ["NOTIFY_SOCKET"] = str(self.config.state / "notify.sock")
        sys.argv = [child.name, *child.arguments]

    def _stop_all(self) -> None:
        for kinds in STOP_ORDER:
            group = [child for child in self._children if child.pid and child.service.partition(".")[0] in kinds]
            survivors.end([child.pid for child in group], grace=STOP_GRACE if self._stop_signals < 2 else 0.5)
            for child in group:
                with contextlib.suppress(ChildProcessError):
                    if not os.waitpid(child.pid, os.WNOHANG)[0]:
                        _say(f"{child.name} (pid {child.pid}) does not end, even by SIGKILL")
                child.pid = 0


def open_log(path: Path) -> int:
    """Open a log for appending, a large one put aside first; logrotate's copytruncate works on it too."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LARGE_LOG:
            path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _is_strange(path: Path) -> bool:
    """Whether a directory holds something, but no lock of ours. (A new tmpfs is sticky, and empty.)"""
    return not (path / "lock").exists() and any(path.iterdir())


def make_directories(config: Config) -> None:
    """Root 0700, state 0711, tightened where they are wider; the gateway's socket is what others may reach.

    Raises:
        FailedPrecondition: one of them can't be made, or is everybody's, like /tmp.
    """
    for path, mode in ((config.root, 0o700), (config.state, 0o711)):
        try:
            path.mkdir(parents=True, exist_ok=True, mode=mode)
            if path == Path("/") or (path.stat().st_mode & stat.S_ISVTX and _is_strange(path)):
                raise FailedPrecondition(f"directory {path} is shared with others: give the constellation its own")
            path.chmod(mode)
        except OSError as error:
            raise FailedPrecondition(f"directory {path} can't be made: {error.strerror}") from error
    for address in config.services.values():
        socket_path(address)


@contextlib.contextmanager
def _signals(handle: Callable[[int], None]) -> Iterator[socket.socket]:
    """Deliver SIGNALS through a socket that becomes readable, as well as to `handle`."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    # What our parent has us ignore stays ignored: nohup's SIGHUP.
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, lambda received, _: handle(received)) for number in numbers}
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in earlier.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()
