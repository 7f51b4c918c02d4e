"""content: blobs and ingests of a namespace."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.swap import content_copy
from carina.cli.target import Target
from carina.content import Info
from carina.digest import Digest

if TYPE_CHECKING:
    from carina.client import Client

CHUNK = 1024 * 1024


@click.group()
def content() -> None:
    """Manage content."""


@content.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print digests only.")
@click.argument("filters", nargs=-1)
@click.pass_obj
def list_(target: Target, quiet: bool, filters: Sequence[str]) -> None:
    """List blobs."""

    async def work(client: "Client") -> list[Info]:
        return [info async for info in client.content.walk(filters)]

    found = sorted(target.run(work), key=lambda info: info.digest)
    if quiet:
        output.names(info.digest for info in found)
        return
    rows = [(i.digest, output.size(i.size), output.age(i.created_at), output.labels(i.labels)) for i in found]
    output.table(("DIGEST", "SIZE", "AGE", "LABELS"), rows)


@content.command("get")
@click.argument("digest")
@click.pass_obj
def get(target: Target, digest: str) -> None:
    """Write a blob to standard output."""

    async def work(client: "Client") -> None:
        async with await client.content.reader(Digest(digest)) as reader:
            offset = 0
            while data := await reader.read(offset, CHUNK):
                sys.stdout.buffer.write(data)
                offset += len(data)
        sys.stdout.buffer.flush()

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
@click.argument("filters", nargs=-1)
@click.pass_obj
def active(target: Target, filters: Sequence[str]) -> None:
    """List ingests."""

    async def work(client: "Client") -> list[tuple[str, str, str, str]]:
        found = await client.content.statuses(filters)
        return [(s.ref, output.size(s.offset), output.age(s.started_at), output.age(s.updated_at)) for s in found]

    output.table(("REF", "SIZE", "AGE", "UPDATED"), target.run(work))


@content.command("label")
@click.argument("digest")
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
@click.argument("digests", nargs=-1, required=True)
@click.pass_obj
def remove(target: Target, digests: Sequence[str]) -> None:
    """Remove blobs."""

    async def work(client: "Client") -> None:
        for digest in digests:
            await client.content.delete(Digest(digest))
            click.echo(digest)

    target.run(work)


@content.command("abort")
@click.argument("refs", nargs=-1, required=True)
@click.pass_obj
def abort(target: Target, refs: Sequence[str]) -> None:
    """Remove ingests."""

    async def work(client: "Client") -> None:
        for ref in refs:
            await client.content.abort(ref)
            click.echo(ref)

    target.run(work)


content.add_command(content_copy)
