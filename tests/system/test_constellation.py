"""The constellation as a whole: up, down, killed part by part, external parts plugged in, bad input."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image
from support.constellation import BIN, Constellation
from support.registry import Registry

DAEMONS = ("contentd", "snapshotd-overlayfs", "snapshotd-native", "metadatad", "imaged", "taskd", "gatewayd")
PLUGIN = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "copysnapshotter.py"


def pids(constellation: Constellation) -> dict[str, int]:
    """Service -> pid, of those that `carina status` shows as healthy."""
    lines = constellation.carina("status", *constellation.paths, check=False).output.splitlines()[1:]
    return {fields[0]: int(fields[2]) for fields in map(str.split, lines) if fields[1] == "ok"}


def wait_healthy(constellation: Constellation) -> dict[str, int]:
    limit = time.monotonic() + 20
    while set(DAEMONS) - set(found := pids(constellation)):
        assert time.monotonic() < limit, (found, constellation.log.read_text()[-3000:])
        time.sleep(0.1)
    return found


def test_status_shows_every_service(constellation: Constellation) -> None:
    """Each service is listed with health, pid, version and memory, and is called by its name in ps."""
    found = wait_healthy(constellation)
    output = constellation.carina("status", *constellation.paths).output

    assert set(DAEMONS) == set(found)
    assert re.search(r"gatewayd\s+ok\s+\d+\s+2\.3\.\d+\+carina\S+\s+\S+\s+[\d.]+ MiB", output)
    for name, pid in found.items():
        assert Path(f"/proc/{pid}/cmdline").read_text().startswith(name.partition("-")[0])


def test_sockets_and_directories_are_closed_to_others(constellation: Constellation) -> None:
    """Root is 0700, state 0711, sockets 0660, and none is in the abstract name space."""
    assert constellation.root.stat().st_mode & 0o777 == 0o700
    assert constellation.state.stat().st_mode & 0o777 == 0o711
    for path in constellation.state.glob("*.sock*"):
        if path.is_socket():
            assert path.stat().st_mode & 0o007 == 0, path
    ours = {str(pid) for pid in pids(constellation).values()}
    abstract = subprocess.run(["ss", "-xlpH"], capture_output=True, text=True, check=False).stdout
    assert [line for line in abstract.splitlines() if " @" in line and any(f"pid={pid}," in line for pid in ours)] == []


def test_each_service_may_be_killed_while_a_container_runs(constellation: Constellation, pulled: str) -> None:
    """After SIGKILL of any one service the supervisor starts it again and the container is managed as before."""
    constellation.ctr("run", "-d", pulled, "survivor", "sleep", "1000")
    before = constellation.wait_for("tasks", "ls", text="RUNNING").output.split()[-2]

    for daemon in DAEMONS:
        found = wait_healthy(constellation)
        os.kill(found[daemon], signal.SIGKILL)
        limit = time.monotonic() + 20
        while pids(constellation).get(daemon, found[daemon]) == found[daemon]:
            assert time.monotonic() < limit, daemon
            time.sleep(0.1)
        wait_healthy(constellation)

        assert constellation.wait_for("tasks", "ls", text="RUNNING").output.split()[-2] == before, daemon
        executed = constellation.ctr("tasks", "exec", "--exec-id", f"after-{daemon}", "survivor", "echo", "alive")
        assert executed.output == "alive\n", daemon

    constellation.ctr("tasks", "kill", "-s", "SIGKILL", "survivor")
    constellation.wait_for("tasks", "ls", text="STOPPED")


def test_the_command_line_does_the_main_job(constellation: Constellation, reference: str) -> None:
    """carina pull, run, exec, images rm: what ctr does, in its own words."""
    assert reference in constellation.carina("pull", "--plain-http", reference).output
    assert reference in constellation.carina("images", "ls", "-q").output
    assert "complete" in constellation.carina("images", "check").output
    ran = constellation.carina("run", "--rm", reference, "one", "sh", "-c", "cat /etc/motd; exit 4", check=False)
    assert (ran.output, ran.status) == ("Carina\n", 4)

    constellation.carina("run", "-d", reference, "two", "sleep", "1000")
    executed = constellation.carina(
        "tasks", "exec", "--exec-id", "e", "two", "sh", "-c", "echo in; exit 6", check=False
    )
    assert (executed.output, executed.status) == ("in\n", 6)
    assert "two" in constellation.carina("tasks", "ls", "-q").output
    constellation.carina("tasks", "rm", "--force", "two")
    constellation.carina("containers", "rm", "two")
    constellation.carina("images", "rm", "--sync", reference)
    assert constellation.carina("content", "ls", "-q").output == ""
    assert constellation.carina("snapshots", "ls", "-q").output == ""


def test_users_and_labels_of_images(constellation: Constellation, registry: Registry) -> None:
    """A user is looked up in the image with its groups; labels that would steer the daemon are not taken over."""
    run = {"User": "nobody", "Labels": {"containerd.io/restart.policy": "always", "maintainer": "us"}, "Cmd": ["id"]}
    reference = registry.push("test/labelled", "1", image.build(run=run))
    constellation.carina("pull", "--plain-http", reference)
    ran = constellation.carina("run", reference, "labelled", "id", "-u")
    info = constellation.carina("containers", "info", "labelled").output
    constellation.carina("containers", "rm", "labelled")

    assert ran.output == "65534\n"
    assert "maintainer" in info
    assert "containerd.io/restart.policy" not in info


@pytest.fixture
def plugin(constellation: Constellation) -> Iterator[str]:
    """The demo's snapshotter in its own process, plugged in live as `copy`."""
    address = f"unix://{constellation.directory}/copy.sock"
    command = [
        sys.executable,
        str(PLUGIN),
        str(constellation.directory / "copies"),
        str(constellation.directory / "copy.sock"),
    ]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            limit = time.monotonic() + 20
            while not (constellation.directory / "copy.sock").exists():
                assert time.monotonic() < limit
                time.sleep(0.05)
            constellation.carina("plugins", "add", "copy", "--type", "snapshot", "--address", address)
            yield "copy"
            constellation.clean_namespace()
            constellation.carina("gc", "run", "--sync")
            constellation.carina("plugins", "rm", "copy")
        finally:
            process.terminate()
            process.wait(10)


def test_an_external_snapshotter_is_plugged_in(constellation: Constellation, reference: str, plugin: str) -> None:
    """An image is pulled through a snapshotter in another process, and a container runs on it."""
    constellation.carina("pull", "--plain-http", "--snapshotter", plugin, reference)
    assert len(constellation.carina("snapshots", "--snapshotter", plugin, "ls", "-q").output.split()) == 2
    ran = constellation.ctr("run", "--rm", "--snapshotter", plugin, reference, "outside", "cat", "/etc/motd")
    assert ran.output == "Carina\n"
    assert "copy" in constellation.ctr("plugins", "ls").output
    used = constellation.carina("plugins", "rm", plugin, check=False)
    assert used.status == 1
    assert "copy" in used.error


def test_up_twice_on_one_root_is_one_clear_error(constellation: Constellation) -> None:
    """The second supervisor says who has the root, changes nothing, and ends."""
    before = wait_healthy(constellation)
    again = subprocess.run(
        [BIN / "carina", "up", *constellation.paths], capture_output=True, text=True, timeout=30, check=False
    )

    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert f"root {constellation.root} is in use by a running constellation" in again.stderr
    assert wait_healthy(constellation) == before


def test_a_killed_supervisor_is_replaced(tmp_path: Path) -> None:
    """Services go on without their supervisor; the next one replaces them, and down stops everything."""
    with Constellation() as constellation:
        before = wait_healthy(constellation)
        constellation.supervisor.kill()
        constellation.supervisor.wait()
        assert pids(constellation) == before

        constellation.start()
        after = wait_healthy(constellation)
        assert set(before.values()) & set(after.values()) == set()
        down = constellation.carina("down", *constellation.paths)
        assert "carina is down" in down.output
        assert constellation.supervisor.wait(10) == 0
        assert pids(constellation) == {}
        assert [path for path in constellation.state.glob("*.sock*") if path.is_socket()] == []


def test_up_detached_returns_when_ready() -> None:
    """`up --detach` comes back when everything answers, and `down` ends it."""
    constellation = Constellation()
    try:
        up = subprocess.run(
            [BIN / "carina", "up", "--detach", *constellation.paths],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (up.returncode, up.stdout) == (0, f"carina is ready on {constellation.address}\n")
        assert constellation.carina("status", *constellation.paths).status == 0
        assert "2.3" in constellation.ctr("version").output
    finally:
        constellation.carina("down", *constellation.paths)
        constellation.__exit__()


def refused(*arguments: str, **more: object) -> str:
    """Standard error of a `carina` command that must fail with one line."""
    done = subprocess.run([BIN / "carina", *arguments], capture_output=True, text=True, timeout=60, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return str(done.stderr)


def test_up_needs_root() -> None:
    """Without root there is one sentence that says so."""

    def nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)

    probe = subprocess.run([sys.executable, "-c", ""], preexec_fn=nobody, check=False)
    if probe.returncode:
        pytest.skip("the interpreter of this environment is not readable for other users")
    assert (
        refused("up", preexec_fn=nobody) == "carina: carina up needs root: it mounts file systems and runs containers\n"
    )


def test_a_socket_path_that_is_too_long(tmp_path: Path) -> None:
    """A state directory too deep for a unix socket is named, with the limit."""
    deep = tmp_path / ("d" * 100)
    said = refused("up", "--root", str(tmp_path / "root"), "--state", str(deep))

    assert "a unix socket's path has at most 107" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pull", "localhost:1/none:1"), "localhost:1"),
        (("pull", "UPPER CASE"), "UPPER CASE"),
        (("run", "--rm", "localhost/absent:1", "x"), "localhost/absent:1"),
        (("content", "get", "sha256:12"), "digest 'sha256:12' is not valid"),
        (("content", "rm", f"sha256:{'0' * 64}"), f"content sha256:{'0' * 64} does not exist"),
        (("snapshots", "--snapshotter", "nope", "ls"), "nope"),
        (("containers", "info", "absent"), "absent"),
        (("tasks", "kill", "absent"), "absent"),
        (("namespaces", "create", "a/b"), "a/b"),
        (("plugins", "add", "x", "--type", "snapshot", "--address", "unix:///absent.sock"), "/absent.sock"),
        (("plugins", "rm", "nope"), "nope"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    constellation: Constellation, arguments: tuple[str, ...], sentence: str
) -> None:
    """What can't be is refused in one line that names it, and maybe one more that says what to do."""
    said = constellation.carina(*arguments, check=False)
    first, *hints = said.error.splitlines()

    assert said.status == 1
    assert sentence in first
    assert len(hints) <= 1
    assert all(hint.startswith("  ") for hint in hints)
    assert "Traceback" not in constellation.log.read_text()


def test_bad_names_in_the_context(constellation: Constellation) -> None:
    """A namespace that can't be, and an address where nobody listens, are named."""
    assert "namespace 'a b' is not valid" in refused("-a", constellation.address, "-n", "a b", "images", "ls")
    assert "/absent.sock" in refused("-a", "unix:///absent.sock", "images", "ls")


def test_names_in_use_are_refused(constellation: Constellation, pulled: str) -> None:
    """A snapshot key, a container name and a task that exist already stay as they are."""
    constellation.carina("run", "-d", pulled, "taken", "sleep", "1000")

    for arguments in (("run", "-d", pulled, "taken", "true"), ("snapshots", "prepare", "taken")):
        said = constellation.carina(*arguments, check=False)
        assert said.status == 1
        assert "taken" in said.error
        assert "exists" in said.error
    assert "RUNNING" in constellation.carina("tasks", "ls").output


def test_what_cannot_run_leaves_nothing(constellation: Constellation, pulled: str) -> None:
    """A missing command, runtime or working directory is named, and neither container nor task nor snapshot stays."""
    before = constellation.carina("snapshots", "ls", "-q").output
    for arguments, sentence in (
        (("run", "--rm", pulled, "broken", "/no/such/command"), "/no/such/command"),
        (("run", "--rm", "--runtime", "io.containerd.absent.v9", pulled, "broken", "true"), "absent"),
        (("run", "--rm", "--snapshotter", "absent", pulled, "broken", "true"), "absent"),
    ):
        said = constellation.carina(*arguments, check=False)
        assert said.status == 1, said
        assert sentence in said.error
    assert constellation.carina("containers", "ls", "-q").output == ""
    assert constellation.carina("tasks", "ls", "-q").output == ""
    assert constellation.carina("snapshots", "ls", "-q").output == before


def test_a_full_disk_while_pulling() -> None:
    """On a full disk the pull says so, nothing half-recorded stays, and it works when there is room."""
    constellation = Constellation()
    constellation.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(constellation.root)], check=True)
    noise = image.layer(image.tar({"noise": os.urandom(20_000_000)}))
    with Registry(constellation.directory / "registry") as registry, constellation:
        reference = registry.push("test/large", "1", image.build(layers=[noise]))
        said = constellation.carina("pull", "--plain-http", reference, check=False)
        assert said.status == 1
        assert re.search("no space left|disk is full", said.error.lower())
        assert constellation.carina("images", "ls", "-q").output == ""

        subprocess.run(["mount", "-o", "remount,size=120m", str(constellation.root)], check=True)
        constellation.carina("pull", "--plain-http", reference)
        assert reference in constellation.carina("images", "ls", "-q").output


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_layer_is_refused_and_nothing_is_recorded(tmp_path: Path, damage: str) -> None:
    """A layer that is cut short, or has other bytes, fails the pull by name; whole again, it is pulled."""
    with Constellation() as constellation, Registry(tmp_path / "registry") as registry:
        layer = image.layer(image.tar({"noise": os.urandom(3_000_000)}))
        reference = registry.push("test/damaged", "1", image.build(layers=[image.layer(image.busybox_tar()), layer]))
        hexadecimal = layer.blob.digest.partition(":")[2]
        stored = next((tmp_path / "registry").rglob(f"{hexadecimal}/data"))
        stored.write_bytes(layer.blob.data[:1_000_000] if damage == "truncated" else bytes(layer.blob.size))

        said = constellation.carina("pull", "--plain-http", reference, check=False)
        assert said.status == 1
        assert hexadecimal in said.error
        assert said.error.count("\n") == 1
        failed = constellation.ctr("images", "pull", "--plain-http", reference, check=False)
        assert failed.status != 0
        assert constellation.carina("images", "ls", "-q").output == ""

        stored.write_bytes(layer.blob.data)
        constellation.carina("pull", "--plain-http", reference)
        assert "complete (3/3)" in constellation.carina("images", "check").output


def test_a_socket_in_use_is_named(tmp_path: Path) -> None:
    """A service whose socket another process has says so, and the constellation does not come up half."""
    state = tmp_path / "s"
    state.mkdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(state / "carina.sock"))
        stranger.listen()
        said = refused("up", "--root", str(tmp_path / "r"), "--state", str(state))

    assert "carina.sock" in said
    assert f"pid {os.getpid()}" in said
    assert "Traceback" not in said
