"""What `carina` has of ctr's commands, on a whole constellation."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.constellation import BIN, Constellation
from support.registry import Registry


def rows(constellation: Constellation, *command: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(constellation.carina(*command, "--format", "json").output)
    return found


def test_create_start_exec_and_remove(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """A container is created without being started, started with its output elsewhere, and executed in by name."""
    constellation.carina(
        "containers", "create", "--label", "a=b", "--snapshotter-label", "x=y", pulled, "made", "cat", "/etc/motd"
    )
    assert rows(constellation, "tasks", "ls") == []
    (made,) = rows(constellation, "containers", "ls")
    assert (made["id"], made["image"]) == ("made", pulled)
    assert constellation.carina("snapshots", "info", "made").output.count('"x": "y"') == 1
    log, pid = tmp_path / "out", tmp_path / "pid"
    constellation.carina("tasks", "start", "--log-uri", f"file://{log}", "--pid-file", str(pid), "made")
    assert log.read_text() == "Carina\n"
    assert pid.read_text().isdecimal()
    assert constellation.carina("tasks", "start", "--null-io", "made").output == ""
    constellation.carina("containers", "delete", "made")

    constellation.carina("run", "-d", pulled, "lasting", "sleep", "1000")
    told = constellation.carina("tasks", "exec", "--exec-id", "e", "--user", "7:8", "lasting", "id").output
    assert told.startswith("uid=7 gid=8")
    constellation.carina("tasks", "exec", "-d", "--exec-id", "f", "lasting", "sleep", "500")
    constellation.carina("tasks", "rm", "-f", "--exec-id", "f", "lasting")
    assert [row["status"] for row in rows(constellation, "tasks", "ls")] == ["RUNNING"]
    assert "pids.current" in constellation.carina("tasks", "metrics", "lasting").output
    assert "lasting" in constellation.carina("snapshots", "tree").output
    assert "container lasting" in constellation.carina("images", "tree").output


def test_specification_of_ones_own(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """`oci spec` is where a specification of one's own begins; `run --config` and `--rootfs` need no image."""
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    ran = constellation.carina("run", "--rm", "--rootfs", str(root), "bare", "/bin/busybox", "echo", "from a directory")
    assert ran.output == "from a directory\n"
    spec = json.loads(constellation.carina("oci", "spec").output)
    spec["process"]["args"] = ["/bin/busybox", "echo", "from a file"]
    spec["root"] = {"path": str(root)}
    spec["linux"]["cgroupsPath"] = f"/{constellation.namespace}/filed"
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    assert constellation.carina("run", "--rm", "--config", str(file), "filed").output == "from a file\n"
    refused = constellation.carina("run", "--config", "/bin/busybox", "filed", check=False)
    assert (refused.status, "is not a runtime specification" in refused.error) == (2, True)


def test_attach(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """Attaching takes over the FIFOs of a task whose client has gone; a task without any has nothing to attach to."""
    fifos = tmp_path / "fifos"
    constellation.ctr(
        "run", "-d", "--fifo-dir", str(fifos), pulled, "attached", "sh", "-c", "sleep 2; echo late; exit 3"
    )
    told = constellation.carina("tasks", "attach", "attached", check=False)
    assert (told.status, told.output) == (3, "late\n")
    constellation.carina("tasks", "rm", "attached")
    constellation.carina("run", "-d", pulled, "silent", "sleep", "1000")
    refused = constellation.carina("tasks", "attach", "silent", check=False)
    assert (refused.status, "there is nothing to attach to" in refused.error) == (1, True)


def test_shim_spoken_to(constellation: Constellation, pulled: str) -> None:
    """`shim` asks a container's shim itself."""
    constellation.carina("run", "-d", pulled, "shimmed", "sleep", "1000")
    assert json.loads(constellation.carina("shim", "--id", "shimmed", "state").output)["status"] == "RUNNING"
    assert constellation.carina("shim", "--id", "shimmed", "exec", "true").output.strip().isdecimal()
    refused = constellation.carina("shim", "--id", "nobody", "state", check=False)
    assert (refused.status, "task nobody has no shim" in refused.error) == (1, True)


def test_content_and_snapshots(constellation: Constellation, pulled: str) -> None:
    """Blobs are edited, layers let go of, images unpacked by digest, and differences written as layers."""
    (image,) = rows(constellation, "images", "ls")
    digest = str(image["digest"])
    top = constellation.carina("snapshots", "unpack", digest).output.strip()
    assert f"{top}  ← image {pulled}" in constellation.carina("snapshots", "tree").output
    environment = {**os.environ, "EDITOR": "sed -i s/schemaVersion/schemaversion/"}
    command = [
        str(BIN / "carina"),
        "-a",
        constellation.address,
        "-n",
        constellation.namespace,
        "content",
        "edit",
        digest,
    ]
    edited = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert "schemaversion" in constellation.carina("content", "get", edited).output
    layer = subprocess.run([*command[:5], "snapshots", "diff", top], capture_output=True, check=True).stdout
    names = subprocess.run(["tar", "tz"], input=layer, capture_output=True, check=True).stdout.decode()
    assert "etc/motd" in names
    constellation.carina("gc", "run")  # the layer was printed, and is kept by nobody
    before = len(rows(constellation, "content", "ls"))
    assert (
        "2 references to layers would be removed"
        in constellation.carina("content", "prune", "references", "--dry").output
    )
    constellation.carina("content", "prune", "references")
    assert len(rows(constellation, "content", "ls")) == before - 2
    for lease in constellation.carina("leases", "ls", "-q").output.split():
        constellation.carina("leases", "rm", lease)


def test_images_as_ctr_has_them(
    constellation: Constellation, registry: Registry, reference: str, tmp_path: Path
) -> None:
    """pull, push, export and import are below `images`, too, in ctr's order of arguments; programs are installed."""
    told = constellation.carina("images", "pull", "--plain-http", "--print-chainid", reference).output
    assert "image chain ID: sha256:" in told
    other = registry.reference("test/pushed", "1")
    constellation.carina("images", "push", "--plain-http", other, reference)
    constellation.carina("images", "delete", reference)
    constellation.carina("content", "fetch", "--plain-http", other)
    archive = tmp_path / "i.tar"
    constellation.carina("images", "export", str(archive), other)
    constellation.carina("images", "rm", "--sync", other)
    assert other in constellation.carina("images", "import", str(archive)).output
    place = tmp_path / "opt"
    installed = constellation.carina("install", "--path", str(place), other).output
    assert f"{place}/bin/busybox\n" in installed
    assert os.access(place / "bin" / "busybox", os.X_OK)
    again = constellation.carina("install", "--path", str(place), other, check=False)
    assert (again.status, "is there already: --replace replaces it" in again.error) == (1, True)


def test_prune(constellation: Constellation, pulled: str) -> None:
    """Images that no container was made from go, the others stay."""
    constellation.carina("images", "tag", pulled, "registry.example/unused:1")
    constellation.carina("containers", "create", pulled, "user")
    assert constellation.carina("images", "prune", check=False).status == 2
    assert constellation.carina("images", "prune", "--all", "--sync").output == "registry.example/unused:1\n"
    assert constellation.carina("images", "ls", "-q").output == f"{pulled}\n"


def test_server(constellation: Constellation) -> None:
    """What the server says of itself, its deprecations, and a runtime."""
    assert json.loads(constellation.carina("info").output)["server"]["pid"] > 0
    assert rows(constellation, "deprecations", "list") == []
    assert rows(constellation, "sandboxes", "ls") == []
    runtime = "io.containerd.carina.v1"
    assert runtime in constellation.carina("plugins", "inspect-runtime", "--runtime", runtime).output
    assert "requires" in constellation.carina("plugins", "ls", "-d").output


def test_namespace_with_its_control_group(constellation: Constellation, pulled: str) -> None:
    """Removing a namespace can remove its control group."""
    name = f"{constellation.namespace}-gone"
    constellation.carina("namespaces", "create", name)
    groups = [path for path in Path("/sys/fs/cgroup").glob("*") if path.is_dir()]
    made = groups[0] / name
    made.mkdir()
    try:
        constellation.carina("namespaces", "remove", "--cgroup", name)
        assert not made.exists()
    finally:
        if made.exists():
            made.rmdir()


def test_logs_of_services(constellation: Constellation) -> None:
    """The log is found by asking the kernel where the service writes: here the file that the supervisor was given."""
    told = constellation.carina("logs", "--state", str(constellation.state), "metadatad").output
    assert "metadatad ready" in told
    assert "taskd ready" in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_commands_tidy_up(constellation: Constellation, pulled: str, tmp_path: Path, number: int) -> None:
    """A signal at any moment of a conversion or an export leaves neither lease, image nor file."""
    base = [str(BIN / "carina"), "-a", constellation.address, "-n", constellation.namespace]
    archive = tmp_path / "cut.tar"
    commands = (
        ["images", "convert", "--zstd", pulled, "converted:1"],
        ["images", "export", str(archive), pulled],
    )
    for delay in (0.1, 0.25, 0.4, 0.6):
        for command in commands:
            process = subprocess.Popen([*base, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            time.sleep(delay)
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
            assert process.returncode in (0, 128 + number, -number), error
            assert "a bug" not in error
            assert rows(constellation, "leases", "ls") == []
            assert [path.name for path in tmp_path.iterdir() if path != archive] == []
            archive.unlink(missing_ok=True)
            constellation.carina("images", "rm", "converted:1", check=False)
