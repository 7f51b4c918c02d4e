"""What containers of `carina run` can't do, seen from inside."""

import json
from pathlib import Path

import pytest

from support.constellation import Constellation

HOST = ("--mount", "type=bind,src=/,dst=/host,options=rbind:ro")
FAMILIES = """
import socket
for family in (38, 38 | 1 << 32, 40, 2, 1):
    try:
        socket.socket(family, socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_STREAM).close()
        print("made")
    except OverflowError:
        print("refused")
    except OSError as error:
        print("refused" if error.errno == 1 else error)
"""

pytestmark = pytest.mark.root


def test_default_seccomp_profile(constellation: Constellation, pulled: str) -> None:
    """With the default profile no AF_ALG or AF_VSOCK socket is made, nor a user namespace; others are."""
    command = ("chroot", "/host", "/usr/bin/python3", "-c", FAMILIES)
    ran = constellation.carina("run", "--rm", "--seccomp", *HOST, pulled, "families", *command)
    refused = constellation.carina(
        "run", "--rm", "--seccomp", pulled, "namespace", "unshare", "-U", "true", check=False
    )

    assert ran.output.split() == ["refused", "refused", "refused", "made", "made"]
    assert refused.status == 1
    assert "Operation not permitted" in refused.error


def test_privileges_and_descriptors(constellation: Constellation, pulled: str) -> None:
    """A process inherits no capability and no descriptor of ours, and can't get at the machine's power meter."""
    look = "grep CapInh /proc/self/status; ls /proc/self/fd; ls /sys/devices/virtual/powercap | wc -l"
    ran = constellation.carina("run", "--rm", pulled, "looks", "sh", "-c", look).output.split()

    assert ran[:2] == ["CapInh:", "0" * 16]
    assert ran[2:] == ["0", "1", "2", "3", "0"]
    for number in (7, 8, 9, 12):
        refused = constellation.carina(
            *("run", "--rm", "--cwd", f"/proc/self/fd/{number}", pulled, f"leak-{number}", "pwd"), check=False
        )
        assert refused.status != 0
        assert refused.output == ""
    assert constellation.ctr("containers", "ls", "-q").output == ""


def test_wishes_reach_the_container(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """Capabilities, limits, system controls, devices and a profile of one's own are as the flags say."""
    profile = tmp_path / "profile.json"
    rule = {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    flags = [
        *("--cap-drop", "ALL", "--ulimit", "RLIMIT_NOFILE=77:77", "--sysctl", "kernel.msgmax=4242"),
        *("--device", "/dev/kmsg", "--seccomp", "--seccomp-profile", str(profile), "--pids-limit", "50"),
    ]
    look = (
        "grep CapEff /proc/self/status; ulimit -n; cat /proc/sys/kernel/msgmax; ls /dev/kmsg; chmod 700 /bin || echo no"
    )
    ran = constellation.carina("run", "--rm", *flags, pulled, "wishes", "sh", "-c", look)
    refused = constellation.carina("run", "--rm", "--cap-add", "CAP_FLY", pulled, "flies", "true", check=False)

    assert ran.output.split() == ["CapEff:", "0" * 16, "77", "4242", "/dev/kmsg", "no"]
    assert "'CAP_FLY' is not known" in refused.error
    assert constellation.ctr("containers", "ls", "-q").output == ""
