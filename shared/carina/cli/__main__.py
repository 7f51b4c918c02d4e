"""The entry point. A sub-command's module is imported only when it is called, so that starting stays quick."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from carina import __version__
from carina.cli.output import plain
from carina.cli.target import Target
from carina.errors import CarinaError

COMMANDS: Final = {
    "up": "carina.cli.constellation:up",
    "down": "carina.cli.constellation:down",
    "status": "carina.cli.constellation:status",
    "reload": "carina.cli.reload:reload",
    "swap": "carina.cli.swap:swap",
    "version": "carina.cli.constellation:version",
    "pull": "carina.cli.pull:pull",
    "push": "carina.cli.push:push",
    "import": "carina.cli.archive:import_",
    "export": "carina.cli.archive:export",
    "run": "carina.cli.run:run",
    "images": "carina.cli.images:images",
    "content": "carina.cli.content:content",
    "snapshots": "carina.cli.snapshots:snapshots",
    "containers": "carina.cli.containers:containers",
    "tasks": "carina.cli.tasks:tasks",
    "namespaces": "carina.cli.namespaces:namespaces",
    "leases": "carina.cli.leases:leases",
    "events": "carina.cli.events:events",
    "plugin": "carina.cli.plugins:plugins",
    "gc": "carina.cli.gc:gc",
    "usage": "carina.cli.usage:usage",
    "check": "carina.cli.check:check",
    "metadata": "carina.cli.metadata:metadata",
}
ALIASES: Final = {"i": "images", "image": "images", "c": "containers", "container": "containers"} | {
    "t": "tasks",
    "task": "tasks",
    "snapshot": "snapshots",
    "namespace": "namespaces",
    "ns": "namespaces",
    "lease": "leases",
    "event": "events",
    "plugins": "plugin",
}


class LazyGroup(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-a", "--address", envvar="CARINA_ADDRESS", metavar="ADDRESS", help="Socket of the gateway.")
@click.option("-n", "--namespace", envvar="CARINA_NAMESPACE", default="default", show_default=True, help="Namespace.")
@click.option("--embedded", type=click.Path(path_type=Path), metavar="DIR", help="No daemon: images in DIR.")
@click.version_option(__version__, prog_name="carina")
@click.pass_context
def carina(ctx: click.Context, address: str | None, namespace: str, embedded: Path | None) -> None:
    """Run containers with a constellation of small services."""
    ctx.obj = Target(address=address, namespace=namespace, embedded=embedded)


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

    Exit status: 0 done, 1 failed, 2 wrong usage, 70 a bug of ours, 130 interrupted;
    `run` and `tasks exec` pass on the process's own.
    """
    status: Any
    _open_standard_streams()
    try:
        status = carina.main(args=arguments, prog_name="carina", standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except CarinaError as error:
        click.echo(f"carina: {plain(str(error))}", err=True)
        status = 1
    except (KeyboardInterrupt, click.Abort):
        status = 130
    except Exception as error:
        if os.environ.get("CARINA_DEBUG"):
            raise
        click.echo(f"carina: a bug: {type(error).__name__}: {plain(str(error))} (CARINA_DEBUG=1 shows where)", err=True)
        status = 70
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
