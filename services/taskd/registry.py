"""The registry: every task and shim there is, and what happens when they end.

Each process has one watch, a Wait call at its shim. When that returns, the shim should report the exit by an event;
if it hasn't after a while, the exit is reported for it. A lost connection is made again once; if that fails the shim
is dead: what it left behind is removed and the exits of its processes are reported.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from carina import context
from carina.aio.finish import finish
from carina.aio.locks import KeyedLock
from carina.aio.threads import in_thread
from carina.errors import CarinaError, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from carina.events import Envelope
from carina.tasks import Exit
from taskd import rpc
from taskd.bundle import Bootstrap
from taskd.config import Config
from taskd.leftovers import kill_leftovers, remove_control_groups, remove_socket
from taskd.outbox import Kind, Outbox
from taskd.process import Process
from taskd.runtime import is_own
from taskd.shim import Launcher, Shim
from taskd.task import Phase, Task

KILLED: Final = 137
UNKNOWN: Final = 255
_CLEANUPS: Final = 16
"""Clean-ups after dead shims at the same time."""
_LOCK_SECONDS: Final = 120.0
_TELL_SECONDS: Final = 5.0
"""How long a shim that has deleted its last task may take to tell of it."""
_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.1
_TOLD_SECONDS: Final = 5.0
"""How long the beginning of a process may take to be told when its end is known."""
_ROOM_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class Registry:
    def __init__(self, config: Config, launcher: Launcher, outbox: Outbox, group: asyncio.TaskGroup) -> None:
        self.config = config
        self.launcher = launcher
        self.tasks: dict[tuple[str, str], Task] = {}
        self._outbox = outbox
        self._group = group
        self._shims: dict[str, Shim] = {}
        self._locks = KeyedLock()
        self._cleanups = asyncio.Semaphore(_CLEANUPS)

    def in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run on behalf of nobody: without the namespace and deadline of the present call."""

        async def run() -> None:
            with context.use(context.Call()):
                try:
                    await work
                except CarinaError as error:
                    log.error("%s: %s", name, error)

        self._group.create_task(run(), name=name)

    async def live(self, id: str) -> Task:
        """A task of the call's namespace, with its shim.

        Raises:
            NotFound: no such task.
            Unavailable: its shim is still being connected.
        """
        task = self.tasks.get((context.namespace(), id))
        if task is not None and task.phase is Phase.CONNECTING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.state_seconds):
                    await task.settled.wait()
            if task.phase is Phase.CONNECTING:
                raise Unavailable(f"task {id}: its shim does not answer yet")
        if task is None or task.phase is not Phase.LIVE:
            raise NotFound(f"task {id}: not found")
        return task

    @contextlib.asynccontextmanager
    async def hold(self, task: Task) -> AsyncIterator[None]:
        """Nobody else ends this task meanwhile."""
        async with self._locks.hold(("task", *task.key), seconds=_LOCK_SECONDS):
            yield

    async def record(self, envelope: Envelope) -> None:
        """Keep an event of a shim. One about the exit of a task that was never created is dropped."""
        subject = rpc.subject(envelope)
        if subject.kind is Kind.EXIT:
            task = self.tasks.get((subject.namespace, subject.id))
            if task is not None and task.phase is Phase.CREATING and not await self._outbox.exists(*task.key):
                log.info("exit of task %s/%s, whose creation failed, is not reported", *task.key)
                return
        await self._outbox.record(envelope, subject)

    async def shim_at(self, task: Task, bootstrap: Bootstrap) -> Shim:
        """The shim at an address, for a task: connected now, or for another task already.

        Raises:
            Unavailable: it doesn't accept connections.
        """
        async with self._locks.hold(("shim", bootstrap.address)):
            shim = self._shims.get(bootstrap.address)
            if shim is None or not shim.connected:
                shim = Shim(bootstrap, self.config, self._lost)
                await shim.connect()
                self._shims[bootstrap.address] = shim
            shim.tasks.add(task.key)
            task.shim = shim
            return shim

    def leave_shim(self, task: Task) -> None:
        """Take a task off its shim; the connection is closed with its last one."""
        shim = task.shim
        if shim is None:
            return
        shim.tasks.discard(task.key)
        if not shim.tasks:
            shim.close()
            if self._shims.get(shim.bootstrap.address) is shim:
                del self._shims[shim.bootstrap.address]

    def _lost(self, shim: Shim) -> None:
        for key in list(shim.tasks):
            task = self.tasks.get(key)
            if task is not None and task.phase is Phase.LIVE:
                task.enter(Phase.CONNECTING)
                self.in_background(self._reconnect(task, shim.bootstrap), f"reconnect {'/'.join(key)}")

    async def regain(self, task: Task, bootstrap: Bootstrap) -> Shim:
        """The shim at an address again; where one of ours has died, another, which takes its containers over.

        Raises:
            CarinaError: there is none, or the container has ended meanwhile.
        """
        try:
            return await self.shim_at(task, bootstrap)
        except Unavailable:
            replaceable = task.binary is not None and is_own(task.binary) and not task.sandbox
            if not replaceable or task.own_exit_status() is not None:
                raise
        assert task.binary is not None
        async with self._locks.hold(("regain", bootstrap.address), seconds=_LOCK_SECONDS):
            found = await self.launcher.start(task.bundle, task.binary, None)
        await in_thread(task.bundle.remember_bootstrap, found)
        return await self.shim_at(task, found)

    async def _regain_state(self, task: Task, bootstrap: Bootstrap) -> None:
        """Reach the shim, and have it tell that it has the container.

        A process that is killed closes its sockets one after another, so a shim that has just died may still be
        connected to: it is asked for again.
        """
        for attempt in range(_ATTEMPTS):
            shim = await self.regain(task, bootstrap)
            try:
                await shim.state(task.id, seconds=self.config.start_seconds)
                return
            except CarinaError as error:
                if isinstance(error, NotFound) or (not shim.connected and attempt == _ATTEMPTS - 1):
                    raise
                if shim.connected:  # One that only takes its time has a container that runs.
                    log.warning("task %s/%s: its shim does not answer: %s", *task.key, error)
                    return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _reconnect(self, task: Task, bootstrap: Bootstrap) -> None:
        try:
            await self._regain_state(task, bootstrap)
        except CarinaError as error:
            log.warning("task %s/%s: its shim is dead (%s)", *task.key, error)
            await self.clean_up(task)
        else:
            task.enter(Phase.LIVE)
            for process in task.processes.values():
                if not process.ended.done():
                    self._follow(task, process)

    def watch(self, task: Task, exec_id: str, pid: int = 0) -> Process:
        """The process, whose end is awaited from now on at the latest."""
        process = task.processes.get(exec_id)
        if process is None:
            process = task.processes[exec_id] = Process(exec_id, pid)
            self._follow(task, process)
        process.pid = pid or process.pid
        return process

    def _follow(self, task: Task, process: Process) -> None:
        self.in_background(self._await_end(task, process), f"wait {'/'.join(task.key)} {process.exec_id}")

    async def _await_end(self, task: Task, process: Process) -> None:
        assert task.shim is not None
        try:
            status, at = await task.shim.wait(task.id, process.exec_id)
        except CarinaError as error:
            if isinstance(error, NotFound) or task.shim.connected:
                process.fail(error)
                if task.processes.get(process.exec_id) is process:
                    del task.processes[process.exec_id]
            # Otherwise the connection is lost: who finds out about the shim settles this too.
            return
        if not process.pid:
            with contextlib.suppress(CarinaError):
                process.pid = (await task.shim.state(task.id, process.exec_id)).pid
        exit = Exit(exec_id=process.exec_id, pid=process.pid, status=status, exited_at=at)
        process.end(exit)
        if process.pid:
            await asyncio.sleep(self.config.exit_event_seconds)
            await self._report_in_order(task, process, exit)

    async def _report_in_order(self, task: Task, process: Process, exit: Exit) -> None:
        """Report the end of a process once its beginning was told, and once there is room for it.

        A shim tells both late where the disk was full for a while. What was there before us was told before us.
        """
        limit = asyncio.get_running_loop().time() + _TOLD_SECONDS
        while not process.adopted and task.phase is not Phase.GONE and asyncio.get_running_loop().time() < limit:
            if await self._outbox.reported(*task.key, exit.exec_id, exit.pid):
                return None
            if any(one.exec_id == exit.exec_id for one in await self._outbox.running(*task.key)):
                break
            await asyncio.sleep(_PAUSE_SECONDS)
        while True:
            try:
                return await self.report(task, exit)
            except ResourceExhausted as error:
                log.warning("task %s/%s: its end can't be reported yet: %s", *task.key, error)
            await asyncio.sleep(_ROOM_SECONDS)

    async def report(self, task: Task, exit: Exit) -> None:
        """Report the end of a process unless that has been done."""
        if await self._outbox.reported(*task.key, exit.exec_id, exit.pid):
            return
        envelope = rpc.exit_event(*task.key, exit)
        if await self._outbox.record(envelope, rpc.subject(envelope)):
            log.info("task %s/%s: exit of process %d reported for its shim", *task.key, exit.pid)

    async def report_known(self, task: Task, exec_id: str) -> None:
        """Report the end of a process that was there before us, so that it comes before its deletion.

        The shim may have tried in vain while we were away, and tries again late or never. Of a process that began
        under us it reports itself, and in order: its start may be on the way still.
        """
        process = task.processes.get(exec_id)
        ended = process.ended if process is not None and process.adopted else None
        if ended is None or not ended.done() or ended.cancelled() or ended.exception() is not None:
            return
        exit = ended.result()
        if exit.pid:
            await self.report(task, exit)

    async def dismiss(self, task: Task, exit: Exit) -> None:
        """Forget a task that its shim has deleted: end the shim, remove the bundle."""
        task.enter(Phase.GONE)
        if task.shim is not None:
            task.shim.tasks.discard(task.key)
            # One that is asked to end may forget what it was about to tell (containerd's since 2.0).
            stays = bool(task.sandbox or task.shim.tasks)
            told = stays or await self._outbox.deleted(*task.key, _TELL_SECONDS)
            if not task.sandbox:
                await task.shim.shutdown(task.id)
            if not told:
                await self._tell(task, exit)
        self.leave_shim(task)
        task.release(exit)
        await self._remove_bundle(task)

    async def _remove_bundle(self, task: Task) -> None:
        """Remove what a task has on the disk, and forget it; what can't be removed now is removed later.

        Until then nobody gets its id: a new task would find the old one's files.
        """
        pause = _PAUSE_SECONDS
        try:
            await in_thread(task.bundle.remove)
        except FailedPrecondition:
            self._forget(task)
            raise
        except (CarinaError, OSError) as error:
            log.warning("task %s/%s: its bundle is removed later: %s", *task.key, error)
            self.in_background(self._remove_later(task, pause), f"remove {'/'.join(task.key)}")
        else:
            self._forget(task)

    async def _remove_later(self, task: Task, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                await in_thread(task.bundle.remove)
            except (CarinaError, OSError):
                continue
            self._forget(task)
            return

    async def _tell(self, task: Task, exit: Exit) -> None:
        """Report the end and the deletion of a task whose shim has ended without doing it."""
        log.warning("task %s/%s: its shim has not told of its deletion", *task.key)
        if exit.pid:
            await self.report(task, exit)
        await self._tell_deletion(task, exit)

    async def _tell_deletion(self, task: Task, exit: Exit) -> None:
        envelope = rpc.delete_event(*task.key, exit)
        await self._outbox.record(envelope, rpc.subject(envelope))

    def _forget(self, task: Task) -> None:
        if self.tasks.get(task.key) is task:
            del self.tasks[task.key]

    async def clean_up(self, task: Task) -> None:
        """Remove what a dead shim left behind, and report what became of its processes.

        Where descriptors or room for that are missing, it is done once they are there.
        """
        while True:
            try:
                async with self.hold(task), self._cleanups:
                    if task.phase is not Phase.GONE:
                        await finish(self._clean_up(task))
                return
            except ResourceExhausted as error:
                log.warning("task %s/%s: cleaning up is tried again: %s", *task.key, error)
            await asyncio.sleep(_ROOM_SECONDS)

    async def _clean_up(self, task: Task) -> None:
        existed = await self._outbox.exists(*task.key) or await in_thread(lambda: task.bundle.was_created)
        known = task.own_exit_status()
        bootstrap = None
        with contextlib.suppress(CarinaError):
            bootstrap = await in_thread(task.bundle.bootstrap)
        self.leave_shim(task)
        await kill_leftovers(task.bundle)
        if bootstrap is not None and not task.sandbox and bootstrap.address not in self._shims:
            await remove_socket(bootstrap.address)
        exit = await self._delete_by_binary(task)
        await remove_control_groups(task.bundle)
        if known is not None:
            exit = replace(exit, status=known)
        if existed:
            for running in await self._outbox.running(*task.key):
                if running.exec_id:
                    await self.report(task, replace(exit, exec_id=running.exec_id, pid=running.pid))
            if exit.pid:
                await self.report(task, exit)
            await self._tell_deletion(task, exit)
        task.enter(Phase.GONE)
        task.release(exit)
        await self._remove_bundle(task)

    async def _delete_by_binary(self, task: Task) -> Exit:
        pid = task.pid or await in_thread(task.bundle.init_pid)
        now = datetime.now(UTC)
        if task.binary is None:
            return Exit(pid=pid, status=UNKNOWN, exited_at=now)
        try:
            gone = await self.launcher.delete(task.bundle, task.binary)
        except ResourceExhausted:
            raise
        except CarinaError as error:
            log.error("task %s/%s: exit status unknown: %s", *task.key, error)
            task.kill_process()
            return Exit(pid=pid, status=UNKNOWN, exited_at=now)
        at = gone.exited_at if gone.exited_at is not None and gone.exited_at.year > 1970 else now
        return Exit(pid=pid or gone.pid, status=gone.status, exited_at=at)

    def give_up_waits(self) -> None:
        """End the Wait calls of our clients: nothing keeps a server from draining as long as they can."""
        for task in self.tasks.values():
            for process in task.processes.values():
                process.fail(Unavailable(f"task {task.id}: taskd is stopping"))

    async def close(self) -> None:
        """Let go of everything; shims and containers go on."""
        for task in self.tasks.values():
            task.stop_log()
        for shim in list(self._shims.values()):
            shim.close()
            await shim.closed()
