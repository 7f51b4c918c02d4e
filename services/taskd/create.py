"""Creating a task: bundle, shim, container. If any step fails nothing remains of those before it."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carina import context
from carina.aio.finish import finish
from carina.aio.threads import in_thread
from carina.containers import Container
from carina.errors import AlreadyExists, CarinaError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from carina.mount import Mount
from carina.tasks import Exit, Stdio
from carina.typed import TypedValue
from taskd import log as shim_log
from taskd.bundle import Bootstrap, Bundle
from taskd.endpoint import Endpoint
from taskd.leftovers import kill_leftovers, remove_control_groups
from taskd.registry import Registry
from taskd.runtime import find_shim, is_own, is_runc
from taskd.shim import restore_path, runc_options
from taskd.task import Phase, Task

log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    rootfs: Sequence[Mount]
    stdio: Stdio
    options: TypedValue | None
    runtime_path: str
    checkpoint: str
    endpoint: Endpoint | None = None
    """Where the task goes whose container is in a sandbox."""


async def create(registry: Registry, container: Container, request: Request) -> int:
    """Returns the pid of the first process, which waits to be started.

    Raises:
        AlreadyExists: the container has a task.
        NotFound: the runtime's shim is not installed.
        InvalidArgument: the record has no runtime or no valid spec.
        CarinaError: the shim or the runtime failed; the message is theirs.
    """
    namespace, config = context.namespace(), registry.config
    context.validate_identifier(container.id, "container id")
    bundle = Bundle(
        namespace=namespace,
        id=container.id,
        path=config.bundles / namespace / container.id,
        work=config.work / namespace / container.id,
    )
    task = Task(bundle, Phase.CREATING)
    if registry.tasks.setdefault(task.key, task) is not task:
        raise AlreadyExists(f"task {container.id}: already exists")
    try:
        return await _create(registry, task, container, request)
    except BaseException as error:
        if not task.made:
            del registry.tasks[task.key]
        else:
            await finish(_undo(registry, task, error))
        raise


async def _create(registry: Registry, task: Task, container: Container, request: Request) -> int:
    config, bundle = registry.config, task.bundle
    runtime = request.runtime_path or (container.runtime.name if container.runtime else "")
    if not runtime:
        raise InvalidArgument(f"container {container.id} has no runtime")
    if container.spec is None or not container.spec.value:
        raise InvalidArgument(f"container {container.id} has no spec")
    endpoint = request.endpoint
    if endpoint is None:
        binary: Path | None = await in_thread(find_shim, runtime, config.shim_directories)
    else:
        binary = endpoint.binary
    options = request.options if request.options is not None and request.options.value else None
    if options is None and container.runtime is not None:
        options = container.runtime.options
    if binary is not None and (is_runc(binary) or is_own(binary)):
        options = runc_options(options, config.runc_root)
    await in_thread(bundle.create, container.spec.value)
    task.made, task.binary, task.runtime = True, binary, runtime
    task.stop_log = await shim_log.follow(bundle)
    bootstrap = await _bootstrap(registry, task, container, endpoint, options)
    await in_thread(bundle.remember_bootstrap, bootstrap)
    shim = await registry.shim_at(task, bootstrap)
    checkpoint = request.checkpoint or restore_path(options)
    pid = await shim.create(
        bundle, rootfs=list(request.rootfs), stdio=request.stdio, options=options, checkpoint=checkpoint
    )
    task.hold_process(pid)
    task.enter(Phase.LIVE)
    registry.watch(task, "", pid)
    return pid


async def _bootstrap(
    registry: Registry, task: Task, container: Container, endpoint: Endpoint | None, options: TypedValue | None
) -> Bootstrap:
    """How to reach the task's shim: the sandbox's, or one that is started."""
    if task.binary is not None:
        await in_thread(task.bundle.remember_shim, task.binary)
    if endpoint is not None:
        task.sandbox = container.sandbox or task.id
        await in_thread(task.bundle.remember_sandbox, task.sandbox)
        return endpoint.bootstrap
    assert task.binary is not None
    return await registry.launcher.start(task.bundle, task.binary, options)


async def _undo(registry: Registry, task: Task, cause: BaseException) -> None:
    """Remove what there is of the task; what takes a descriptor or room that is not there now, as soon as it is."""
    try:
        await _undone(registry, task, cause)
    except ResourceExhausted as error:
        log.warning("task %s/%s: removing what a failed creation left is tried again: %s", *task.key, error)
        registry.in_background(_undo_later(registry, task, cause), f"undo {'/'.join(task.key)}")


async def _undo_later(registry: Registry, task: Task, cause: BaseException) -> None:
    while True:
        await asyncio.sleep(_PAUSE_SECONDS)
        try:
            return await _undone(registry, task, cause)
        except ResourceExhausted:
            pass


async def _undone(registry: Registry, task: Task, cause: BaseException) -> None:
    with context.use(context.Call(namespace=task.bundle.namespace)):
        answering = await _delete_at_shim(task)
        if not answering:
            shared = bool(task.sandbox) or (task.shim is not None and len(task.shim.tasks) > 1)
            await kill_leftovers(task.bundle, shared=shared)
            if task.binary is not None and not isinstance(cause, NotFound):
                try:
                    await registry.launcher.delete(task.bundle, task.binary)
                except ResourceExhausted:
                    raise
                except CarinaError as error:
                    log.warning("task %s/%s: cleaning up after a failed creation: %s", *task.key, error)
            await remove_control_groups(task.bundle)
        try:
            await registry.dismiss(task, Exit())
        except CarinaError as error:
            log.error("task %s/%s: removing what a failed creation left: %s", *task.key, error)


async def _delete_at_shim(task: Task) -> bool:
    """Whether the shim answers, and so has nothing left of the task."""
    if task.shim is None:
        return False
    try:
        await task.shim.delete(task.id, seconds=task.shim.config.start_seconds)
    except NotFound:
        return True
    except Unavailable:
        return False
    except CarinaError as error:
        log.warning("task %s/%s: deleting it after its creation failed: %s", *task.key, error)
        return False
    return True
