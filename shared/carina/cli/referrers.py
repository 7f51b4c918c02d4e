"""images referrers: what a registry has that refers to an image."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from carina.cli import output
from carina.cli.target import Target
from carina.reference import normalize

if TYPE_CHECKING:
    from carina.client import Client
    from carina.descriptor import Descriptor
    from carina.transfer import Referrer


@click.command()
@click.argument("reference")
@click.option("--artifact-type", default="", metavar="TYPE", help="Only those of this type.")
@click.option("--plain-http", is_flag=True, help="Speak http to the registry.")
@click.option("-u", "--user", metavar="NAME[:PASSWORD]", help="Who asks; without a password one is asked for.")
@output.format_option
@click.pass_obj
def referrers(
    target: Target, reference: str, artifact_type: str, plain_http: bool, user: str | None, form: str
) -> None:
    """List what refers to an image in its registry: signatures, lists of parts.

    REFERENCE may name a digest, such as that of one platform's manifest.
    """
    from carina.cli.registry import access

    registry = access(plain_http=plain_http, user=user)

    async def work(client: "Client") -> "tuple[Descriptor, Sequence[Referrer]]":
        name = str(normalize(reference))
        return await client.transfer.referrers(name, artifact_type=artifact_type, access=registry)

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
