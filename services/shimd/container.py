"""Containers: a bundle, the runtime's options, the first process and those executed in it."""

import json
import os
import signal as signals
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from carina.errors import (
    AlreadyExists,
    CarinaError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from carina.linux.mount import mount_all, unmount_all, unmount_beneath
from carina.mount import Mount
from shimd import cgroup, journal
from shimd.loop import Lock
from shimd.messages import CHECKPOINT_OPTIONS, timestamp
from shimd.oom import Watch
from shimd.process import CREATED, PAUSED, RUNNING, STOPPED, Group, Process
from shimd.runc import Runc
from shimd.state import write
from shimd.stdio import Stdio
from shimd.wire import decode

_END_SECONDS: Final = 10.0


class Container:
    def __init__(
        self, group: Group, id: str, bundle: str, *, stdio: Stdio, mounts: Sequence[Mount], options: Mapping[str, Any]
    ) -> None:
        self.id, self.bundle, self.mounts, self.options = id, bundle, list(mounts), dict(options)
        self.group = group
        self.lock = Lock(group.loop)
        self.runc = Runc(group.children, bundle, namespace=group.namespace, options=options)
        self.init = Process(group, "", stdio, told=self._told)
        self.execs: dict[str, Process] = {}
        self.paused = False
        self._oom: Watch | None = None

    @property
    def rootfs(self) -> str:
        return os.path.join(self.bundle, "rootfs")

    def _publish(self, topic: str, **values: Any) -> None:
        self.group.publish(topic, {"container_id": self.id, **values})

    def save(self) -> None:
        """Write down what a shim after us needs to know. Nothing happens where the bundle is gone."""
        record = {
            "id": self.id,
            "socket": self.group.socket,
            "options": self.options,
            "mounts": [[m.type, m.source, m.target, list(m.options)] for m in self.mounts],
            "paused": self.paused,
            "processes": [process.record() for process in (self.init, *self.execs.values())],
        }
        try:
            write(self.bundle, record)
        except OSError as error:
            journal.write("error", f"container {self.id}: its state can't be written: {error}", bundle=self.bundle)

    async def create(self, *, checkpoint: str = "") -> int:
        """Raises CarinaError; then nothing is left of it."""
        if checkpoint:
            raise Unimplemented(f"container {self.id}: restoring from a checkpoint is not built")
        if self.mounts:
            os.makedirs(self.rootfs, mode=0o711, exist_ok=True)
            mount_all(self.mounts, self.rootfs)
        flags = ["--bundle", self.bundle]
        flags += ["--no-pivot"] if self.options.get("no_pivot_root") else []
        flags += ["--no-new-keyring"] if self.options.get("no_new_keyring") else []
        with self.init:
            try:
                pid_file = os.path.join(self.bundle, "init.pid")
                await self.init.launch(self.runc, self.id, "create", *flags, pid_file=pid_file)
            except CarinaError:
                self._unmount()
                raise
            self.watch_memory()
            stdio = self.init.stdio
            io = {name: getattr(stdio, name) for name in ("stdin", "stdout", "stderr", "terminal")}
            rootfs = [asdict(mount) for mount in self.mounts]
            self._publish("/tasks/create", bundle=self.bundle, rootfs=rootfs, io=io, pid=self.init.pid)
            self.save()
        return self.init.pid

    def watch_memory(self) -> None:
        paths = cgroup.paths(self.init.pid)
        self._oom = Watch(self.group.loop, paths, lambda: self._publish("/tasks/oom")) if paths else None

    def process(self, exec_id: str) -> Process:
        """Raises NotFound."""
        process = self.execs.get(exec_id) if exec_id else self.init
        if process is None:
            raise NotFound(f"process {exec_id} of task {self.id}: not found")
        return process

    def status(self, process: Process) -> int:
        return PAUSED if self.paused and process.status == RUNNING else process.status

    async def start(self, exec_id: str) -> int:
        process = self.process(exec_id)
        async with process.lock:
            if process.status != CREATED or (process.pid and exec_id):
                raise FailedPrecondition(f"cannot start a process that is not new: {exec_id or 'init'} of {self.id}")
            with process:
                if exec_id:
                    await self._start_exec(process)
                    self._publish("/tasks/exec-started", exec_id=exec_id, pid=process.pid)
                else:
                    await self.runc.run("start", self.id)
                    self._publish("/tasks/start", pid=process.pid)
                process.status = RUNNING
                self.save()
        return process.pid

    async def _start_exec(self, process: Process) -> None:
        if self.init.status not in (CREATED, RUNNING):
            raise FailedPrecondition(f"cannot exec in a stopped container: {self.id}")
        base = os.path.join(self.bundle, f".exec-{self.group.number()}")
        _write(f"{base}.json", process.spec)
        try:
            arguments = ("exec", "--process", f"{base}.json", "--detach")
            await process.launch(self.runc, self.id, *arguments, pid_file=f"{base}.pid")
        finally:
            for path in (f"{base}.json", f"{base}.pid"):
                if os.path.exists(path):
                    os.unlink(path)

    def add_exec(self, exec_id: str, stdio: Stdio, spec: bytes) -> None:
        if not exec_id:
            raise InvalidArgument(f"task {self.id}: an exec id is missing")
        if exec_id in self.execs:
            raise AlreadyExists(f"process {exec_id} of task {self.id}: already exists")
        if self.paused or self.init.status == STOPPED:
            raise FailedPrecondition(f"cannot exec in a {'paused' if self.paused else 'stopped'} container: {self.id}")
        try:
            table = json.loads(spec)
            table["terminal"] = stdio.terminal
            spec = json.dumps(table).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument(f"process {exec_id} of task {self.id}: its spec is not a JSON object") from error
        self.execs[exec_id] = Process(self.group, exec_id, stdio, told=self._told, spec=spec)
        self._publish("/tasks/exec-added", exec_id=exec_id)
        self.save()

    def restore_exec(self, record: Mapping[str, Any], stdio: Stdio) -> Process:
        """A process that an earlier shim has executed."""
        process = Process(self.group, record["exec_id"], stdio, told=self._told, spec=record["spec"].encode())
        process.restore(record)
        self.execs[process.exec_id] = process
        return process

    def _told(self, process: Process) -> None:
        if process is self.init and self._shares_pids():
            self.group.loop.spawn(self._kill_rest(), f"kill what remains of {self.id}")
        if process is self.init:
            self.paused = False
        self._publish(
            "/tasks/exit",
            id=process.exec_id or self.id,
            pid=process.pid,
            exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at),
        )
        self.save()

    def _shares_pids(self) -> bool:
        """Whether processes may outlive the first one, for want of a pid namespace of their own."""
        try:
            with open(os.path.join(self.bundle, "config.json"), "rb") as file:
                namespaces = json.load(file)["linux"]["namespaces"]
            return not any(one["type"] == "pid" and not one.get("path") for one in namespaces)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return False

    async def _kill_rest(self) -> None:
        try:
            await self.runc.run("kill", "--all", self.id, str(int(signals.SIGKILL)))
        except CarinaError:
            pass  # nothing was left

    async def kill(self, exec_id: str, signal: int, *, all: bool) -> None:
        process = self.process(exec_id)
        if all or (self.paused and not exec_id):
            if process.status == STOPPED and not self._shares_pids():
                raise NotFound(f"process of task {self.id}: process already finished")
            flags = ("--all",) if all else ()
            await self.runc.run("kill", *flags, self.id, str(signal))
            return
        try:
            process.signal(signal)
        except ProcessLookupError:
            noun = f"process {exec_id} of task {self.id}" if exec_id else f"task {self.id}"
            raise NotFound(f"{noun}: process already finished") from None
        except (OSError, OverflowError) as error:
            raise InvalidArgument(f"task {self.id}: signal {signal} can't be sent") from error

    async def delete(self, exec_id: str) -> Process:
        """Remove a process that has ended or never run; with the first one the container is gone."""
        process = self.process(exec_id)
        async with process.lock:
            if process.status == RUNNING:
                raise FailedPrecondition(f"cannot delete a running process: {exec_id or self.id}")
            if exec_id:
                await process.drained()
                process.close()
                self.execs.pop(exec_id, None)
                self.save()
            else:
                await self._delete()
        return process

    async def _delete(self) -> None:
        try:
            await self.runc.run("delete", *(("--force",) if self.init.status == STOPPED else ()), self.id)
        except NotFound:
            pass
        await self.group.loop.within(self.init.ended, _END_SECONDS)
        await self.init.drained()
        self.close()
        self._unmount()
        self._publish(
            "/tasks/delete",
            pid=self.init.pid,
            exit_status=self.init.exit_status,
            exited_at=timestamp(self.init.exited_at),
        )

    def close(self) -> None:
        for process in (self.init, *self.execs.values()):
            process.close()
        if self._oom is not None:
            self._oom.close()
            self._oom = None

    def _unmount(self) -> None:
        if any(mount.target for mount in self.mounts):
            unmount_beneath(self.rootfs)
        elif self.mounts:
            unmount_all(self.rootfs, detach=True)

    async def pause(self) -> None:
        async with self.lock:
            await self.runc.run("pause", self.id)
            self.paused = True
            self._publish("/tasks/paused")
            self.save()

    async def resume(self) -> None:
        async with self.lock:
            await self.runc.run("resume", self.id)
            self.paused = False
            self._publish("/tasks/resumed")
            self.save()

    async def update(self, resources: bytes) -> None:
        descriptor = os.memfd_create("resources", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, resources)
            os.lseek(descriptor, 0, os.SEEK_SET)
            await self.runc.run("update", "--resources", "-", self.id, descriptors={0: descriptor})
        finally:
            os.close(descriptor)

    async def checkpoint(self, path: str, options: bytes) -> None:
        wanted = decode(CHECKPOINT_OPTIONS, options)
        arguments = ["checkpoint", "--image-path", path]
        arguments += ["--work-path", wanted["work_path"]] if wanted["work_path"] else []
        arguments += [] if wanted["exit"] else ["--leave-running"]
        switches = {
            "open_tcp": "--tcp-established",
            "external_unix_sockets": "--ext-unix-sk",
            "terminal": "--shell-job",
            "file_locks": "--file-locks",
        }
        arguments += [switch for name, switch in switches.items() if wanted[name]]
        for namespace in wanted["empty_namespaces"]:
            arguments += ["--empty-ns", namespace]
        arguments += ["--manage-cgroups-mode", wanted["cgroups_mode"]] if wanted["cgroups_mode"] else []
        await self.runc.run(*arguments, self.id)
        self._publish("/tasks/checkpointed", checkpoint=path)


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
