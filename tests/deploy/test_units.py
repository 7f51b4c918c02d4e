"""The units as files: systemd takes every line of them, and what it says of their exposure."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
ORDINARY = ["contentd.service", "metadatad.service", "gatewayd.service"]

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="not installed: systemd-analyze (systemd)"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with programs that exist here."""
    for unit in UNITS.iterdir():
        if unit.suffix in (".service", ".socket", ".target"):
            text = re.sub(r"^ExecStart=/opt/\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
            text = re.sub(r"^User=.*", "User=daemon", text, flags=re.MULTILINE)
            (tmp_path / unit.name).write_text(text)
    for name in ("snapshotd@native", "snapshotd@overlayfs"):
        for kind in ("service", "socket"):
            (tmp_path / f"{name}.{kind}").symlink_to(f"snapshotd@.{kind}")
    return tmp_path


def test_systemd_has_nothing_against_them(installed: Path) -> None:
    """`systemd-analyze verify` finds no unknown setting, no missing unit and no cycle."""
    units = [str(path) for path in installed.iterdir() if "@." not in path.name]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=50, check=False
    )

    said = [line for line in done.stderr.splitlines() if str(installed) in line or "Carina" in line]
    assert said == []


@pytest.mark.parametrize("unit", ORDINARY)
def test_ordinary_services_are_little_exposed(installed: Path, unit: str) -> None:
    """`systemd-analyze security` calls the exposure of those that need no privilege OK, its best word but one."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(installed / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)

    assert done.returncode == 0, done.stdout[-3000:]


def test_every_socket_is_one_of_the_default_addresses() -> None:
    """Socket units listen where the services do without a configuration, on each path once."""
    listed = [
        line.partition("=")[2].replace("%i", "NAME")
        for unit in UNITS.glob("*.socket")
        for line in unit.read_text().splitlines()
        if line.startswith(("ListenStream=", "ListenSequentialPacket="))
    ]
    names = (
        "carina.sock carina.sock.ttrpc contentd.fd.sock contentd.sock imaged.sock metadatad.sock snapshotd-NAME.sock"
    )
    assert sorted(listed) == [f"/run/carina/{name}" for name in [*names.split(), "taskd.sock"]]
