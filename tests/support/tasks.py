"""taskd with a metadatad of the test's own: container records from a table, events into a list."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from carina import context, shim
from carina.api.containerd import events as wire
from carina.config import load
from carina.containers import Container
from carina.containers.server import ContainersService
from carina.errors import NotFound, Unavailable
from carina.events import Envelope, Numbered, Refused
from carina.events.server import LogService
from carina.mount import Mount
from carina.rpc.client import connect
from carina.rpc.codec import decode
from carina.rpc.server import serve
from carina.tasks import NO_STDIO, Stdio, TaskService
from carina.tasks.client import RemoteTaskService
from carina.typed import Runtime, TypedValue
from support.spec import make_rootfs, spec
from taskd.config import Config, from_constellation
from taskd.daemon import opened
from taskd.daemon import serve as serve_taskd

RUNC = "io.containerd.runc.v2"
OWN = "io.containerd.carina.v1"


class Containers:
    """`ContainerStore.get` from a table; nothing else is asked by taskd."""

    def __init__(self) -> None:
        self.records: dict[str, Container] = {}
        self.asked = 0

    async def get(self, id: str) -> Container:
        self.asked += 1
        if id not in self.records:
            raise NotFound(f"container {id}: not found")
        return self.records[id]


class Events:
    """`EventLog.append` into a list; can be made to fail."""

    def __init__(self) -> None:
        self.seen: list[Envelope] = []
        self.failing = False
        self.recognises = True
        self._taken: dict[str, int] = {}

    async def append(self, source: str, events: Sequence[Numbered]) -> Sequence[Refused]:
        if self.failing:
            raise Unavailable("metadatad is away")
        taken = self._taken.get(source, 0)
        self.seen += [one.envelope for one in events if one.number > taken]
        self._taken[source] = max(taken, events[-1].number)
        return []

    def topics(self, id: str = "") -> list[str]:
        return [found.topic for found in self.seen if not id or id.encode() in found.event.value]

    def exits(self, id: str) -> list[wire.TaskExit]:
        found = [decode(wire.TaskExit, e.event.value) for e in self.seen if e.topic == "/tasks/exit"]
        return [exit for exit in found if exit.container_id == id]

    async def until(self, topic: str, id: str, *, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while topic not in self.topics(id):
                await asyncio.sleep(0.01)


class _Lifetime:
    """`carina.aio.daemon.Lifetime`, for a daemon inside the test's process."""

    def __init__(self) -> None:
        self.is_ready, self.is_stopped = asyncio.Event(), asyncio.Event()

    def ready(self) -> None:
        self.is_ready.set()

    async def stopped(self) -> None:
        await self.is_stopped.wait()


class World:
    """Everything that a test of tasks needs. Names are unique on the machine, since cgroups are."""

    def __init__(self, directory: Path, rootfs: Path, settings: dict[str, Any]) -> None:
        self.directory, self.rootfs = directory, rootfs
        self.runtime = RUNC
        self.address = ""
        """What shims are told of as their daemon; empty for taskd's gateway."""
        self.namespace = f"carina-test-{secrets.token_hex(4)}"
        self.containers, self.events = Containers(), Events()
        self.root, self.state = directory / "root", directory / "state"
        text = "".join(f"{key} = {value}\n" for key, value in settings.items())
        self.path = directory / "config.toml"
        self.path.write_text(f"[tasks]\n{text}")
        self.constellation = load(self.path, root=self.root, state=self.state)
        self.config: Config = from_constellation(self.constellation)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "taskd.log"

    def connect(self) -> None:
        self.channel = connect(self.config.address)
        self.tasks: TaskService = RemoteTaskService(self.channel)

    @contextlib.asynccontextmanager
    async def metadata(self) -> AsyncIterator[None]:
        self.state.mkdir()
        handlers = [ContainersService(self.containers), LogService(self.events)]  # type: ignore[arg-type]
        async with serve(self.constellation.services["metadata"], handlers, name="metadatad", grace=0.1):
            yield

    @contextlib.asynccontextmanager
    async def local(self) -> AsyncIterator[None]:
        """The task service itself, without a socket."""
        async with opened(self.config, self.containers, self.events) as own:  # type: ignore[arg-type]
            self.tasks = own.tasks
            yield
            own.registry.give_up_waits()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """taskd inside this process."""
        lifetime = _Lifetime()
        async with asyncio.TaskGroup() as group:
            daemon = group.create_task(serve_taskd(self.config, lifetime), name="taskd")  # type: ignore[arg-type]
            ready = group.create_task(lifetime.is_ready.wait(), name="ready")
            await asyncio.wait([daemon, ready], return_when=asyncio.FIRST_COMPLETED)
            try:
                yield
            finally:
                ready.cancel()
                lifetime.is_stopped.set()

    async def start_process(self) -> None:
        """taskd as a process of its own."""
        with self.log.open("ab") as log:
            arguments = ["--config", str(self.path), "--root", str(self.root), "--state", str(self.state)]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskd", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(30):
            while True:
                try:
                    with context.within(namespace=self.namespace):
                        await self.tasks.list()
                except Unavailable:
                    assert self.process.poll() is None, self.log.read_text()
                    await asyncio.sleep(0.05)
                else:
                    return

    def kill_process(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def add(
        self,
        *arguments: str,
        id: str = "",
        runtime: str = "",
        terminal: bool = False,
        annotations: dict[str, str] | None = None,
        options: TypedValue | None = None,
        memory: int | None = None,
    ) -> str:
        """A container record. Returns its id."""
        id = id or f"c{secrets.token_hex(4)}"
        self.containers.records[id] = Container(
            id=id,
            runtime=Runtime(name=runtime or self.runtime, options=options),
            spec=spec(self.namespace, id, *arguments, terminal=terminal, annotations=annotations, memory=memory),
        )
        return id

    @property
    def mounts(self) -> list[Mount]:
        return [Mount(type="bind", source=str(self.rootfs), options=("rbind", "ro"))]

    async def create(self, *arguments: str, stdio: Stdio = NO_STDIO, **record: Any) -> str:
        id = self.add(*arguments, terminal=stdio.terminal, **record)
        await self.tasks.create(id, rootfs=self.mounts, stdio=stdio)
        return id

    async def run(self, *arguments: str, stdio: Stdio = NO_STDIO, **record: Any) -> str:
        id = await self.create(*arguments, stdio=stdio, **record)
        await self.tasks.start(id)
        return id

    def bundle(self, id: str) -> Path:
        return self.config.bundles / self.namespace / id

    def shims(self) -> list[int]:
        """Process ids of shims that belong to this world."""
        return [pid for pid in _processes() if self.namespace in _command_line(pid) and "shim" in _command_line(pid)]

    def clean(self) -> None:
        """End what a failed test left running."""
        self.kill_process()
        for pid in self.shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        socket = shim.socket(address=self.address or str(self.config.gateway), namespace=self.namespace, group="")
        for path in (socket, f"{socket}.lock"):
            Path(path).unlink(missing_ok=True)
        base = Path("/sys/fs/cgroup")
        for processes in base.glob(f"*/{self.namespace}/*/cgroup.procs"):
            for line in processes.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line), signal.SIGKILL)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4].startswith(str(self.directory)):
                subprocess.run(["umount", "-l", line.split()[4]], check=False, capture_output=True)
        end = time.monotonic() + 2
        while left := [*base.glob(f"*/{self.namespace}/*/"), *base.glob(f"*/{self.namespace}/")]:
            for directory in left:
                with contextlib.suppress(OSError):
                    directory.rmdir()
            if time.monotonic() > end:
                break
        shutil.rmtree(self.directory, ignore_errors=True)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@contextlib.asynccontextmanager
async def world(runtime: str = RUNC, **settings: Any) -> AsyncIterator[World]:
    """A world without taskd yet; the calls in the block are made in its namespace."""
    directory = Path(tempfile.mkdtemp(prefix="ct-", dir="/tmp"))
    await asyncio.to_thread(make_rootfs, directory / "rootfs")
    made = await asyncio.to_thread(World, directory, directory / "rootfs", settings)
    made.runtime = runtime
    made.connect()
    try:
        async with made.metadata():
            with context.within(namespace=made.namespace), context.deadline(60):
                yield made
    finally:
        made.channel.close()
        await asyncio.to_thread(made.clean)


@contextlib.asynccontextmanager
async def fifo_reader(path: Path) -> AsyncIterator["asyncio.Task[bytes]"]:
    """Reads a FIFO to its end, in the background."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    chunks: list[bytes] = []
    ended = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            chunk = os.read(reader, 65536)
        except BlockingIOError:
            return
        if chunk:
            chunks.append(chunk)
        elif chunks and not ended.done():
            loop.remove_reader(reader)
            ended.set_result(None)

    async def collect() -> bytes:
        await ended
        return b"".join(chunks)

    loop.add_reader(reader, read)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(collect(), name=f"read {path}")
        try:
            yield task
        finally:
            loop.remove_reader(reader)
            task.cancel()
            os.close(reader)
