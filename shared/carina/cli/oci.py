"""oci: runtime specifications."""

import click

from carina.cli import output
from carina.cli.group import Group


@click.group(cls=Group)
def oci() -> None:
    """Runtime specifications."""


@oci.command("spec")
def spec() -> None:
    """Print the default specification: what `run` begins with."""
    from carina.images.manifest import Config
    from carina.oci.spec import Options, generate
    from carina.platforms import host

    made = generate("", "default", Config(platform=host(), diff_ids=()), Options(args=("sh",)))
    del made["process"]["args"]
    output.as_json(made)
