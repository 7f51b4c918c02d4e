"""usage: what images take."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.client import Client
    from carina.gc import ImageUsage


@click.command()
@output.format_option
@click.pass_obj
def usage(target: Target, form: str) -> None:
    """Bytes of each image in the namespace.

    CONTENT is what it keeps: UNIQUE to it and SHARED with other images of the namespace.
    SNAPSHOTS is what snapshotters have recorded; `+N?` where N of them are not known.
    """

    async def work(client: "Client") -> "Sequence[ImageUsage]":
        from carina.gc.client import RemoteExplainer

        return await RemoteExplainer(client.channel).usage()

    found = target.run(work)
    if form == "json":
        output.as_json({"images": [asdict(one) for one in found]})
        return
    output.table(
        ("REF", "CONTENT", "UNIQUE", "SHARED", "SNAPSHOTS"),
        [(u.image, output.size(u.content), output.size(u.unique), output.size(u.shared), _snapshots(u)) for u in found],
    )


def _snapshots(usage: "ImageUsage") -> str:
    if not usage.snapshots:
        return "-"
    return output.size(usage.snapshot_bytes) + (f" +{usage.unmeasured}?" if usage.unmeasured else "")
