"""events: what happens, as it happens."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.client import Client


@click.command()
@click.argument("filters", nargs=-1)
@click.pass_obj
def events(target: Target, filters: Sequence[str]) -> None:
    """Print events of every namespace until interrupted."""

    async def work(client: "Client") -> None:
        from carina.rpc.any import describe

        async for envelope in client.events.subscribe(filters):
            payload = json.dumps(describe(envelope.event), default=str)
            click.echo(f"{envelope.timestamp.isoformat()} {envelope.namespace} {envelope.topic} {payload}")

    target.run(work, deadline=None)
