"""gc: garbage collection on demand, and what explains it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from carina.cli import output
from carina.cli.group import Group
from carina.cli.target import Target
from carina.reference import normalize

if TYPE_CHECKING:
    from datetime import datetime

    from carina.client import Client
    from carina.gc import Chain, Collection, Doomed, Explanation, Release, Removed, Statistics


@click.group(cls=Group)
def gc() -> None:
    """Collect what nothing refers to any more, and say why."""


@gc.command("run")
@click.option("--sync", is_flag=True, help="Return when the disk is clean.")
@click.option("--full", is_flag=True, help="Mark everything first, not only look at what has changed.")
@output.format_option
@click.pass_obj
def run(target: Target, sync: bool, full: bool, form: str) -> None:
    """Run the collector now and say what it removed."""

    async def work(client: "Client") -> "Collection":
        from carina.gc.client import RemoteCollector

        return await RemoteCollector(client.channel).run(sync=sync, full=full)

    done = target.run(work, deadline=None)
    if form == "json":
        output.as_json(asdict(done))
        return
    click.echo(
        f"{done.seconds * 1000:.1f} ms, the database was locked for {done.lock_seconds * 1000:.1f} ms, "
        f"{done.candidates} objects were looked at"
    )
    if full:
        click.echo(f"the full mark found {done.missed} objects that would have been missed")
    _print_removed(done.removed)


def _print_removed(removed: "Sequence[Removed]") -> None:
    output.table(
        ("TYPE", "OBJECTS", "SIZE"),
        [(r.type, r.objects, output.size(r.bytes) if r.bytes else "-") for r in removed],
    )


@gc.command("stats")
@output.format_option
@click.pass_obj
def stats(target: Target, form: str) -> None:
    """Say what the collector has done since its service started, and what it has still to do."""

    async def work(client: "Client") -> "Statistics":
        from carina.gc.client import RemoteCollector

        return await RemoteCollector(client.channel).statistics()

    found = target.run(work)
    if form == "json":
        output.as_json(asdict(found))
        return
    click.echo(f"since {_moment(found.since)}")
    click.echo(
        f"collections: {found.collections}, {found.failures} failed, the last at {_moment(found.collected_at)}; "
        f"{found.seconds * 1000:.1f} ms, the database was locked for {found.lock_seconds * 1000:.1f} ms, "
        f"for {found.longest_lock_seconds * 1000:.1f} ms at the longest"
    )
    click.echo(
        f"full marks: {found.checks}, the last at {_moment(found.checked_at)}; {found.check_seconds * 1000:.1f} ms, "
        f"{found.missed} objects that collections had missed"
    )
    click.echo(f"to be looked at: {found.candidates}, the next that expires at {_moment(found.next_candidate)}")
    for one in found.remaining:
        click.echo(f"still to be removed by its back end: {one.objects} of type {one.type}")
    _print_removed(found.removed)


def _moment(moment: "datetime | None") -> str:
    return "-" if moment is None else moment.isoformat(timespec="seconds")


@gc.command("plan")
@click.option("--if-removed", metavar="IMAGE", default="", help="As if that image's record were gone.")
@click.option("--images", is_flag=True, help="What would go with each image of the namespace, alone.")
@output.format_option
@click.pass_obj
def plan(target: Target, if_removed: str, images: bool, form: str) -> None:
    """Say what a collection would remove now, and touch nothing.

    SIZE is what comes back on the disk: nothing for a blob that another namespace keeps.
    """
    if images and if_removed:
        raise click.UsageError("--images and --if-removed exclude each other")
    if images:
        _plan_images(target, form)
        return
    name = str(normalize(if_removed)) if if_removed else ""

    async def work(client: "Client") -> "Sequence[Doomed]":
        from carina.gc.client import RemoteExplainer

        return await RemoteExplainer(client.channel).plan(if_removed=name)

    doomed = target.run(work)
    if form == "json":
        output.as_json({"namespaces": _by_namespace(doomed), "bytes": sum(d.bytes for d in doomed)})
        return
    output.table(
        ("NAMESPACE", "TYPE", "OBJECT", "SIZE"),
        [(d.namespace, d.type, d.id, output.size(d.bytes) if d.type == "content" else "-") for d in doomed],
    )
    click.echo(f"{len(doomed)} objects, {output.size(sum(d.bytes for d in doomed))} of content")


def _plan_images(target: Target, form: str) -> None:
    async def work(client: "Client") -> "Sequence[Release]":
        from carina.gc.client import RemoteExplainer

        return await RemoteExplainer(client.channel).plan_images()

    releases = target.run(work)
    if form == "json":
        output.as_json({"images": [asdict(release) for release in releases]})
        return
    output.table(
        ("REF", "SIZE", "CONTENT", "SNAPSHOTS"),
        [(r.image, output.size(r.bytes), r.content, r.snapshots) for r in releases],
    )


def _by_namespace(doomed: "Sequence[Doomed]") -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in doomed:
        of = found.setdefault(
            one.namespace,
            {"namespace": one.namespace, "bytes": 0, "content": [], "snapshots": {}}
            | {noun: [] for noun in ("images", "leases", "ingests")},
        )
        of["bytes"] += one.bytes
        kind, _, snapshotter = one.type.partition("/")
        if kind == "content":
            of["content"].append({"digest": one.id, "bytes": one.bytes})
        elif kind == "snapshot":
            of["snapshots"].setdefault(snapshotter, []).append(one.id)
        else:
            of[f"{kind}s"].append(one.id)
    return list(found.values())


@gc.command("why")
@click.argument("object")
@click.option("--snapshotter", default="", help="OBJECT is the key of a snapshot of this snapshotter.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Chains at the most.")
@output.format_option
@click.pass_obj
def why(target: Target, object: str, snapshotter: str, limit: int, form: str) -> None:
    """Say which references keep OBJECT: a digest, an ingest's ref, or with --snapshotter a snapshot's key."""
    type = f"snapshot/{snapshotter}" if snapshotter else _type(object)

    async def work(client: "Client") -> "Explanation":
        from carina.gc.client import RemoteExplainer

        return await RemoteExplainer(client.channel).why(type, object, limit=limit)

    found = target.run(work)
    if form == "json":
        output.as_json({"type": type, "id": object, "kept": bool(found.chains), **asdict(found)})
        return
    for chain in found.chains:
        _print(chain)
    if found.more:
        click.echo(f"and {found.more} more roots (--limit)")
    if not found.chains:
        since = found.since.isoformat(timespec="seconds") if found.since else "an unknown moment"
        click.echo(f"nothing keeps {type} {object}: collectable since {since}")


def _type(object: str) -> str:
    """Raises InvalidArgument: it begins like a digest, and is none."""
    from carina.digest import HEX_LENGTHS, Digest

    if object.partition(":")[0] not in HEX_LENGTHS:
        return "ingest"
    Digest(object)
    return "content"


def _print(chain: "Chain") -> None:
    root = chain.root
    words = {"label": f"{root.type} {root.id}  by its label {root.by}", "call": f"{root.type} {root.id}  by a call"}
    until = f"  until {root.until.isoformat(timespec='seconds')}" if root.until else ""
    click.echo(words.get(root.kind, f"{root.kind} {root.id}") + until)
    for hop in chain.hops:
        click.echo(f"  {hop.by} -> {hop.type} {hop.id}")
