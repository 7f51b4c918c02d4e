"""run: a container from an image."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import output
from carina.cli.target import Target
from carina.errors import CarinaError, NotFound
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client
    from carina.client.run import Wish
    from carina.containers import Container

_MOUNT_KEYS = {"type", "src", "source", "dst", "destination", "options"}


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("reference")
@click.argument("id")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--rm", is_flag=True, help="Remove container and snapshot when it ends.")
@click.option("-d", "--detach", is_flag=True, help="Return when it runs; its output is not kept.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--snapshotter", envvar="CARINA_SNAPSHOTTER", default="", help="Snapshotter of its root file system.")
@click.option("--runtime", default="", help="io.containerd.runc.v2, or the path of a shim.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable.")
@click.option("--cwd", default="", help="Working directory.")
@click.option("-u", "--user", default="", help="User[:group], by name or number.")
@click.option("--hostname", default="", help="Host name.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the container.")
@click.option("--mount", "mounts", multiple=True, metavar="type=bind,src=S,dst=D,options=rbind:ro")
@click.option("--net-host", is_flag=True, help="Share the machine's network.")
@click.option("--read-only", is_flag=True, help="Mount its root file system read-only.")
@click.option("--privileged", is_flag=True, help="All capabilities and devices.")
@click.option("--memory-limit", type=int, default=0, help="Bytes.")
@click.pass_obj
def run(target: Target, /, reference: str, id: str, rm: bool, detach: bool, tty: bool, **options: Any) -> None:
    """Run COMMAND (or what the image says) in a new container ID."""
    wish = _wish(id, tty=tty, **options)
    if tty and not detach and not sys.stdin.isatty():
        raise click.UsageError("-t needs a terminal on standard input")

    async def work(client: "Client") -> int:
        from carina.client.run import create, remove

        image = await client.images.get(str(normalize(reference)))
        container = await create(client, image, wish)
        try:
            status = await (start_detached if detach else attached)(client, container, tty=tty)
        except BaseException:
            await _discard(client, container)
            raise
        if rm and not detach:
            await remove(client, container)
        return status

    raise click.exceptions.Exit(target.run(work, deadline=None))


def _wish(id: str, *, tty: bool, mounts: Sequence[str], labels: Sequence[str], **options: Any) -> "Wish":
    from carina.client.run import Wish
    from carina.oci.spec import Options

    return Wish(
        id=id,
        snapshotter=options["snapshotter"],
        runtime=options["runtime"],
        user=options["user"],
        labels=output.parse_labels(labels),
        options=Options(
            args=options["command"],
            env=options["env"],
            cwd=options["cwd"],
            terminal=tty,
            hostname=options["hostname"],
            read_only=options["read_only"],
            host_network=options["net_host"],
            privileged=options["privileged"],
            memory_limit=options["memory_limit"],
            mounts=[_mount(text) for text in mounts],
        ),
    )


def _mount(text: str) -> dict[str, Any]:
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := set(fields) - _MOUNT_KEYS:
        raise click.UsageError(f"--mount {text!r}: unknown key {min(unknown)!r}")
    source = fields.get("src") or fields.get("source", "")
    destination = fields.get("dst") or fields.get("destination", "")
    if not destination.startswith("/"):
        raise click.UsageError(f"--mount {text!r}: dst must be an absolute path")
    kept = [option for option in fields.get("options", "").split(":") if option]
    return {"type": fields.get("type", "bind"), "source": source, "destination": destination, "options": kept}


async def start_detached(client: "Client", container: "Container", *, tty: bool) -> int:
    """Start a task whose output nobody reads."""
    from carina.client.run import rootfs
    from carina.tasks import Stdio

    if tty:
        raise click.UsageError("-d and -t don't go together: nobody would hold the terminal")
    await client.tasks.create(container.id, rootfs=await rootfs(client, container), stdio=Stdio())
    try:
        await client.tasks.start(container.id)
    except BaseException:
        with contextlib.suppress(CarinaError):
            await client.tasks.delete(container.id)
        raise
    return 0


async def attached(client: "Client", container: "Container", *, tty: bool) -> int:
    """Start a task, copy its output until it ends, delete it; returns its exit status."""
    from carina.client.run import rootfs
    from carina.client.stdio import streams

    async with streams(terminal=tty, stdin=tty) as pipes:
        await client.tasks.create(container.id, rootfs=await rootfs(client, container), stdio=pipes.stdio)
        try:
            pipes.copy_output({"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer})
            waiting = asyncio.create_task(client.tasks.wait(container.id), name="wait for the task")
            await client.tasks.start(container.id)
            async with _terminal(client, container.id, pipes.take_stdin()) if tty else _signals(client, container.id):
                ended = await waiting
            await pipes.drained()
        except BaseException:
            await _kill(client, container.id)
            raise
        await client.tasks.delete(container.id)
        return ended.status


async def _kill(client: "Client", id: str) -> None:
    """End a task that nobody waits for any more."""
    with contextlib.suppress(CarinaError, TimeoutError):
        async with asyncio.timeout(10):
            with contextlib.suppress(NotFound):
                await client.tasks.kill(id, signal.SIGKILL, all=True)
                await client.tasks.wait(id)
            await client.tasks.delete(id)


async def _discard(client: "Client", container: "Container") -> None:
    from carina.client.run import remove

    with contextlib.suppress(CarinaError):
        await remove(client, container)


@contextlib.asynccontextmanager
async def _signals(client: "Client", id: str, exec_id: str = "") -> AsyncIterator[None]:
    """Pass the signals that we get on to the process."""
    loop = asyncio.get_running_loop()
    sent: set[asyncio.Task[None]] = set()

    async def forward(number: int) -> None:
        with contextlib.suppress(CarinaError):
            await client.tasks.kill(id, number, exec_id=exec_id)

    def receive(number: int) -> None:
        sent.add(asyncio.create_task(forward(number), name=f"forward signal {number}"))

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in numbers:
        loop.add_signal_handler(number, receive, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        for task in sent:
            task.cancel()


@contextlib.asynccontextmanager
async def _terminal(client: "Client", id: str, stdin: int, exec_id: str = "") -> AsyncIterator[None]:
    """Raw mode on our terminal, its size passed on now and at each change, its input copied."""
    import termios
    import tty

    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(sys.stdin)
    resizing: set[asyncio.Task[None]] = set()

    async def resize() -> None:
        size = os.get_terminal_size(sys.stdin.fileno())
        with contextlib.suppress(CarinaError):
            await client.tasks.resize_pty(id, size.columns, size.lines, exec_id=exec_id)

    def copy() -> None:
        data = os.read(sys.stdin.fileno(), 4096)
        if data:
            with contextlib.suppress(BlockingIOError):
                os.write(stdin, data)
        else:
            loop.remove_reader(sys.stdin)

    await resize()
    loop.add_signal_handler(
        signal.SIGWINCH, lambda: resizing.add(asyncio.create_task(resize(), name="resize the terminal"))
    )
    tty.setraw(sys.stdin)
    loop.add_reader(sys.stdin, copy)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)
        loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        os.close(stdin)
