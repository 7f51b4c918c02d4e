"""tasks: the running containers of a namespace."""

import json
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.process import Signals, attached, executed, need_terminal, start_detached
from carina.cli.target import Target
from carina.tasks import Process

if TYPE_CHECKING:
    from carina.client import Client


@click.group()
def tasks() -> None:
    """Manage tasks."""


@tasks.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.pass_obj
def list_(target: Target, quiet: bool) -> None:
    """List tasks."""

    async def work(client: "Client") -> Sequence[Process]:
        return await client.tasks.list()

    found = sorted(target.run(work), key=lambda process: process.container_id)
    if quiet:
        output.names(process.container_id for process in found)
        return
    output.table(("TASK", "PID", "STATUS"), [(p.container_id, p.pid, p.status.name) for p in found])


@tasks.command("start")
@click.argument("id")
@click.option("-d", "--detach", is_flag=True, help="Return when it runs.")
@click.pass_obj
def start(target: Target, id: str, detach: bool) -> None:
    """Start a task of a container that has none."""

    async def work(client: "Client") -> int:
        async with Signals() as signals:
            container = await client.containers.get(id)
            if detach:
                return await start_detached(client, container, signals=signals)
            return await attached(client, container, tty=False, signals=signals)

    raise click.exceptions.Exit(target.run(work, deadline=None))


@tasks.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--exec-id", required=True, help="Id of the process, new in this task.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--cwd", default="", help="Working directory.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable.")
@click.argument("id")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(
    target: Target, /, exec_id: str, tty: bool, cwd: str, env: Sequence[str], id: str, command: Sequence[str]
) -> None:
    """Run a further process in a task; its exit status is passed on."""
    if tty:
        need_terminal()

    async def work(client: "Client") -> int:
        from carina.errors import FailedPrecondition
        from carina.oci import spec

        async with Signals() as signals:
            container = await client.containers.get(id)
            if container.spec is None:
                raise FailedPrecondition(f"container {id} has no specification")
            options = spec.Options(cwd=cwd, env=env, terminal=tty)
            process = spec.process(json.loads(container.spec.value), command, options)
            return await executed(client, container, exec_id, process, signals=signals)

    raise click.exceptions.Exit(target.run(work, deadline=None))


@tasks.command("kill")
@click.option("-s", "--signal", "name", default="SIGTERM", show_default=True, help="Name or number.")
@click.option("-a", "--all", "all_", is_flag=True, help="Every process of the task.")
@click.option("--exec-id", default="", help="A further process rather than the first.")
@click.argument("id")
@click.pass_obj
def kill(target: Target, name: str, all_: bool, exec_id: str, id: str) -> None:
    """Send a signal."""
    number = _signal(name)

    async def work(client: "Client") -> None:
        await client.tasks.kill(id, number, exec_id=exec_id, all=all_)

    target.run(work)


def _signal(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else signal.Signals["SIG" + name.upper().removeprefix("SIG")].value
    except KeyError as error:
        raise click.UsageError(f"{name!r} is not a signal") from error


@tasks.command("rm")
@click.argument("ids", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Kill it first.")
@click.pass_obj
def remove(target: Target, ids: Sequence[str], force: bool) -> None:
    """Delete tasks that have ended."""

    async def work(client: "Client") -> None:
        from carina.errors import NotFound

        for id in ids:
            if force:
                try:
                    await client.tasks.kill(id, signal.SIGKILL, all=True)
                    await client.tasks.wait(id)
                except NotFound:
                    pass
            ended = await client.tasks.delete(id)
            click.echo(f"{id}: exit status {ended.status}")

    target.run(work)


@tasks.command("ps")
@click.argument("id")
@click.pass_obj
def ps(target: Target, id: str) -> None:
    """List a task's processes."""

    async def work(client: "Client") -> list[tuple[str]]:
        return [(str(process.pid),) for process in await client.tasks.pids(id)]

    output.table(("PID",), target.run(work))


@tasks.command("pause")
@click.argument("id")
@click.pass_obj
def pause(target: Target, id: str) -> None:
    """Freeze a task's processes."""

    async def work(client: "Client") -> None:
        await client.tasks.pause(id)

    target.run(work)


@tasks.command("resume")
@click.argument("id")
@click.pass_obj
def resume(target: Target, id: str) -> None:
    """Let a frozen task go on."""

    async def work(client: "Client") -> None:
        await client.tasks.resume(id)

    target.run(work)


@tasks.command("metrics")
@click.argument("id")
@click.pass_obj
def metrics(target: Target, id: str) -> None:
    """Show a task's resource usage."""

    async def work(client: "Client") -> object:
        from carina.rpc.any import describe

        found = await client.tasks.metrics([f'id=="{id}"'])
        return [{"id": m.id, "timestamp": m.timestamp, "data": describe(m.data)} for m in found]

    output.as_json(target.run(work))
