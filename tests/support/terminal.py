"""A real terminal: tmux, with a shell in it, typed into and read as a person sees it."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

BIN = Path(sys.executable).parent
SECONDS = 30.0


class Terminal:
    """One window of a tmux server of its own, gone when the block ends."""

    def __init__(self, directory: Path, *, columns: int = 100, lines: int = 30, environment: dict[str, str]) -> None:
        self._socket = directory / "tmux.sock"
        self._settings = directory / "bashrc"
        self._commands = 0
        self._size = (str(columns), str(lines))
        self._environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            **environment,
        }

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=self._environment | {"TERM": "xterm"}
        ).stdout

    def __enter__(self) -> Self:
        columns, lines = self._size
        self._settings.write_text("PS1='ready> '\nbind 'set bell-style none'\n")
        shell = shlex.join(["bash", "--rcfile", str(self._settings), "-i"])
        try:
            self._tmux("new-session", "-d", "-s", "test", "-x", columns, "-y", lines, shell)
            self.wait(lambda text: "ready>" in text)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], capture_output=True, check=False)

    def type(self, text: str, *keys: str) -> None:
        """Type text, then keys by name: Enter, Tab, C-c."""
        self._tmux("send-keys", "-t", "test", "-l", text)
        if keys:
            self._tmux("send-keys", "-t", "test", *keys)

    def run(self, command: str) -> str:
        """What the screen shows once a command has ended."""
        self._commands += 1
        end = f"END{self._commands}:"
        self.type(f"clear; {command}; echo {end}$?", "Enter")
        return self.wait(lambda text: any(line.startswith(end) for line in text.splitlines()))

    def screen(self, *, escapes: bool = False) -> str:
        return self._tmux("capture-pane", "-p", "-t", "test", *(["-e"] if escapes else []))

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-t", "test", "-x", str(columns), "-y", str(lines))

    def wait(self, seen: Callable[[str], bool]) -> str:
        """The screen, when it shows what is waited for."""
        limit = time.monotonic() + SECONDS
        while not seen(text := self.screen()):
            assert time.monotonic() < limit, text
            time.sleep(0.05)
        return text
