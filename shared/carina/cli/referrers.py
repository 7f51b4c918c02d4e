"""images referrers: what a registry has that refers to an image."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.registry import Registry
from carina.cli.registry import options as registry_options
from carina.cli.target import Target
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client
    from carina.descriptor import Descriptor
    from carina.transfer import Referrer


@click.command()
@click.argument("reference")
@click.option("--artifact-type", default="", metavar="TYPE", help="Only those of this type.")
@registry_options
@output.format_option
@click.pass_obj
def referrers(target: Target, reference: str, artifact_type: str, registry: Registry, form: str) -> None:
    """List what refers to an image in its registry: signatures, lists of parts.

    REFERENCE may name a digest, such as that of one platform's manifest.
    """
    name = str(normalize(reference))

    async def work(client: "Client") -> "tuple[Descriptor, Sequence[Referrer]]":
        with registry.access(name) as access:
            return await client.transfer.referrers(name, artifact_type=artifact_type, access=access)

    subject, found = target.run(work, deadline=None)
    if form == "json":
        entries = [_described(one.descriptor) | {"artifactType": one.artifact_type} for one in found]
        click.echo(json.dumps({"subject": _described(subject), "referrers": entries}, indent=2))
        return
    rows = [
        (one.descriptor.digest, one.artifact_type or "-", one.descriptor.media_type, output.size(one.descriptor.size))
        for one in found
    ]
    output.table(("DIGEST", "ARTIFACT TYPE", "MEDIA TYPE", "SIZE"), rows)


def _described(one: "Descriptor") -> dict[str, object]:
    """As an index of OCI's has it."""
    described: dict[str, object] = {"mediaType": one.media_type, "digest": one.digest, "size": one.size}
    return described | ({"annotations": dict(one.annotations)} if one.annotations else {})
