"""The examples of Markdown pages, run as they stand.

    ```sh                     run by bash; a failing command fails the page
    ```sh background=SOCKET   runs until the end of the page; what follows waits for the socket
    ```python                 run as a program
    ```python file=NAME       written to a file for the shell
    ```text output            lines that the block before prints among others; … stands for anything

Pages are written for a machine with Carina under /run and a registry out there. `Stage` puts the test's own in their
place: names are replaced in the text, and `carina up` and `down` get the directories of the test.
"""

import contextlib
import fnmatch
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    words: tuple[str, ...]
    text: str
    line: int

    def value(self, key: str) -> str:
        """The word `KEY=VALUE` behind the language; empty where there is none."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{key}=")), "")


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(match[1], tuple(match[2].split()), match[3], text.count("\n", 0, match.start()) + 2)
        for match in _FENCE.finditer(text)
    ]


class Stage:
    """A scratch directory in which pages are run."""

    def __init__(self, directory: Path, *, replaced: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._replaced = replaced
        self._environment = {**os.environ, **environment, "PATH": f"{directory}/bin:{os.environ['PATH']}"}
        self._background: list[subprocess.Popen[bytes]] = []
        (directory / "deploy").symlink_to(REPOSITORY / "deploy")

    def command(self, name: str, script: str) -> None:
        """Put a command before those of the machine."""
        path = self._directory / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def run(self, page: Path, *, skip: str = "") -> int:
        """Run a page; the number of blocks that ran. Lines that `skip` matches are left out."""
        ran, printed = 0, ""
        for block in blocks(page):
            text = block.text if not skip else re.sub(rf"(?m)^(?:{skip}).*\n", "", block.text)
            for old, new in self._replaced.items():
                text = text.replace(old, new)
            where = f"{page.name}:{block.line}"
            if block.language == "text" and "output" in block.words:
                self._compare(text, printed, where)
            elif block.language in ("sh", "python"):
                printed = self._block(block, text, where)
                ran += 1
        return ran

    def _block(self, block: Block, text: str, where: str) -> str:
        if block.value("file"):
            (self._directory / block.value("file")).write_text(text)
            return ""
        if block.value("background"):
            self._start(text, self._directory / block.value("background"), where)
            return ""
        command = (
            [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        )
        done = subprocess.run(
            command,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{where}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, text: str, socket: Path, where: str) -> None:
        command = ["bash", "-c", f"exec {text}"]
        process = subprocess.Popen(command, cwd=self._directory, env=self._environment, start_new_session=True)
        self._background.append(process)
        limit = time.monotonic() + 30
        while not socket.is_socket():
            assert process.poll() is None, f"{where}: it ended"
            assert time.monotonic() < limit, f"{where}: {socket} does not appear"
            time.sleep(0.02)

    def _compare(self, text: str, printed: str, where: str) -> None:
        lines = [line.strip() for line in printed.splitlines()]
        for expected in text.splitlines():
            pattern = "".join(f"[{one}]" if one in "[]?*" else one for one in expected.strip()).replace("…", "*")
            assert fnmatch.filter(lines, pattern), f"{where}: {expected!r} is not in\n{printed}"

    def close(self) -> None:
        for process in self._background:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.wait(20)
        self._background.clear()


@contextlib.contextmanager
def stage(directory: Path, *, replaced: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Stage]:
    made = Stage(directory, replaced=replaced, environment=environment)
    made.command("sudo", 'exec "$@"')
    made.command("python", f'exec {shlex.quote(sys.executable)} "$@"')
    try:
        yield made
    finally:
        made.close()
