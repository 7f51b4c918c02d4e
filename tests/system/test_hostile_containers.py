"""What containers, and those who name them, have used to get out: each way is tried on a whole constellation."""

import asyncio
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from carina import context
from carina.client import Client
from carina.containers import Container
from carina.errors import CarinaError, InvalidArgument
from carina.tasks import Stdio
from carina.typed import Runtime
from support.constellation import BIN, Constellation
from support.registry import Registry
from support.spec import exec_spec, spec

pytestmark = pytest.mark.root

OWN, GO = "io.containerd.carina.v1", "io.containerd.runc.v2"
NOBODY = 65534


def _digests() -> dict[str, str]:
    """Of every program of the host that may be inside a container for a moment."""
    names = [shutil.which(name) for name in ("runc", "containerd-shim-runc-v2")]
    paths = [*names, str(BIN / "containerd-shim-carina-v1"), sys.executable]
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if path}


@pytest.mark.parametrize("runtime", [OWN, GO])
def test_no_program_of_the_host_is_overwritten(constellation: Constellation, pulled: str, runtime: str) -> None:
    """A container with many rights that writes to whatever /proc shows of runc, as it enters, changes no program."""
    if runtime == GO and shutil.which("containerd-shim-runc-v2") is None:
        pytest.skip("containerd's shim is not installed")
    before = _digests()
    may = ("--allow-new-privs", "--cap-add", "CAP_SYS_PTRACE", "--cap-add", "CAP_SYS_ADMIN")
    write = "while :; do for exe in /proc/[0-9]*/exe; do { echo overwritten >$exe; } 2>/dev/null; done; done"
    constellation.carina("run", "-d", *may, "--runtime", runtime, pulled, "writer", "sh", "-c", write)
    for number in range(6):
        # runc, as a container that has replaced the command by a link to /proc/self/exe makes it run.
        command = ("/proc/self/exe", "--version") if number % 2 else ("sleep", "0.1")
        constellation.ctr("tasks", "exec", "--exec-id", f"e{number}", "writer", *command, check=False)
    constellation.ctr("tasks", "kill", "-s", "SIGKILL", "writer")
    assert _digests() == before


def test_environments_of_one_image_do_not_mix(constellation: Constellation, pulled: str) -> None:
    """Containers that are made of one image at the same time have each its own variables, later ones none of them."""

    def run(number: int) -> set[str]:
        env = [part for name in ("A", "B") for part in ("--env", f"{name}{number}={number}")]
        return set(constellation.carina("run", "--rm", *env, pulled, f"env-{number}", "env").output.split())

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, range(4)))
    for number, lines in enumerate(found):
        assert {line for line in lines if line[:1] in "AB" and line[1:2].isdigit()} == {
            f"A{number}={number}",
            f"B{number}={number}",
        }
    after = constellation.carina("run", "--rm", pulled, "env-after", "env").output.split()
    assert [line for line in after if line[:1] in "AB" and line[1:2].isdigit()] == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_whatever_the_umask(registry: Registry, reference: str, umask: int) -> None:
    """Directories have containerd's modes under any umask, wide ones are tightened, and nobody else looks inside."""
    constellation = Constellation(namespace=f"carina-modes-{os.getpid()}-{umask:o}")
    for directory in (constellation.root, constellation.root / "taskd", constellation.state):
        directory.mkdir(parents=True)
        directory.chmod(0o777)
    try:
        constellation.start(umask=umask)
        constellation.ctr("images", "pull", "--plain-http", reference)
        constellation.ctr("run", "-d", reference, "modes", "sleep", "1000")
        bundle = constellation.state / "io.containerd.runtime.v2.task" / constellation.namespace / "modes"
        modes = {
            path: stat.S_IMODE(path.stat().st_mode)
            for path in (constellation.root, constellation.root / "taskd", constellation.state, bundle.parent, bundle)
        }
        assert list(modes.values()) == [0o700, 0o700, 0o711, 0o711, 0o700], modes
        sandboxes = constellation.state / "io.containerd.sandbox.controller.v1.shim"
        assert stat.S_IMODE(sandboxes.stat().st_mode) == 0o700
        address = Path((bundle / "address").read_text().removeprefix("unix://"))
        assert address.is_absolute()
        assert stat.S_IMODE(address.stat().st_mode) & 0o077 == 0
        tree = next(iter((constellation.root).glob("snapshotd*/**/fs")), constellation.root)
        for path in (bundle / "rootfs", bundle / "config.json", tree, constellation.root, address):
            seen = subprocess.run(
                ["ls", "-d", f"{path}/."], user=NOBODY, group=NOBODY, capture_output=True, check=False
            )
            assert seen.returncode != 0, path
            with pytest.raises(PermissionError):
                subprocess.run([f"{path}/bin/busybox"], user=NOBODY, group=NOBODY, capture_output=True, check=False)
    finally:
        constellation.__exit__()


async def test_names_are_never_paths(constellation: Constellation, tmp_path: Path) -> None:
    """Whatever is given as an id, key, ref or namespace, nothing comes to be where it would lead as a path."""
    marks = [f"../../../../../../../..{tmp_path}/evil", f"{tmp_path}/evil", "a/../../evil", "evil\0/x", ".evil/..", ""]
    async with Client(constellation.address) as client:
        with context.within(namespace=constellation.namespace), context.deadline(60):
            runtime = Runtime(name=OWN)
            for mark in [*marks, "e" * 4096 + "/../evil"]:
                record = Container(id=mark, runtime=runtime, spec=spec(constellation.namespace, "x", "true"))
                with pytest.raises(InvalidArgument):
                    await client.containers.create(record)
                with pytest.raises(CarinaError):
                    await client.tasks.create(mark)
                for call in (
                    client.tasks.start(mark),
                    client.tasks.exec(mark, mark, exec_spec("true"), Stdio()),
                    client.tasks.exec("x", mark, exec_spec("true"), Stdio()),
                    client.tasks.delete(mark),
                    client.tasks.kill(mark, 9),
                ):
                    with pytest.raises(CarinaError):
                        await call
                key = await _kept(client.snapshotter("native").prepare(mark))
                if key:
                    await client.snapshotter("native").remove(mark)
                with context.within(namespace=mark or "-"), pytest.raises(InvalidArgument):
                    await client.tasks.list()
    directory = constellation.directory
    found = await asyncio.to_thread(lambda: [*tmp_path.rglob("*evil*"), *directory.parent.glob("evil*")])
    inside = await asyncio.to_thread(lambda: [*directory.rglob("*evil*")])
    assert (found, inside) == ([], [])


async def _kept(call: object) -> bool:
    try:
        await call  # type: ignore[misc]
    except CarinaError:
        return False
    return True
