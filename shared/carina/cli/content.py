"""content: blobs and ingests of a namespace."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from carina.cli import listing, output
from carina.cli.complete import names
from carina.cli.group import Group
from carina.cli.swap import content_copy
from carina.cli.target import Target
from carina.content import Info
from carina.digest import Digest

if TYPE_CHECKING:
    from carina.client import Client

CHUNK = 1024 * 1024


@click.group(cls=Group)
def content() -> None:
    """Manage content."""


@content.command("ls")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, form: listing.Form, filters: Sequence[str]) -> None:
    """List blobs."""

    async def work(client: "Client") -> list[Info]:
        return [info async for info in client.content.walk(filters)]

    found = sorted(target.run(work), key=lambda info: info.digest)
    listing.show(
        form,
        map(listing.fields, found),
        columns={
            "DIGEST": "digest",
            "SIZE": lambda row: output.size(row["size"]),
            "AGE": lambda row: output.age(row["created_at"]),
            "LABELS": "labels",
        },
        name="digest",
    )


@content.command("get")
@click.argument("digest", shell_complete=names("content"))
@click.pass_obj
def get(target: Target, digest: str) -> None:
    """Write a blob to standard output."""

    async def work(client: "Client") -> None:
        await copy(client, Digest(digest), sys.stdout.buffer)
        sys.stdout.buffer.flush()

    target.run(work, deadline=None)


async def copy(client: "Client", digest: Digest, into: Any) -> None:
    async with await client.content.reader(digest) as reader:
        offset = 0
        while data := await reader.read(offset, CHUNK):
            into.write(data)
            offset += len(data)


@content.command("edit")
@click.option("--editor", envvar="EDITOR", default="vi", show_default=True, help="Program to edit it with.")
@click.option("--validate", type=click.Choice(("json",)), help="Refuse what is not of this format.")
@click.argument("digest", shell_complete=names("content"))
@click.pass_obj
def edit(target: Target, editor: str, validate: str | None, digest: str) -> None:
    """Make a new blob of an old one with an editor; its digest is printed. A lease keeps it for a day."""
    import tempfile

    original = Digest(digest)
    with tempfile.NamedTemporaryFile(prefix="carina-edit-") as file:
        target.run(lambda client: copy(client, original, file), deadline=None)
        file.flush()
        with open(_edited(editor, file.name, validate), "rb") as changed:
            data = changed.read()
    click.echo(target.run(lambda client: _write(client, data)))


def _edited(editor: str, path: str, validate: str | None) -> str:
    """Raises click.ClickException: the editor fails, or what it leaves is not valid."""
    import json
    import shlex
    import subprocess

    try:
        status = subprocess.run([*shlex.split(editor), path], check=False).returncode
    except OSError as error:
        raise click.ClickException(f"editor {editor!r} can't be started: {error.strerror}") from error
    if status:
        raise click.ClickException(f"editor {editor!r} ended with exit status {status}: nothing was changed")
    if validate:
        try:
            with open(path, "rb") as file:
                json.load(file)
        except ValueError as error:
            raise click.ClickException(f"what was edited is not JSON: {error}") from error
    return path


async def _write(client: "Client", data: bytes) -> Digest:
    import contextlib
    import secrets
    from datetime import UTC, datetime, timedelta

    from carina import context
    from carina.errors import AlreadyExists
    from carina.labels import GC_EXPIRE
    from carina.leases import Lease

    digest = Digest.of(data)
    until = (datetime.now(UTC) + timedelta(hours=24)).strftime("%Y-%m-%dT%H:%M:%SZ")
    lease = await client.leases.create(Lease(id=f"edit-{secrets.token_hex(8)}", labels={GC_EXPIRE: until}))
    with context.within(lease=lease.id), contextlib.suppress(AlreadyExists):
        async with await client.content.writer(f"edit-{digest}", total=len(data), expected=digest) as writer:
            await writer.truncate(0)
            await writer.write(data)
            await writer.commit(size=len(data), expected=digest)
    return digest


@content.command("fetch")
@click.pass_context
def fetch(ctx: click.Context, /, **given: Any) -> None:
    """Fetch an image's content from a registry, without unpacking it: `carina pull --no-unpack`."""
    from carina.cli.pull import pull

    ctx.invoke(pull, **given, no_unpack=True)


def _take_options() -> None:
    from carina.cli.pull import pull

    fetch.params = [parameter for parameter in pull.params if parameter.name not in ("no_unpack", "snapshotter")]


_take_options()


@content.group("prune", cls=Group)
def prune() -> None:
    """Remove references that are no longer needed."""


@prune.command("references")
@click.option("--async", "later", is_flag=True, help="Leave the collection of what becomes garbage to its turn.")
@click.option("--dry", is_flag=True, help="Say only what would be changed.")
@click.pass_obj
def references(target: Target, later: bool, dry: bool) -> None:
    """Let go of layers that are unpacked: manifests keep them no longer, and the collector removes them."""

    async def work(client: "Client") -> None:
        from carina.cli.prune import prune_references

        async for digest, keys in prune_references(client, dry=dry, sync=not later):
            click.echo(f"{digest}  {len(keys)} references to layers{' would be' if dry else ''} removed")

    target.run(work, deadline=None)


@content.command("ingest")
@click.argument("ref")
@click.option("--expected-size", type=int, default=0, help="Bytes to expect.")
@click.option("--expected-digest", default="", help="Digest to expect.")
@click.pass_obj
def ingest(target: Target, ref: str, expected_size: int, expected_digest: str) -> None:
    """Read a blob from standard input; its digest is printed."""
    expected = Digest(expected_digest) if expected_digest else None

    async def work(client: "Client") -> Digest:
        async with await client.content.writer(ref, total=expected_size, expected=expected) as writer:
            if writer.status.offset:
                await writer.truncate(0)
            while data := sys.stdin.buffer.read(CHUNK):
                await writer.write(data)
            return await writer.commit(size=expected_size, expected=expected)

    click.echo(target.run(work, deadline=None))


@content.command("active")
@listing.options
@click.argument("filters", nargs=-1)
@click.pass_obj
def active(target: Target, form: listing.Form, filters: Sequence[str]) -> None:
    """List ingests."""

    async def work(client: "Client") -> list[listing.Row]:
        return [listing.fields(status) for status in await client.content.statuses(filters)]

    listing.show(
        form,
        target.run(work),
        columns={
            "REF": "ref",
            "SIZE": lambda row: output.size(row["offset"]),
            "AGE": lambda row: output.age(row["started_at"]),
            "UPDATED": lambda row: output.age(row["updated_at"]),
        },
        name="ref",
    )


@content.command("label")
@click.argument("digest", shell_complete=names("content"))
@click.argument("labels", nargs=-1, required=True)
@click.pass_obj
def label(target: Target, digest: str, labels: Sequence[str]) -> None:
    """Set labels, KEY=VALUE; an empty value removes one."""
    values = output.parse_labels(labels)

    async def work(client: "Client") -> Info:
        info = Info(digest=Digest(digest), labels=values)
        return await client.content.update(info, [f"labels.{key}" for key in values])

    click.echo(output.labels(target.run(work).labels))


@content.command("rm")
@click.argument("digests", nargs=-1, required=True, shell_complete=names("content"))
@click.pass_obj
def remove(target: Target, digests: Sequence[str]) -> None:
    """Remove blobs."""

    async def work(client: "Client") -> None:
        for digest in digests:
            await client.content.delete(Digest(digest))
            click.echo(digest)

    target.run(work)


@content.command("abort")
@click.argument("refs", nargs=-1, required=True, shell_complete=names("ingests"))
@click.pass_obj
def abort(target: Target, refs: Sequence[str]) -> None:
    """Remove ingests."""

    async def work(client: "Client") -> None:
        for ref in refs:
            await client.content.abort(ref)
            click.echo(ref)

    target.run(work)


content.add_command(content_copy)
