"""Exit statuses, and how failures are told: one sentence, what to do next, never a traceback."""

import os
from collections.abc import Callable
from typing import Any, Final

import click

from carina.errors import CarinaError

FAILED: Final = 1
USAGE: Final = 2
INCOMPLETE: Final = 3
BUG: Final = 70
INTERRUPTED: Final = 130
MEANINGS: Final = {
    "0": "done",
    str(FAILED): "failed: the sentence on standard error says what, and what to do; `doctor` and `check`: found wrong",
    str(USAGE): "wrong usage: there is no such command, option or value; nothing was done",
    str(INCOMPLETE): "`check`: nothing was found wrong, but not everything could be looked at",
    str(BUG): "a bug of ours: `--debug` shows where",
    str(INTERRUPTED): "interrupted (Ctrl-C); 128 and the number of the signal for other signals",
    "any": "`run`, `tasks start`, `tasks attach` and `tasks exec` pass on the status of the process",
}


def of(command: Callable[[], Any]) -> int:
    """Run the command line, tell what fails, and return the exit status."""
    try:
        status = command()
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        _show(error)
        status = error.exit_code
    except CarinaError as error:
        _tell(error)
        status = FAILED
    except (KeyboardInterrupt, click.Abort):
        status = INTERRUPTED
    except Exception as error:
        if os.environ.get("CARINA_DEBUG"):
            raise
        from carina.cli.output import plain

        say(f"a bug: {type(error).__name__}: {plain(str(error))} (CARINA_DEBUG=1 shows where)")
        status = BUG
    return status if isinstance(status, int) else 0


def say(text: str) -> None:
    click.echo(f"carina: {text}", err=True)


def _show(error: click.ClickException) -> None:
    """Wrong usage: the sentence, and where help is."""
    from carina.cli.output import plain

    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    say(plain(message[:1].lower() + message[1:] if message[1:2].islower() else message))
    if isinstance(error, click.UsageError) and context is not None:
        click.echo(f"Try '{context.command_path} --help'.", err=True)


def _tell(error: CarinaError) -> None:
    from carina.cli.output import plain

    say(plain(str(error)))
    from carina.cli import hints

    for line in hints.of(error):
        click.echo(f"  {line}", err=True)
