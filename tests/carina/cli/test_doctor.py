"""`carina doctor`: what it finds, and what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from carina.cli.diagnosis import FAIL, OK, WARN, about_machine, open_holes
from carina.config import load

BIN = Path(sys.executable).parent / "carina"


@pytest.mark.parametrize(
    ("version", "holes"),
    [
        ((1, 1, 5), ["CVE-2024-21626", "CVE-2024-45310", "CVE-2025-31133"]),
        ((1, 1, 12), ["CVE-2024-45310", "CVE-2025-31133"]),
        ((1, 1, 14), ["CVE-2025-31133"]),
        ((1, 2, 0), ["CVE-2025-31133"]),
        ((1, 2, 8), []),
        ((1, 3, 2), ["CVE-2025-31133"]),
        ((1, 3, 3), []),
        ((1, 4, 0), []),
        ((2, 0, 0), []),
    ],
)
def test_holes_of_runc(version: tuple[int, int, int], holes: list[str]) -> None:
    """A version has the holes that neither its branch nor an earlier one has mended."""
    assert [hole.partition(":")[0].partition(",")[0] for hole in open_holes(version)] == holes


def test_directories(tmp_path: Path) -> None:
    """Directories that others may look into are found, with the command that mends them."""
    root, state = tmp_path / "root", tmp_path / "state"
    for place in (root, state):
        place.mkdir()
        place.chmod(0o777)
    config = load(_empty(tmp_path), root=root, state=state)
    found = {finding.subject: finding for finding in about_machine(config, tmp_path / "none")}
    assert found[f"directory {root}"].status == FAIL
    assert found[f"directory {root}"].todo == f"chmod 0700 {root}"
    assert found[f"directory {state}"].todo == f"chmod 0711 {state}"
    root.chmod(0o700)
    found = {finding.subject: finding for finding in about_machine(config, tmp_path / "none")}
    assert found[f"directory {root}"].status == OK


def _empty(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text("")
    return file


def test_command(tmp_path: Path) -> None:
    """For programs there is JSON; a constellation that is down is a warning, a wrong file a failure with status 1."""
    file = _empty(tmp_path)
    places = ("--config", file, "--root", tmp_path / "r", "--state", tmp_path / "s")
    done = subprocess.run([BIN, "doctor", "--format", "json", *places], capture_output=True, text=True, check=False)
    found = {row["subject"]: row for row in json.loads(done.stdout)}
    assert found["configuration"]["status"] == OK
    assert found["gatewayd"]["status"] == WARN
    assert found["gatewayd"]["todo"] == "`carina up --detach` starts Carina."
    assert {"kernel", "control groups", "overlayfs", "runc", "clock", "user namespaces", "open files"} <= found.keys()
    failed = any(row["status"] == FAIL for row in found.values())
    assert done.returncode == int(failed)

    file.write_text("[metadata]\nnonsense = 1\n")
    done = subprocess.run([BIN, "doctor", *places], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "fail  configuration: metadata.nonsense is not a setting" in done.stdout
    assert not (tmp_path / "r").exists()
