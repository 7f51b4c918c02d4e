"""The generated pages: in step with the command line, and with the ctr that is installed."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
VERSION = "1.6"
"""Of the ctr whose commands deploy/ctr.toml has without `since`."""


def test_pages_are_current() -> None:
    """docs/commands.md and docs/ctr.md are what the command line is now, and every flag of ctr's has its answer."""
    done = subprocess.run(
        [sys.executable, str(TOP / "deploy" / "reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def _help(words: list[str]) -> tuple[list[str], set[str]]:
    """Sub-commands and flags in ctr's help."""
    text = subprocess.run(["ctr", *words, "--help"], capture_output=True, text=True, check=True).stdout
    section, commands, flags = "", [], set()
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z ]+:", line):
            section = line
        elif section == "COMMANDS:" and line.strip():
            commands.append(line.strip().split(",")[0].split()[0])
        elif section.endswith("OPTIONS:") and line.strip().startswith("-"):
            flags.add(line.strip().split()[0].rstrip(","))
    return [name for name in commands if name not in ("help", "h")], flags - {"--help", "--version"}


@pytest.mark.skipif(shutil.which("ctr") is None, reason="needs ctr")
def test_nothing_of_ctr_is_forgotten() -> None:
    """deploy/ctr.toml has every command and flag that the help of the installed ctr shows."""
    if f" {VERSION}." not in subprocess.run(["ctr", "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip(f"the list is that of ctr {VERSION}")
    table = tomllib.loads((TOP / "deploy" / "ctr.toml").read_text())
    known: dict[str, set[str]] = {}
    for entry in table["command"]:
        names = {flag.split(", ")[0] for flag in entry.get("flags", ())}
        known.setdefault(entry["name"], set()).update(names)
    todo: list[list[str]] = [[]]
    while todo:
        words = todo.pop()
        commands, flags = _help(words)
        assert flags <= known.get(" ".join(words), set()), words
        todo += [[*words, name] for name in commands]
