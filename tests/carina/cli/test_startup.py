"""What a command loads: nothing that it does not need, since each command is a process."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from carina.cli.__main__ import COMMANDS, carina

BIN = Path(sys.executable).parent / "carina"
SHOW = """
import sys
from carina.cli.__main__ import main
try:
    main()
finally:
    print(" ".join(sys.modules), file=sys.stderr)
"""


def loaded(*arguments: str) -> set[str]:
    """The modules that a command has loaded at its end."""
    done = subprocess.run([sys.executable, "-c", SHOW, *arguments], capture_output=True, text=True, check=False)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("imags",)])
def test_no_loop_and_no_messages_for_words_alone(arguments: tuple[str, ...]) -> None:
    """Version, help and wrong words need neither an event loop nor a message."""
    assert loaded(*arguments) & {"asyncio", "grpclib", "betterproto2", "rich", "jinja2", "carina.client"} == set()


def test_calls_load_little(tmp_path: Path) -> None:
    """A command that calls a service loads its messages, and none of what other commands need."""
    modules = loaded("--address", f"unix://{tmp_path}/none.sock", "images", "ls")
    assert "carina.images.client" in modules
    spared = {"rich", "jinja2", "re2", "zstandard", "isal", "h2", "importlib.metadata", "tomllib", "aiohttp", "uvloop"}
    assert modules & (spared | {"carina.tasks.client", "carina.content.client", "dateutil.parser._parser"}) == set()


def test_summaries() -> None:
    """What the list of commands says of each is the first sentence of its own help, which it does not load."""
    context = click.Context(carina)
    for name, (_, summary) in COMMANDS.items():
        command = carina.get_command(context, name)
        assert command is not None
        assert (command.help or "").startswith(summary), name


def test_every_word_that_ctr_has_for_it() -> None:
    """Aliases lead to the same command."""
    context = click.Context(carina)
    for alias, name in (
        ("i", "images"),
        ("c", "containers"),
        ("t", "tasks"),
        ("ns", "namespaces"),
        ("plugins", "plugin"),
    ):
        assert carina.get_command(context, alias) is carina.get_command(context, name)
    images = carina.get_command(context, "images")
    assert isinstance(images, click.Group)
    for alias in ("rm", "remove", "delete", "del"):
        assert images.get_command(context, alias) is images.commands["rm"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(("imags",), "images"), (("images", "lss"), "ls"), (("images", "ls", "--quite"), "--quiet"), (("evnt",), "event")],
)
def test_what_was_meant(arguments: tuple[str, ...], meant: str) -> None:
    """An unknown command or option is refused with status 2, in one sentence, with what was probably meant."""
    done = subprocess.run([BIN, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    sentence, help = done.stderr.splitlines()
    assert sentence.startswith("carina: no such ")
    assert meant in sentence.partition("Did you mean ")[2] or meant in sentence.partition("Did you mean one of: ")[2]
    assert help.startswith("Try 'carina")


def test_a_reader_that_goes() -> None:
    """Who reads no further gets no traceback, and the command has failed."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([BIN, "config", "default"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
