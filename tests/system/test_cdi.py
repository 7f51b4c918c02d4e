"""`carina run` with devices by their CDI names."""

import json
from pathlib import Path

import pytest

from support.constellation import Constellation

pytestmark = pytest.mark.root

SPEC = {
    "cdiVersion": "0.6.0",
    "kind": "example.com/nothing",
    "devices": [
        {
            "name": "one",
            "containerEdits": {
                "env": ["NOTHING=one"],
                "deviceNodes": [{"path": "/dev/nothing", "hostPath": "/dev/null", "permissions": "rw"}],
                "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/nothing", "options": ["bind", "ro"]}],
            },
        }
    ],
}


def test_run_with_a_cdi_device(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """The device, its variable and its mount are in the container; one that is not there is named in a sentence."""
    (tmp_path / "nothing.json").write_text(json.dumps(SPEC))
    script = "echo $NOTHING; echo gone >/dev/nothing && ls -l /dev/nothing; cat /nothing"
    for number, flag in enumerate(("--device", "--cdi-device")):
        flags = ("--cdi-spec-dir", str(tmp_path), flag, "example.com/nothing=one")
        ran = constellation.carina("run", "--rm", *flags, pulled, f"cdi-{number}", "sh", "-c", script)
        lines = ran.output.splitlines()
        assert lines[0] == "one"
        assert lines[1].startswith("crw-rw-rw-")
        assert " 1,   3 " in lines[1]
        assert lines[2] == Path("/etc/hostname").read_text().strip()

    failed = constellation.carina("run", "--device", "example.com/nothing=two", pulled, "cdi-2", "true", check=False)
    said = "carina: CDI device example.com/nothing=two is in no file of /etc/cdi, /var/run/cdi"
    assert (failed.status, failed.error.startswith(said)) == (1, True), failed
    assert "cdi-2" not in constellation.ctr("containers", "ls", "-q").output
