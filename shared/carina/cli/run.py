"""run: a container from an image."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import output
from carina.cli.process import Signals, attached, need_terminal, start_detached
from carina.cli.target import Target
from carina.errors import CarinaError
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
    if detach and (tty or rm):
        raise click.UsageError("-d goes with neither -t nor --rm: nobody would hold the terminal, or see the end")
    if tty:
        need_terminal()
    wish = _wish(id, tty=tty, **options)

    async def work(client: "Client") -> int:
        from carina.client.run import create, remove

        async with Signals() as signals:
            image = await client.images.get(str(normalize(reference)))
            container = await create(client, image, wish)
            try:
                if detach:
                    return await start_detached(client, container, signals=signals)
                status = await attached(client, container, tty=tty, signals=signals)
            except BaseException:
                await _discard(client, container)
                raise
            if rm:
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
    kind = fields.get("type", "bind")
    if kind == "bind" and not {"bind", "rbind"} & set(kept):
        # Without one of them runtimes look for a file system of type "bind".
        kept.insert(0, "rbind")
    return {"type": kind, "source": source, "destination": destination, "options": kept}


async def _discard(client: "Client", container: "Container") -> None:
    from carina.client.run import remove

    with contextlib.suppress(CarinaError):
        await remove(client, container)
