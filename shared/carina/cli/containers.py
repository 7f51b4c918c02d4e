"""containers: the container records of a namespace."""

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import listing, output, wishes
from carina.cli.complete import names
from carina.cli.group import Group
from carina.cli.target import Target
from carina.containers import Container
from carina.typed import TypedValue

if TYPE_CHECKING:
    from carina.client import Client


@click.group(cls=Group)
def containers() -> None:
    """Manage containers."""


@containers.command("ls")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, form: listing.Form, filters: Sequence[str]) -> None:
    """List containers."""

    async def work(client: "Client") -> Sequence[Container]:
        return await client.containers.list(filters)

    found = sorted(target.run(work), key=lambda container: container.id)
    listing.show(form, map(_row, found), columns={"CONTAINER": "id", "IMAGE": "image", "RUNTIME": "runtime"}, name="id")


def _row(container: Container) -> listing.Row:
    return {
        "id": container.id,
        "image": container.image,
        "runtime": container.runtime.name if container.runtime else "",
        "labels": dict(container.labels),
        "snapshotter": container.snapshotter,
        "snapshot_key": container.snapshot_key,
        "sandbox": container.sandbox,
        "created_at": container.created_at,
        "updated_at": container.updated_at,
    }


def _any(value: TypedValue | None) -> Any:
    """JSON payloads readable, others in base64."""
    if value is None:
        return None
    try:
        return json.loads(value.value)
    except ValueError:
        return {"type_url": value.type_url, "value": base64.b64encode(value.value).decode()}


@containers.command("create", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("reference", shell_complete=names("images"))
@click.argument("id", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@wishes.options
@click.pass_obj
def create(target: Target, /, reference: str, id: str | None, **options: Any) -> None:
    """Create a container that runs COMMAND (or what the image says); `carina tasks start` starts it."""
    from carina.cli.run import made, wanted

    source, wish = wanted(reference, id, **options)

    async def work(client: "Client") -> Container:
        from carina.cli.process import Signals

        async with Signals():
            return await made(client, source, wish)

    target.run(work, deadline=None)


@containers.command("info")
@click.argument("id", shell_complete=names("containers"))
@click.option("--spec", "only_spec", is_flag=True, help="Show its specification only.")
@click.pass_obj
def info(target: Target, id: str, only_spec: bool) -> None:
    """Show one container's record."""

    async def work(client: "Client") -> Container:
        return await client.containers.get(id)

    found = target.run(work)
    if only_spec:
        output.as_json(_any(found.spec))
        return
    output.as_json(
        {
            "ID": found.id,
            "Labels": dict(found.labels),
            "Image": found.image,
            "Runtime": {
                "Name": found.runtime.name if found.runtime else "",
                "Options": _any(found.runtime.options) if found.runtime else None,
            },
            "SnapshotKey": found.snapshot_key,
            "Snapshotter": found.snapshotter,
            "CreatedAt": found.created_at,
            "UpdatedAt": found.updated_at,
            "Extensions": {name: _any(value) for name, value in found.extensions.items()},
            "SandboxID": found.sandbox,
            "Spec": _any(found.spec),
        }
    )


@containers.command("label")
@click.argument("id", shell_complete=names("containers"))
@click.argument("labels", nargs=-1, required=True)
@click.pass_obj
def label(target: Target, id: str, labels: Sequence[str]) -> None:
    """Set labels, KEY=VALUE; an empty value removes one."""
    values = output.parse_labels(labels)

    async def work(client: "Client") -> Container:
        return await client.containers.update(Container(id=id, labels=values), [f"labels.{key}" for key in values])

    click.echo(output.labels(target.run(work).labels))


@containers.command("rm")
@click.argument("ids", nargs=-1, required=True, shell_complete=names("containers"))
@click.option("--keep-snapshot", is_flag=True, help="Leave the container's snapshot.")
@click.pass_obj
def remove(target: Target, ids: Sequence[str], keep_snapshot: bool) -> None:
    """Remove containers that have no running task, with their snapshots."""

    async def work(client: "Client") -> None:
        from carina.client.run import remove as remove_container
        from carina.errors import FailedPrecondition, NotFound
        from carina.tasks import Status

        for id in ids:
            container = await client.containers.get(id)
            try:
                status = (await client.tasks.get(id)).status
                if status not in (Status.STOPPED, Status.CREATED):
                    raise FailedPrecondition(f"container {id} has a task that is {status.name.lower()}: kill it first")
                await client.tasks.delete(id)
            except NotFound:
                pass
            if keep_snapshot:
                await client.containers.delete(id)
            else:
                await remove_container(client, container)
            click.echo(id)

    target.run(work)
