"""What of the host a container finds among its own descriptors and programs: nothing."""

import hashlib
import shutil
from pathlib import Path

import pytest

from support.constellation import Constellation

RUNTIMES = ("io.containerd.runc.v2", "io.containerd.carina.v1")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_descriptor_of_the_host_is_in_a_container(constellation: Constellation, pulled: str, runtime: str) -> None:
    """A process has its three streams, and what it has opened itself."""
    arguments = ("run", "--rm", "--runtime", runtime, pulled, "own", "sh", "-c", "ls /proc/self/fd")

    assert constellation.carina(*arguments).output.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_working_directory_is_a_descriptor(constellation: Constellation, pulled: str, runtime: str) -> None:
    """A working directory below /proc/self/fd, where a descriptor of the runtime's might lead out, leads nowhere."""
    for number in (3, 7, 8, 9):
        arguments = ("--cwd", f"/proc/self/fd/{number}/../../..", pulled, f"cwd{number}", "cat", "etc/motd")
        said = constellation.carina("run", "--rm", "--runtime", runtime, *arguments, check=False)
        assert said.status != 0 or said.output == "Carina\n", said


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_programs_of_the_host_stay_as_they_are(constellation: Constellation, pulled: str, runtime: str) -> None:
    """A container that writes to whatever programs /proc shows changes none of the host's."""
    programs = [Path(found) for name in ("runc", "containerd-shim-runc-v2") if (found := shutil.which(name))]
    before = [hashlib.sha256(path.read_bytes()).digest() for path in programs]
    script = "for exe in /proc/*/exe; do echo changed > $exe; done 2>/dev/null; true"
    constellation.carina("run", "-d", "--runtime", runtime, pulled, "held", "sleep", "1000")
    constellation.carina("tasks", "exec", "--exec-id", "e", "held", "sh", "-c", script)
    constellation.carina("tasks", "rm", "--force", "held")

    assert [hashlib.sha256(path.read_bytes()).digest() for path in programs] == before
