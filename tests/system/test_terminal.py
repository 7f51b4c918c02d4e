"""The command line in a real terminal, and without one."""

import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image
from support.constellation import Constellation
from support.registry import Registry
from support.terminal import Terminal

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


@pytest.fixture
def terminal(constellation: Constellation, tmp_path: Path) -> Iterator[Terminal]:
    environment = {"CARINA_ADDRESS": constellation.address, "CARINA_NAMESPACE": constellation.namespace}
    with Terminal(constellation.directory, environment=environment) as running:
        yield running


def _completed(terminal: Terminal, typed: str, expected: str) -> None:
    """What is on the line after a press of the tabulator."""
    terminal.type("", "C-u")
    terminal.type("clear", "Enter")
    terminal.wait(lambda text: text.strip() == "ready>")
    terminal.type(typed, "Tab")
    terminal.wait(lambda text: f"ready> {expected}".rstrip() in map(str.rstrip, text.splitlines()))


def test_completion_in_bash(terminal: Terminal, constellation: Constellation, pulled: str) -> None:
    """bash completes commands, options and values, and the names of images (which have colons), containers and
    snapshots."""
    constellation.carina("run", "-d", pulled, "sleeping-beauty", "sleep", "1000")
    terminal.run('eval "$(carina completion bash)"')
    _completed(terminal, "carina imag", "carina images ")
    _completed(terminal, "carina images unm", "carina images unmount ")
    _completed(terminal, "carina images ls --qui", "carina images ls --quiet ")
    _completed(terminal, "carina images ls --format js", "carina images ls --format json ")
    _completed(terminal, f"carina run {pulled[:-4]}", f"carina run {pulled} ")
    _completed(terminal, "carina images rm local", f"carina images rm {pulled} ")
    _completed(terminal, "carina tasks kill sleep", "carina tasks kill sleeping-beauty ")
    _completed(terminal, "carina containers info sl", "carina containers info sleeping-beauty ")
    _completed(terminal, "carina snapshots info sl", "carina snapshots info sleeping-beauty ")
    _completed(terminal, "carina run --snapshotter nat", "carina run --snapshotter native ")


def test_completion_without_server(tmp_path: Path) -> None:
    """Where nobody answers, nothing is offered, soon, and the line stays as it is."""
    short = Path("/tmp") / f"carina-term-{tmp_path.name[-8:]}"
    short.mkdir()
    try:
        with Terminal(short, environment={"CARINA_ADDRESS": f"unix://{short}/none.sock"}) as terminal:
            terminal.run('eval "$(carina completion bash)"')
            _completed(terminal, "carina images rm x", "carina images rm x")
            terminal.type("y")
            terminal.wait(lambda text: "carina images rm xy" in text)
    finally:
        shutil.rmtree(short)


def test_tables_fit(terminal: Terminal, pulled: str) -> None:
    """A table fits the terminal as it is now; in a pipe it is whole, without codes."""
    assert max(map(len, terminal.run("carina content ls").splitlines())) <= 100
    terminal.resize(50, 40)
    text = terminal.run("carina content ls")
    assert re.search(r"^sha256:[0-9a-f]{12} ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 50
    terminal.resize(500, 40)
    assert re.search(r"^sha256:[0-9a-f]{64} ", terminal.run("carina content ls"), re.MULTILINE)
    terminal.resize(50, 40)
    whole, codes = r"grep -c '^sha256:.\{64\} ' /tmp/$$", r"grep -c '\^\[' /tmp/$$"
    piped = terminal.run(f"carina content ls | cat -v > /tmp/$$; {whole}; {codes}; rm /tmp/$$")
    lines = piped.split()
    assert int(lines[0]) > 0
    assert lines[1] == "0"


def test_colours_are_for_terminals(terminal: Terminal) -> None:
    """On a terminal there are colours; with NO_COLOR, or in a pipe, there are none."""
    terminal.run("carina doctor | head -3")
    assert "\x1b[32m" not in terminal.screen(escapes=True)
    terminal.run("carina doctor")
    assert "\x1b[32m" in terminal.screen(escapes=True)
    terminal.run("NO_COLOR=1 carina doctor")
    assert "\x1b[32m" not in terminal.screen(escapes=True)


def test_progress_is_redrawn(terminal: Terminal, constellation: Constellation, registry: Registry) -> None:
    """A pull draws a line for each object and draws it again in its place, also after the window has become narrow."""
    noise = random.Random(1).randbytes(24 << 20)
    reference = registry.push("test/slow", "1", image.build(layers=[image.layer(image.tar({"noise": noise}))]))
    terminal.type(f"clear; carina pull --plain-http {reference}; echo END$?", "Enter")
    terminal.wait(lambda text: "layer-sha256:" in text)
    terminal.resize(60, 30)
    text = terminal.wait(lambda text: "END0" in text)
    assert "pulled in" in text
    layers = [line for line in text.splitlines() if line.startswith("layer-")]
    assert len(layers) == len({line.split()[0] for line in layers})
    assert len(layers) >= 1
    constellation.carina("images", "rm", "--sync", reference)


def test_interrupted(terminal: Terminal, constellation: Constellation, pulled: str) -> None:
    """Ctrl-C ends a command with status 130, gives the prompt back, and leaves nothing of it."""
    terminal.type("clear; carina events; echo END$?", "Enter")
    constellation.carina("namespaces", "create", "seen-by-events")

    def shown(text: str) -> bool:
        # The command may have begun to listen only after an event.
        constellation.carina("namespaces", "label", "seen-by-events", f"at={time.monotonic()}")
        return "seen-by-events" in text

    terminal.wait(shown)
    terminal.type("", "C-c")
    text = terminal.wait(lambda text: "END130" in text)
    assert "Traceback" not in text
    constellation.carina("namespaces", "rm", "seen-by-events")
    cut = f"carina images export /tmp/$$.tar {pulled} & sleep 0.3; kill -TERM $!; wait $!; ls /tmp/$$.tar.partial*"
    assert "No such file" in terminal.run(f"{cut}; rm -f /tmp/$$.tar")
    assert constellation.carina("leases", "ls", "-q").output == ""
