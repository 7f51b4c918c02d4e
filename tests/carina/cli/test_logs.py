"""`carina logs`: the end of files, and what is added to them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent / "carina"


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    (tmp_path / "root" / "log").mkdir(parents=True)
    (tmp_path / "config.toml").write_text("")
    return ["--config", f"{tmp_path}/config.toml", "--root", f"{tmp_path}/root", "--state", f"{tmp_path}/state"]


def logs(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([BIN, "logs", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_last_lines(tmp_path: Path, places: list[str]) -> None:
    """The last lines of one service; of several, or of all, with the service before each; nothing steers a terminal."""
    directory = tmp_path / "root" / "log"
    (directory / "contentd.log").write_text("".join(f"line {number}\n" for number in range(50000)) + "\x1b[31mred\n")
    (directory / "taskd.log").write_text("one\n")
    assert logs("contentd", "-n", "2", *places) == (0, "line 49999\n\\x1b[31mred\n", "")
    assert logs("content", "-n", "1", *places)[1] == "\\x1b[31mred\n"
    assert logs("-n", "1", *places)[1] == "contentd | \\x1b[31mred\ntaskd | one\n"


def test_what_is_not_there(places: list[str]) -> None:
    """Services that are none, or have said nothing, are told as such."""
    assert logs("contntd", *places)[2] == "carina: there is no service 'contntd': did you mean contentd?\n"
    status, _, error = logs("contentd", *places)
    assert status == 1
    assert "contentd has logged nothing here" in error


def test_follow(tmp_path: Path, places: list[str]) -> None:
    """Following goes on in the new file when the log is put aside."""
    log = tmp_path / "root" / "log" / "contentd.log"
    log.write_text("before\n")
    command = [str(BIN), "logs", "-f", "contentd", *places]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "before\n"
            with log.open("a") as file:
                file.write("added\n")
            assert process.stdout.readline() == "added\n"
            log.rename(log.with_suffix(".log.1"))
            time.sleep(0.5)
            log.write_text("new\n")
            assert process.stdout.readline() == "new\n"
        finally:
            process.terminate()
