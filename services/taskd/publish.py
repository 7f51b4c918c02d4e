"""The program that shims are given as `-publish-binary`: publishes one event, read from stdin.

Called as containerd is: `publish --address SOCKET publish --topic T --namespace N`, a `google.protobuf.Any` on stdin.
"""

import asyncio
import sys
from datetime import UTC, datetime
from typing import Final

import click

from carina import context
from carina.errors import CarinaError
from carina.events import Envelope
from carina.typed import TypedValue
from taskd.rpc import forward_event, parse_any

SECONDS: Final = 20.0
_MAX: Final = 4 << 20


@click.group()
@click.option("-a", "--address", required=True, help="Path of the gateway's socket.")
@click.pass_context
def main(ctx: click.Context, address: str) -> None:
    """Publish events of shims."""
    ctx.obj = address.removeprefix("unix://")


@main.command()
@click.option("--topic", required=True)
@click.option("--namespace", required=True)
@click.pass_obj
def publish(address: str, topic: str, namespace: str) -> None:
    """Publish the event on stdin."""
    try:
        event = parse_any(sys.stdin.buffer.read(_MAX))
        asyncio.run(_publish(address, topic, namespace, event))
    except CarinaError as error:
        raise click.ClickException(str(error)) from error


async def _publish(address: str, topic: str, namespace: str, event: TypedValue) -> None:
    envelope = Envelope(timestamp=datetime.now(UTC), namespace=namespace, topic=topic, event=event)
    with context.deadline(SECONDS):
        await forward_event(f"{address}.ttrpc", envelope)
