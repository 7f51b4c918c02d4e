"""usage: what images take."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from carina.cli import listing, output
from carina.cli.target import Target

if TYPE_CHECKING:
    from carina.client import Client
    from carina.gc import ImageUsage


@click.command()
@listing.options
@click.pass_obj
def usage(target: Target, form: listing.Form) -> None:
    """Bytes of each image in the namespace.

    CONTENT is what it keeps: UNIQUE to it and SHARED with other images of the namespace.
    SNAPSHOTS is what snapshotters have recorded; `+N?` where N of them are not known.
    """

    async def work(client: "Client") -> "Sequence[ImageUsage]":
        from carina.gc.client import RemoteExplainer

        return await RemoteExplainer(client.channel).usage()

    found = target.run(work)
    if form.is_json:
        output.as_json({"images": [asdict(one) for one in found]})
        return
    columns: dict[str, listing.Column] = {
        "REF": "image",
        "CONTENT": lambda row: output.size(row["content"]),
        "UNIQUE": lambda row: output.size(row["unique"]),
        "SHARED": lambda row: output.size(row["shared"]),
        "SNAPSHOTS": "shown",
    }
    rows = [asdict(one) | {"shown": _snapshots(one)} for one in found]
    listing.show(form, rows, columns=columns, name="image")


def _snapshots(usage: "ImageUsage") -> str:
    if not usage.snapshots:
        return "-"
    return output.size(usage.snapshot_bytes) + (f" +{usage.unmeasured}?" if usage.unmeasured else "")
