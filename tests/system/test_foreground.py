"""Processes in the foreground of the command line: input, output, signals, and nothing left when they are cut off."""

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.constellation import BIN, Constellation


def command(constellation: Constellation, *arguments: str) -> list[str]:
    return [str(BIN / "carina"), "-a", constellation.address, "-n", constellation.namespace, *arguments]


def nothing_left(constellation: Constellation) -> None:
    assert constellation.carina("containers", "ls", "-q").output == ""
    assert constellation.carina("tasks", "ls", "-q").output == ""
    assert constellation.carina("snapshots", "ls", "-q", "kind==active").output == ""


def test_input_reaches_the_process_whole(constellation: Constellation, pulled: str) -> None:
    """Standard input, far more than a pipe holds, is passed on to its end, by run and by exec."""
    data = os.urandom(2_000_000)
    expected = f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}  -\n"

    assert constellation.carina("run", "--rm", pulled, "in", "md5sum", stdin=data).output == expected
    constellation.carina("run", "-d", pulled, "held", "sleep", "1000")
    executed = constellation.carina("tasks", "exec", "--exec-id", "in", "held", "md5sum", stdin=data)
    assert executed.output == expected
    constellation.carina("tasks", "rm", "--force", "held")


def test_no_input_at_all(constellation: Constellation, pulled: str) -> None:
    """With standard input closed the process meets the end of file, and nothing of ours."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command(constellation, "run", "--rm", pulled, "none", "cat")],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_output_that_nobody_reads_ends_the_run(constellation: Constellation, pulled: str) -> None:
    """When the reader of a pipe has gone, or the disk is full, the process is ended and removed."""
    line = command(constellation, "run", "--rm", pulled, "yes", "yes")
    piped = subprocess.run(
        ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "sh", *line],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (piped.returncode, piped.stdout) == (141, b"y\n")
    with Path("/dev/full").open("wb") as full:
        said = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False)
    assert said.returncode == 1
    assert b"No space left on device" in said.stderr
    nothing_left(constellation)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_leaves_nothing(constellation: Constellation, pulled: str, number: int) -> None:
    """A signal while a container is being made undoes what was made; later it goes to the process."""
    loop = 'trap "exit 9" INT TERM HUP; while :; do sleep 0.05; done'
    for moment in range(8):
        line = command(constellation, "run", "--rm", pulled, f"cut{moment}", "sh", "-c", loop)
        with subprocess.Popen(line, stderr=subprocess.PIPE) as run:
            time.sleep(0.15 + moment * 0.05)
            run.send_signal(number)
            _, said = run.communicate(timeout=30)
            # On a busy machine the interpreter itself may still be starting: it ends with 1 and says so.
            assert run.returncode in (9, 130, -number, 128 + number) or b"import site" in said, (run.returncode, said)
    nothing_left(constellation)
    assert list((constellation.state / "fifo").iterdir()) == []


def test_an_interrupted_exec_ends_its_process(constellation: Constellation, pulled: str) -> None:
    """A process that ignores signals is killed with the third one, and its id is free again."""
    constellation.carina("run", "-d", pulled, "held", "sleep", "1000")
    stubborn = 'trap "" INT TERM; echo up; while :; do sleep 0.05; done'
    line = command(constellation, "tasks", "exec", "--exec-id", "e", "held", "sh", "-c", stubborn)
    with subprocess.Popen(line, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        for _ in range(3):
            run.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert run.wait(20) in (130, -signal.SIGINT)

    assert constellation.carina("tasks", "exec", "--exec-id", "e", "held", "echo", "again").output == "again\n"
    constellation.carina("tasks", "rm", "--force", "held")


def test_services_may_be_restarted_while_a_process_is_waited_for(constellation: Constellation, pulled: str) -> None:
    """The command line waits on when taskd and gatewayd are killed, and passes the exit status on."""
    script = "echo up; sleep 3; echo down; exit 7"
    with subprocess.Popen(
        command(constellation, "run", "--rm", pulled, "long", "sh", "-c", script), stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        status = constellation.carina("status", *constellation.paths, check=False).output
        for line in status.splitlines():
            if line.startswith(("taskd ", "gatewayd ")):
                os.kill(int(line.split()[2]), signal.SIGKILL)
        assert run.wait(40) == 7
        assert run.stdout.read() == b"down\n"
    nothing_left(constellation)


def test_labels_are_not_lost_where_none_are_given(constellation: Constellation, pulled: str) -> None:
    """`label` without labels is wrong usage: an empty field mask would replace them all."""
    constellation.carina("images", "label", pulled, "kept=yes")
    for arguments in (("images", "label", pulled), ("containers", "label", "x"), ("namespaces", "label", "x")):
        assert constellation.carina(*arguments, check=False).status == 2
    assert "kept=yes" in constellation.carina("images", "ls").output
    assert constellation.carina("images", "label", "--replace-all", pulled).output == "-\n"
