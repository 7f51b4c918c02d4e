"""The entry point. A sub-command's module is imported only when it is called, so that starting stays quick."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from carina import __version__
from carina.cli.complete import names
from carina.cli.group import LazyGroup
from carina.cli.parameters import Duration

COMMANDS: Final = {
    "up": ("constellation:up", "Bring every service up under one supervisor."),
    "down": ("constellation:down", "Stop every service; running containers go on."),
    "status": ("constellation:status", "Show every service's health, process, memory and address."),
    "reload": ("reload:reload", "Have the configuration file read again, and say what changed."),
    "logs": ("logs:logs", "Show what a service has logged."),
    "doctor": ("doctor:doctor", "Look for what is wrong with this machine, and say what to do."),
    "config": ("configuration:config", "Show, check and import configuration files."),
    "swap": ("swap:swap", "Move SERVICES to ADDRESS while everything runs, or say what would be lost."),
    "pull": ("pull:pull", "Pull an image from a registry and unpack it."),
    "push": ("push:push", "Push IMAGE into a registry: where its name says, or to REFERENCE."),
    "import": (
        "archive:import_",
        "Import images from PATH: an archive, a directory with an OCI layout, or - for the standard input.",
    ),
    "export": ("archive:export", "Export IMAGES as an OCI layout in a tar archive at PATH, - for the standard output."),
    "run": ("run:run", "Run COMMAND (or what the image says) in a new container ID."),
    "images": ("images:images", "Manage images."),
    "content": ("content:content", "Manage content."),
    "snapshots": ("snapshots:snapshots", "Manage snapshots."),
    "containers": ("containers:containers", "Manage containers."),
    "tasks": ("tasks:tasks", "Manage tasks."),
    "sandboxes": ("sandboxes:sandboxes", "Manage sandboxes."),
    "namespaces": ("namespaces:namespaces", "Manage namespaces."),
    "leases": ("leases:leases", "Manage leases."),
    "events": ("events:events", "Print events of every namespace, those that match one of FILTERS."),
    "plugin": ("plugins:plugins", "Show plugins, and plug external ones in and out."),
    "gc": ("gc:gc", "Collect what nothing refers to any more, and say why."),
    "usage": ("usage:usage", "Bytes of each image in the namespace."),
    "check": ("check:check", "Compare all records with the stores, both ways, while everything is in use."),
    "metadata": ("metadata:metadata", "Back the records up, and get them back."),
    "oci": ("oci:oci", "Runtime specifications."),
    "shim": ("shim:shim", "Speak with a container's shim itself."),
    "install": ("install:install", "Install programs from an image on this machine."),
    "info": ("server:info", "Show what the server says of itself."),
    "deprecations": ("server:deprecations", "What the server says is going to be removed."),
    "version": ("server:version", "Version of this tool and of the server."),
    "completion": ("completion:completion", "Print what makes a shell complete this command's words."),
}
"""Name -> (module of this package and attribute, first sentence of its help)."""
ALIASES: Final = {
    "i": "images",
    "image": "images",
    "c": "containers",
    "container": "containers",
    "t": "tasks",
    "task": "tasks",
    "snapshot": "snapshots",
    "namespace": "namespaces",
    "ns": "namespaces",
    "lease": "leases",
    "event": "events",
    "plugins": "plugin",
    "sandbox": "sandboxes",
    "sb": "sandboxes",
    "s": "sandboxes",
    "log": "logs",
}


@click.group(
    cls=LazyGroup,
    places={name: f"carina.cli.{place}" for name, (place, _) in COMMANDS.items()},
    summaries={name: summary for name, (_, summary) in COMMANDS.items()},
    aliases=ALIASES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("-a", "--address", envvar="CARINA_ADDRESS", metavar="ADDRESS", help="Socket of the gateway.")
@click.option(
    "-n",
    "--namespace",
    envvar="CARINA_NAMESPACE",
    default="default",
    show_default=True,
    help="Namespace.",
    shell_complete=names("namespaces"),
)
@click.option("--embedded", type=click.Path(), metavar="DIR", help="No daemon: images in DIR.")
@click.option("--timeout", type=Duration(), metavar="DURATION", help="Of the whole command.")
@click.option("--connect-timeout", type=Duration(), metavar="DURATION", help="Until the server has answered.")
@click.option("--debug", is_flag=True, envvar="CARINA_DEBUG", help="Show where a bug of ours is.")
@click.version_option(__version__, "-v", "--version", prog_name="carina")
@click.pass_context
def carina(ctx: click.Context, /, address: str | None, namespace: str, embedded: str | None, **rest: Any) -> None:
    """Run containers with a constellation of small services."""
    from carina.cli.target import Target

    if rest["debug"]:
        os.environ["CARINA_DEBUG"] = "1"
    ctx.obj = Target(
        address=address,
        namespace=namespace,
        embedded=embedded,
        timeout=rest["timeout"],
        connect_timeout=rest["connect_timeout"],
    )


def _open_standard_streams() -> None:
    """Where our parent closed one, the next descriptor that we open would be taken for it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every failure is one sentence on standard error and an exit status.

    The statuses are listed in docs/commands.md, which is made from `carina.cli.status`.
    """
    from carina.cli import status

    _open_standard_streams()
    if arguments is None:
        _lean()
    if "_CARINA_COMPLETE" in os.environ:
        from carina.cli import completion

        completion.register()
    sys.exit(status.of(lambda: carina.main(args=arguments, prog_name="carina", standalone_mode=False)))


def _lean() -> None:
    """Where the process is ours alone: import without what we never use, and collect garbage rarely."""
    import gc

    from carina.cli import lean

    gc.set_threshold(50_000)
    lean.alone()


if __name__ == "__main__":
    main()
