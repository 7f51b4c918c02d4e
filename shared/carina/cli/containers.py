"""containers: the container records of a namespace."""

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import output
from carina.cli.target import Target
from carina.containers import Container
from carina.typed import TypedValue

if TYPE_CHECKING:
    from carina.client import Client


@click.group()
def containers() -> None:
    """Manage containers."""


@containers.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, quiet: bool, filters: Sequence[str]) -> None:
    """List containers."""

    async def work(client: "Client") -> Sequence[Container]:
        return await client.containers.list(filters)

    found = sorted(target.run(work), key=lambda container: container.id)
    if quiet:
        output.names(container.id for container in found)
        return
    rows = [(c.id, c.image or "-", c.runtime.name if c.runtime else "-") for c in found]
    output.table(("CONTAINER", "IMAGE", "RUNTIME"), rows)


def _any(value: TypedValue | None) -> Any:
    """JSON payloads readable, others in base64."""
    if value is None:
        return None
    try:
        return json.loads(value.value)
    except ValueError:
        return {"type_url": value.type_url, "value": base64.b64encode(value.value).decode()}


@containers.command("info")
@click.argument("id")
@click.pass_obj
def info(target: Target, id: str) -> None:
    """Show one container's record."""

    async def work(client: "Client") -> Container:
        return await client.containers.get(id)

    found = target.run(work)
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
@click.argument("id")
@click.argument("labels", nargs=-1, required=True)
@click.pass_obj
def label(target: Target, id: str, labels: Sequence[str]) -> None:
    """Set labels, KEY=VALUE; an empty value removes one."""
    values = output.parse_labels(labels)

    async def work(client: "Client") -> Container:
        return await client.containers.update(Container(id=id, labels=values), [f"labels.{key}" for key in values])

    click.echo(output.labels(target.run(work).labels))


@containers.command("rm")
@click.argument("ids", nargs=-1, required=True)
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
