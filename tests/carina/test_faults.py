"""Fault points: nothing where they are off, and exactly what was asked for where they are on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from carina import faults
from carina.errors import InvalidArgument, Unavailable

PROGRAM = """
import os
from carina import faults
faults.arm(os.environ)
for turn in range(3):
    faults.point("other.step")
    faults.point("some.step")
    print(turn, flush=True)
"""


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm({})


def run(setting: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, faults.VARIABLE: setting}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE)


@pytest.mark.parametrize(("setting", "status", "turns"), [("", 0, 3), ("some.step", -9, 0), ("some.step:3", -9, 2)])
def test_a_process_is_killed_at_the_count_it_was_armed_with(setting: str, status: int, turns: int) -> None:
    """The process dies by SIGKILL at that step of that turn and not before; unarmed it goes through."""
    with run(setting) as process:
        output, _ = process.communicate(timeout=30)

    assert (process.returncode, len(output.split())) == (status, turns)


def test_a_process_is_stopped_and_can_go_on() -> None:
    """With `stop` the process stands still until it is continued, and then ends as if nothing had been."""
    with run("some.step:2:stop") as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=30)

    assert os.WIFSTOPPED(status)
    assert (process.returncode, output.split()) == (0, [b"0", b"1", b"2"])


def test_an_error_is_raised_once() -> None:
    """With `error` the step fails at that turn only."""
    faults.arm({faults.VARIABLE: "some.step:2:error"})
    faults.point("some.step")

    with pytest.raises(Unavailable, match=r"some\.step"):
        faults.point("some.step")
    faults.point("some.step")


@pytest.mark.parametrize("setting", ["a:x", "a:1:explode", "a:-1"])
def test_a_setting_that_says_nothing_is_refused(setting: str) -> None:
    """A mistake in the variable does not pass for a test that found nothing."""
    with pytest.raises(InvalidArgument, match="CARINA_FAULT"):
        faults.arm({faults.VARIABLE: setting})
