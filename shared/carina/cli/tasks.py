"""tasks: the running containers of a namespace."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import listing, output, process
from carina.cli.complete import names
from carina.cli.group import Group
from carina.cli.process import Signals, attached, executed, need_terminal, start_detached
from carina.cli.target import Target
from carina.tasks import Process

if TYPE_CHECKING:
    from carina.client import Client
    from carina.containers import Container


@click.group(cls=Group, aliases={"metric": "metrics"})
def tasks() -> None:
    """Manage tasks."""


@tasks.command("ls")
@listing.options
@click.pass_obj
def list_(target: Target, form: listing.Form) -> None:
    """List tasks."""

    async def work(client: "Client") -> Sequence[Process]:
        return await client.tasks.list()

    found = sorted(target.run(work), key=lambda process: process.container_id)
    rows = [{"id": p.container_id, "pid": p.pid, "status": p.status.name} for p in found]
    listing.show(form, rows, columns={"TASK": "id", "PID": "pid", "STATUS": "status"}, name="id")


@tasks.command("start")
@click.argument("id", shell_complete=names("containers"))
@click.option("-d", "--detach", is_flag=True, help="Return when it runs.")
@process.options
@click.pass_obj
def start(target: Target, id: str, detach: bool, io: process.Io) -> None:
    """Start a task of a container that has none."""

    async def work(client: "Client") -> int:
        async with Signals() as signals:
            container = await client.containers.get(id)
            if detach:
                return await start_detached(client, container, signals=signals, io=io)
            tty = bool(_spec(container).get("process", {}).get("terminal"))
            if tty:
                need_terminal()
            return await attached(client, container, tty=tty, signals=signals, io=io)

    raise click.exceptions.Exit(target.run(work, deadline=None))


def _spec(container: "Container") -> dict[str, Any]:
    """Raises FailedPrecondition: it has none."""
    from carina.errors import FailedPrecondition

    if container.spec is None:
        raise FailedPrecondition(f"container {container.id} has no specification")
    found: dict[str, Any] = json.loads(container.spec.value)
    return found


@tasks.command("attach")
@click.argument("id", shell_complete=names("tasks"))
@click.pass_obj
def attach(target: Target, id: str) -> None:
    """Take over the streams of a task that was started with FIFOs, until it ends; its exit status is passed on."""

    async def work(client: "Client") -> int:
        from carina.cli.attach import attached_again

        async with Signals() as signals:
            return await attached_again(client, id, signals=signals)

    raise click.exceptions.Exit(target.run(work, deadline=None))


@tasks.command("checkpoint")
@click.option("--exit", "exit_", is_flag=True, help="End the task with it.")
@click.option("--image-path", required=True, type=click.Path(), help="Directory of criu's image files.")
@click.option("--work-path", default="", type=click.Path(), help="Directory of criu's work files and logs.")
@click.argument("id", shell_complete=names("tasks"))
@click.pass_obj
def checkpoint(target: Target, id: str, exit_: bool, image_path: str, work_path: str) -> None:
    """Write a running task into a directory, with criu."""
    from carina.tasks import runc

    places = {"image_path": image_path, "work_path": work_path}
    absolute = {key: os.path.abspath(path) if path else "" for key, path in places.items()}
    wish = runc.checkpoint(exit=exit_, **absolute)

    async def work(client: "Client") -> None:
        await client.tasks.checkpoint(id, wish)

    target.run(work, deadline=None)
    click.echo(absolute["image_path"])


@tasks.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--exec-id", required=True, help="Id of the process, new in this task.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--cwd", default="", help="Working directory.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable.")
@click.option("-u", "--user", default="", help="User[:group], by name or number.")
@click.option("-d", "--detach", is_flag=True, help="Return when it runs.")
@process.options
@click.argument("id", shell_complete=names("tasks"))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(target: Target, /, exec_id: str, tty: bool, detach: bool, io: process.Io, id: str, **rest: Any) -> None:
    """Run a further process in a task; its exit status is passed on."""
    if tty and not detach:
        need_terminal()

    async def work(client: "Client") -> int:
        from carina.oci import spec
        from carina.oci.user import lookup

        async with Signals() as signals:
            container = await client.containers.get(id)
            user = None
            if rest["user"]:
                pid = (await client.tasks.get(id)).pid
                user = await asyncio.to_thread(lookup, f"/proc/{pid}/root", rest["user"])
            options = spec.Options(cwd=rest["cwd"], env=rest["env"], terminal=tty, user=user)
            wanted = spec.process(_spec(container), rest["command"], options)
            return await executed(client, container, exec_id, wanted, signals=signals, io=io, detach=detach)

    raise click.exceptions.Exit(target.run(work, deadline=None))


@tasks.command("kill")
@click.option("-s", "--signal", "name", default="SIGTERM", show_default=True, help="Name or number.")
@click.option("-a", "--all", "all_", is_flag=True, help="Every process of the task.")
@click.option("--exec-id", default="", help="A further process rather than the first.")
@click.argument("id", shell_complete=names("tasks"))
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
@click.argument("ids", nargs=-1, required=True, shell_complete=names("tasks"))
@click.option("-f", "--force", is_flag=True, help="Kill it first.")
@click.option("--exec-id", default="", help="A further process rather than the task.")
@click.pass_obj
def remove(target: Target, ids: Sequence[str], force: bool, exec_id: str) -> None:
    """Delete tasks that have ended."""

    async def work(client: "Client") -> None:
        from carina.errors import NotFound

        for id in ids:
            if force:
                try:
                    await client.tasks.kill(id, signal.SIGKILL, exec_id=exec_id, all=not exec_id)
                    await client.tasks.wait(id, exec_id)
                except NotFound:
                    pass
            ended = await client.tasks.delete(id, exec_id)
            click.echo(f"{id}: exit status {ended.status}")

    target.run(work)


@tasks.command("ps")
@listing.options
@click.argument("id", shell_complete=names("tasks"))
@click.pass_obj
def ps(target: Target, form: listing.Form, id: str) -> None:
    """List a task's processes."""

    async def work(client: "Client") -> list[listing.Row]:
        from carina.rpc.any import describe

        found = await client.tasks.pids(id)
        return [{"pid": one.pid, "info": describe(one.info) if one.info else None} for one in found]

    listing.show(form, target.run(work), columns={"PID": "pid", "INFO": "info"}, name="pid")


@tasks.command("pause")
@click.argument("id", shell_complete=names("tasks"))
@click.pass_obj
def pause(target: Target, id: str) -> None:
    """Freeze a task's processes."""

    async def work(client: "Client") -> None:
        await client.tasks.pause(id)

    target.run(work)


@tasks.command("resume")
@click.argument("id", shell_complete=names("tasks"))
@click.pass_obj
def resume(target: Target, id: str) -> None:
    """Let a frozen task go on."""

    async def work(client: "Client") -> None:
        await client.tasks.resume(id)

    target.run(work)


@tasks.command("metrics")
@click.argument("id", shell_complete=names("tasks"))
@listing.format_option
@click.pass_obj
def metrics(target: Target, id: str, form: str) -> None:
    """Show a task's resource usage."""

    async def work(client: "Client") -> list[dict[str, Any]]:
        from carina.rpc.any import describe

        found = await client.tasks.metrics([f'id=="{id}"'])
        return [{"id": m.id, "timestamp": m.timestamp, "data": describe(m.data)} for m in found]

    found = target.run(work)
    if form != "table":
        listing.as_asked(form, listing.plain(found))
        return
    for one in found:
        output.table(("ID", "TIMESTAMP"), [(one["id"], one["timestamp"].isoformat())])
        output.table(("METRIC", "VALUE"), list(_flat("", one["data"])))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, object]]:
    """Nested fields as dotted names."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), one)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _flat(f"{prefix}.{number}", one)
    else:
        yield prefix, value
