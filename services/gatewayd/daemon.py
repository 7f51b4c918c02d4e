"""The composition root: a channel to each service behind the gateway, and one socket in front of them."""

import asyncio
import contextlib
import os

from carina.aio.daemon import Lifetime
from carina.aio.threads import in_thread
from carina.introspection.client import RemoteIntrospection
from carina.rpc.client import Channel, connect
from carina.rpc.server import serve as serve_rpc
from gatewayd import routes, watch
from gatewayd.config import Config
from gatewayd.instance import identity
from gatewayd.plugins import MergedIntrospection
from gatewayd.rpc import GatewayIntrospection


async def serve(config: Config, lifetime: Lifetime) -> None:
    """Run until the process is asked to end."""
    identifier = await in_thread(identity, config.root)
    namespace = (await in_thread(os.stat, "/proc/self/ns/pid")).st_ino
    async with contextlib.AsyncExitStack() as stack:
        channels: dict[str, Channel] = {}
        for name, address in config.upstreams.items():
            channels[name] = connect(address)
            stack.callback(channels[name].close)

        def route(path: str) -> Channel | None:
            name = routes.daemon(path)
            return None if name is None else channels[name]

        merged = MergedIntrospection({name: RemoteIntrospection(channel) for name, channel in channels.items()})
        introspection = GatewayIntrospection(merged, identity=identifier, pid_namespace=namespace)
        listening = serve_rpc(
            config.address, [introspection], name="gatewayd", gid=config.gid, grace=config.grace, route=route
        )
        listener = await stack.enter_async_context(listening)
        await watch.settle(channels, listener.health)
        lifetime.ready()
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(watch.watch(name, channel, listener.health), name=f"watch {name}")
                for name, channel in channels.items()
            ]
            await lifetime.stopped()
            for task in watching:
                task.cancel()
