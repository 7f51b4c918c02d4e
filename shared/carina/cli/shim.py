"""shim: a container's shim, spoken to directly."""

import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from carina.cli import listing, output
from carina.cli.complete import names
from carina.cli.group import Group
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.client import Client
    from carina.tasks.shim import Shim


@click.group(cls=Group)
@click.option("--id", required=True, shell_complete=names("tasks"), help="Id of the container.")
@click.pass_context
def shim(ctx: click.Context, id: str) -> None:
    """Speak with a container's shim itself.

    The server is not told what the shim is made to do: this is for looking into faults.
    """
    ctx.meta["shim"] = id


def _id() -> str:
    id: str = click.get_current_context().meta["shim"]
    return id


@asynccontextmanager
async def _shim(client: "Client", id: str) -> "AsyncIterator[Shim]":
    from carina import context
    from carina.config import socket_path
    from carina.tasks.shim import shim as connected

    async with connected(socket_path(client.address).parent, context.namespace(), id) as found:
        yield found


def _call(target: Target, use: "Callable[[Shim], Awaitable[Any]]") -> Any:
    id = _id()

    async def work(client: "Client") -> Any:
        async with _shim(client, id) as found:
            return await use(found)

    return target.run(work)


@shim.command("state")
@click.pass_obj
def state(target: Target) -> None:
    """Show what the shim says of the process."""
    output.as_json(listing.plain(_call(target, lambda found: found.state())))


@shim.command("start")
@click.pass_obj
def start(target: Target) -> None:
    """Start the process that was created."""
    click.echo(_call(target, lambda found: found.start()))


@shim.command("delete")
@click.pass_obj
def delete(target: Target) -> None:
    """Delete the process that has ended."""
    click.echo(f"exit status {_call(target, lambda found: found.delete())}")


@shim.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--stdin", default="", type=click.Path(), help="FIFO of its standard input.")
@click.option("--stdout", default="", type=click.Path(), help="FIFO of its standard output.")
@click.option("--stderr", default="", type=click.Path(), help="FIFO of its standard error.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment variable.")
@click.option("--cwd", default="", help="Working directory.")
@click.option("--spec", type=click.File("rb"), metavar="FILE", help="A whole process of the runtime specification.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def exec_(target: Target, /, tty: bool, command: Sequence[str], **options: Any) -> None:
    """Run a further process; its pid is printed."""
    from carina.oci import spec
    from carina.tasks import Stdio
    from carina.typed import TypedValue

    if not command and options["spec"] is None:
        raise click.UsageError("COMMAND or --spec is missing")
    id = _id()
    streams = {name: os.path.abspath(options[name]) if options[name] else "" for name in ("stdin", "stdout", "stderr")}

    async def work(client: "Client") -> int:
        if options["spec"] is not None:
            process = json.loads(options["spec"].read(1 << 20))
        else:
            container = await client.containers.get(id)
            wish = spec.Options(env=options["env"], cwd=options["cwd"], terminal=tty)
            process = spec.process(json.loads(container.spec.value if container.spec else b"{}"), command, wish)
        value = TypedValue(spec.PROCESS_TYPE_URL, json.dumps(process).encode())
        async with _shim(client, id) as found:
            return await found.exec(f"shim-{secrets.token_hex(4)}", value, Stdio(**streams, terminal=tty))

    click.echo(target.run(work))
