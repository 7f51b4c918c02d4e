"""After a start: find the tasks that are on disk and connect to their shims, all at the same time.

A shim that doesn't answer delays nobody but those who ask for its tasks.
"""

import asyncio
import logging
from typing import Final

from carina import context
from carina.aio.threads import in_thread
from carina.errors import CarinaError, InvalidArgument, NotFound
from carina.tasks import Exit, Process
from taskd import log as shim_log
from taskd.bundle import bundles
from taskd.outbox import Outbox
from taskd.registry import Registry
from taskd.runtime import is_own
from taskd.shim import Shim
from taskd.task import Phase, Task

log = logging.getLogger(__name__)

_MAKING_SECONDS: Final = 3.0
_PAUSE_SECONDS: Final = 0.2


async def reconcile(registry: Registry, outbox: Outbox) -> None:
    """Register every task found; connecting them goes on in the background."""
    config = registry.config
    for bundle in await in_thread(bundles, config.bundles, config.work):
        try:
            context.validate_identifier(bundle.namespace, "namespace")
            context.validate_identifier(bundle.id, "container id")
        except InvalidArgument as error:
            log.warning("%s is left alone: %s", bundle.path, error)
            continue
        task = Task(bundle, Phase.CONNECTING, made=True)
        registry.tasks[task.key] = task
        registry.in_background(_connect(registry, outbox, task), f"reconcile {bundle.namespace}/{bundle.id}")


async def _connect(registry: Registry, outbox: Outbox, task: Task) -> None:
    bundle = task.bundle
    try:
        task.binary = await in_thread(bundle.shim)
        task.sandbox = await in_thread(bundle.sandbox)
        bootstrap = await in_thread(bundle.bootstrap)
        if bootstrap is None:
            raise NotFound("its shim never answered")
        shim = await registry.regain(task, bootstrap)
    except CarinaError as error:
        log.warning("task %s/%s is cleaned up: %s", *task.key, error)
        await registry.clean_up(task)
        return
    task.stop_log = await shim_log.follow(bundle)
    try:
        state = await _state(registry, shim, task)
        task.hold_process(state.pid)
    except NotFound:
        log.warning("task %s/%s: its creation was interrupted", *task.key)
        if task.binary is not None and is_own(task.binary):
            await registry.dismiss(task, Exit())
        else:  # the shim may be making it still, and tells nobody
            await registry.clean_up(task)
        return
    except CarinaError as error:
        if not shim.connected:
            await registry.clean_up(task)
            return
        log.warning("task %s/%s: its shim does not answer: %s", *task.key, error)
    task.enter(Phase.LIVE)
    registry.watch(task, "", task.pid).adopted = True
    for running in await outbox.running(*task.key):
        if running.exec_id:
            registry.watch(task, running.exec_id, running.pid).adopted = True
    log.info("task %s/%s: connected", *task.key)


async def _state(registry: Registry, shim: Shim, task: Task) -> Process:
    """What the shim knows of a task; one that it is making yet has some seconds to be there."""
    limit = asyncio.get_running_loop().time() + _MAKING_SECONDS
    while True:
        try:
            return await shim.state(task.id, seconds=registry.config.start_seconds)
        except NotFound:
            if asyncio.get_running_loop().time() > limit:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
