"""The composition root: a channel to each service behind the gateway, and one socket in front of them."""

import asyncio
import contextlib
import os

from grpclib.const import Cardinality

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.linux.privileges import require_own
from carina.rpc import metering
from carina.rpc.client import Channel
from carina.rpc.server import Listener
from carina.rpc.server import serve as serve_rpc
from carina.swap.server import SwapService
from gatewayd import routes, swapping
from gatewayd.config import Config
from gatewayd.instance import identity
from gatewayd.metrics import Gathering
from gatewayd.plugins import MergedIntrospection
from gatewayd.rpc import GatewayIntrospection
from gatewayd.sockets import Listeners, sockets
from gatewayd.upstream import Upstream
from gatewayd.watch import Watch


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    await in_thread(require_own, config.root, "gatewayd")
    identifier = await in_thread(identity, config.root)
    namespace = (await in_thread(os.stat, "/proc/self/ns/pid")).st_ino
    async with contextlib.AsyncExitStack() as stack:
        upstreams: dict[str, Upstream] = {}
        for name, address in (await in_thread(swapping.where, config.root, config.upstreams)).items():
            upstreams[name] = Upstream(name, address, stall=config.stall_timeout)
            stack.callback(upstreams[name].close)

        _meter_streams()

        def route(path: str) -> Channel | None:
            name = routes.daemon(path)
            return None if name is None else upstreams[name].route()

        introspection = GatewayIntrospection(
            MergedIntrospection(upstreams), identity=identifier, pid_namespace=namespace
        )
        listeners = Listeners()
        swapper = swapping.GatewaySwapper(config.root, upstreams, config.upstreams, listeners)
        for socket in sockets(config, upstreams):
            listening = serve_rpc(
                socket.address,
                [introspection, SwapService(swapper)],
                name="gatewayd",
                mode=socket.mode,
                gid=config.gid,
                grace=config.grace,
                route=route,
                admission=socket.admission,
            )
            listener = await stack.enter_async_context(listening)
            listeners.add(listener)
            listener.health.set("gatewayd", True)
            if socket.address == config.address:  # tenants have no business with everybody's metrics
                listener.metrics.sources.append(Gathering(upstreams).behind)
                await _show_metrics(stack, config, listener)
        watch = Watch(upstreams, listeners)
        await watch.settle()
        lifetime.ready()
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(watch.watch(upstream), name=f"watch {name}") for name, upstream in upstreams.items()
            ]
            await lifetime.stopped()
            for task in watching:
                task.cancel()


def _meter_streams() -> None:
    """What is passed on undecoded does not show whether it is a stream."""
    for streams, kind in ((routes.STREAMS, Cardinality.UNARY_STREAM), (routes.BOTH_WAYS, Cardinality.STREAM_STREAM)):
        for path in streams:
            metering.method(path, kind)


async def _show_metrics(stack: contextlib.AsyncExitStack, config: Config, listener: Listener) -> None:
    if config.metrics:
        from gatewayd import exposition  # what it needs takes memory

        page = exposition.serve(config.metrics, listener.metrics.collected, gid=config.gid)
        await stack.enter_async_context(page)
