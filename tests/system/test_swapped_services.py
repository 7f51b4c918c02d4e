"""imaged and taskd swapped behind the gateway: new calls go to the new one, those under way end where they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.constellation import Constellation
from support.content import directory
from support.snapshots import serving

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def base() -> Iterator[Path]:
    with directory() as path:
        yield path


def _config(carina: Constellation, base: Path) -> Path:
    """Another service of the same constellation, at an address of its own."""
    services = "".join(
        f'[services.{name}]\naddress = "unix://{carina.state}/{daemon}.sock"\n'
        for name, daemon in (("metadata", "metadatad"), ("content", "contentd"))
    )
    path = base / "config.toml"
    path.write_text(services)
    return path


def test_imaged_is_swapped_and_back(reference: str, base: Path) -> None:
    """Pulls go through the new one, also after a restart of everything; a wrong or absent one is refused."""
    with Constellation() as carina:
        words = ("--config", str(_config(carina, base)), "--root", str(base / "root"), "--state", str(base))
        with serving(base / "imaged.sock", "-m", "imaged", *words) as other:
            there = f"unix://{base}/imaged.sock"
            refused = carina.carina("swap", "images", f"unix://{base}/none.sock", check=False)
            assert "images can't be moved to" in refused.error
            assert (
                "another service" in carina.carina("swap", "images", f"{carina.state}/contentd.sock", check=False).error
            )
            assert (
                "takes no settings" in carina.carina("swap", "images", there, "--set", "namespace=x", check=False).error
            )
            assert "can't be moved live" in carina.carina("swap", "metadata", there, check=False).error
            assert carina.carina("swap", "images", there).output == f"images is at {there} now\n"
            carina.stop()
            carina.start()
            before = _read(other.pid)
            carina.carina("pull", "--plain-http", reference)
            assert _read(other.pid) > before
            assert carina.carina("swap", "images", "--back").output.endswith(f"{carina.state}/imaged.sock now\n")
        assert carina.ctr("run", "--rm", reference, "after", "echo", "hello").output == "hello\n"


def _read(pid: int) -> int:
    """Bytes that a process has read and written so far (proc_pid_io(5))."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines[:2])


def test_tasks_stay_where_the_other_does_not_have_them(reference: str, base: Path) -> None:
    """A running task is named; without one, taskd is swapped, and a container runs at the other."""
    with Constellation() as carina:
        carina.carina("pull", "--plain-http", reference)
        carina.ctr("run", "--detach", reference, "running", "sleep", "1000")
        words = ("--config", str(_config(carina, base)), "--root", str(base / "root"), "--state", str(base))
        with serving(base / "taskd.sock", "-m", "taskd", *words):
            there = f"unix://{base}/taskd.sock"
            refused = carina.carina("swap", "tasks", there, check=False)
            assert f"{there} does not have task running of namespace {carina.namespace}" in refused.error
            carina.clean_namespace()
            carina.carina("pull", "--plain-http", reference)
            assert carina.carina("swap", "tasks", there).output == f"tasks is at {there} now\n"
            assert carina.ctr("run", "--rm", reference, "other", "echo", "hello").output == "hello\n"
            assert carina.carina("swap", "tasks", "--back").output.endswith(" now\n")
        assert carina.ctr("run", "--rm", reference, "after", "echo", "hello").output == "hello\n"
        assert os.path.exists(carina.root / "gatewayd" / "swaps.json")
