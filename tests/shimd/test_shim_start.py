"""How a shim is started: what it is told, what it answers, who shares one, and what remains of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carina import shim
from carina.errors import InvalidArgument
from shimd.config import parse

pytestmark = pytest.mark.root
COMMAND = (sys.executable, "-m", "shimd")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "config.json").write_text("{}")
    yield path
    _end(f"{tmp_path}/d.sock", shim.socket(address=f"{tmp_path}/d.sock", namespace="shim-test", group=""))


def _end(address: str, path: str) -> None:
    """End a shim that would stay for some seconds more."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if address in process.read_text():
                os.kill(int(process.parent.name), signal.SIGKILL)
    for entry in (path, f"{path}.lock"):
        Path(entry).unlink(missing_ok=True)


def _left(directory: Path) -> list[str]:
    """Files of the group in the sockets' directory."""
    name = Path(shim.socket(address=f"{directory}/d.sock", namespace="shim-test", group="")).name
    return [entry for entry in os.listdir(shim.DIRECTORY) if entry.startswith(name)]


def _until(condition: object) -> None:
    end = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def _run(bundle: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    names = ("-namespace", "shim-test", "-address", f"{bundle.parent}/d.sock", "-id", "one")
    return subprocess.run(
        [*COMMAND, *names, *arguments],
        cwd=bundle,
        env={**os.environ, "CARINA_SHIM_IDLE_SECONDS": "0", **environment},
        capture_output=True,
        timeout=30,
    )


def test_start_answers_in_the_form_that_is_asked_for(bundle: Path) -> None:
    """containerd 1.6 gets the address alone, later ones JSON of version 2 or 3; all of the one shim."""
    path = shim.socket(address=f"{bundle.parent}/d.sock", namespace="shim-test", group="")
    address = f"unix://{path}"

    assert _run(bundle, "start").stdout == address.encode()
    for version, expected in (("2", 2), ("3", 3), ("4", 3)):
        told = json.loads(_run(bundle, "start", MAX_SHIM_VERSION=version).stdout)
        assert told == {"version": expected, "address": address, "protocol": "ttrpc"}


def test_a_shim_without_containers_ends_and_leaves_nothing(bundle: Path) -> None:
    """After its idle time neither process nor socket nor lock remains."""
    assert _run(bundle, "start").returncode == 0
    assert len(_left(bundle.parent)) == 2

    _until(lambda: not _left(bundle.parent))


def test_a_dead_socket_is_replaced(bundle: Path) -> None:
    """A socket that nobody serves any more does not keep a shim from starting."""
    path = shim.socket(address=f"{bundle.parent}/d.sock", namespace="shim-test", group="")
    Path(shim.DIRECTORY).mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", f"import socket; socket.socket(socket.AF_UNIX).bind({path!r})"], check=True)

    assert _run(bundle, "start").stdout == f"unix://{path}".encode()


def test_delete_of_nothing_succeeds(bundle: Path) -> None:
    """`delete` of a container that never was answers, so that containerd can go on."""
    done = _run(bundle, "-bundle", str(bundle), "delete")

    assert (done.returncode, done.stderr) == (0, b"")


def test_bad_calls_are_refused_in_one_sentence(bundle: Path) -> None:
    """What is wrong with arguments or environment is said without a traceback."""
    for arguments, environment, expected in (
        (("-nonsense", "start"), {}, "-nonsense is not an argument"),
        (("dance",), {}, "action dance is not known"),
        ((), {}, "an action is missing"),
        (("start",), {"CARINA_SHIM_GROUP": "planet"}, "CARINA_SHIM_GROUP=planet is not valid"),
        (("start",), {"CARINA_SHIM_IDLE_SECONDS": "long"}, "CARINA_SHIM_IDLE_SECONDS=long is not valid"),
    ):
        done = _run(bundle, *arguments, **environment)
        assert done.returncode != 0
        assert expected in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()


def test_who_shares_a_shim() -> None:
    """A namespace, a pod or nobody, as configured; an annotation names a group in any case."""
    pod = json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": "p"}}).encode()
    named = json.dumps({"annotations": {"io.containerd.runc.v2.group": "g"}}).encode()

    assert [shim.group(spec, "a", grouping="namespace") for spec in (b"{}", pod, named)] == ["", "", "group/g"]
    assert [shim.group(spec, "a", grouping="pod") for spec in (b"{}", pod, named)] == [
        *("container/a", "group/p", "group/g")
    ]
    assert [shim.group(spec, "a", grouping="container") for spec in (b"{}", pod)] == ["container/a", "container/a"]
    assert shim.group(b'{"annotations": "io.containerd.runc.v2.group"}', "a", grouping="namespace") == ""


def test_arguments_are_those_of_go_programs() -> None:
    """One dash or two, with a space or an equals sign."""
    config = parse(["-namespace", "n", "--id=i", "-debug", "-address", "/a", "start"], {"TTRPC_ADDRESS": "/t"})

    assert (config.namespace, config.id, config.address, config.events, config.action) == (
        "n",
        "i",
        "/a",
        "/t",
        "start",
    )
    with pytest.raises(InvalidArgument, match="has no value"):
        parse(["-id"], {})
