"""An unmodified `ctr` of containerd 1.6 against the gateway's socket: what its users do all day."""

import json
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest

from support import image
from support.constellation import Constellation


def test_version_is_one_that_clients_parse(constellation: Constellation) -> None:
    """`ctr version` prints the server's version and no warning of a mismatch in kind."""
    output = constellation.ctr("version").output

    assert re.search(r"Server:\s+Version:\s+2\.3\.\d+\+carina\.", output)
    assert re.search(r"UUID: [0-9a-f-]{36}", output)


def test_plugins_are_listed_by_the_names_clients_know(constellation: Constellation) -> None:
    """`ctr plugins ls` shows containerd's types and ids, all healthy."""
    lines = constellation.ctr("plugins", "ls").output.splitlines()[1:]
    found = {tuple(line.split()[:2]) for line in lines}

    assert {
        ("io.containerd.snapshotter.v1", "overlayfs"),
        ("io.containerd.snapshotter.v1", "native"),
        ("io.containerd.content.v1", "content"),
        ("io.containerd.runtime.v2", "task"),
    } <= found
    assert [line for line in lines if not line.rstrip().endswith("ok")] == []


def test_namespaces(constellation: Constellation) -> None:
    """Namespaces are made, labelled, listed and removed; one that is in use is not removed."""
    constellation.ctr("namespaces", "create", "carina-other", "a=1")
    constellation.ctr("namespaces", "label", "carina-other", "b=2")
    assert "a=1,b=2" in constellation.ctr("namespaces", "ls").output

    constellation.ctr("namespaces", "rm", "carina-other")
    assert "carina-other" not in constellation.ctr("namespaces", "ls").output


def test_a_namespace_in_use_stays(constellation: Constellation, pulled: str) -> None:
    """Removing a namespace that holds an image is refused with the reason."""
    refused = constellation.ctr("namespaces", "rm", constellation.namespace, check=False)

    assert refused.status != 0
    assert "must be empty" in refused.error
    assert pulled in constellation.ctr("images", "ls", "-q").output


def test_images(constellation: Constellation, pulled: str) -> None:
    """A pulled image is listed, complete and unpacked, can be tagged and labelled, and is removed."""
    assert pulled in constellation.ctr("images", "ls").output
    checked = constellation.ctr("images", "check").output
    assert "complete (3/3)" in checked
    assert checked.rstrip().endswith("true")

    constellation.ctr("images", "tag", pulled, "example.com/other:1")
    constellation.ctr("images", "label", "example.com/other:1", "kept=yes")
    assert "kept=yes" in constellation.ctr("images", "ls", "name==example.com/other:1").output

    constellation.ctr("images", "rm", "--sync", pulled, "example.com/other:1")
    assert constellation.ctr("images", "ls", "-q").output == ""
    assert constellation.ctr("content", "ls", "-q").output == ""
    assert constellation.ctr("snapshots", "ls").output.splitlines()[1:] == []


def test_removal_of_an_image_cleans_the_disk(constellation: Constellation, pulled: str) -> None:
    """When `images rm --sync` returns, no blob and no layer is left on disk."""
    constellation.ctr("images", "rm", "--sync", pulled)

    blobs = [path for path in (constellation.root / "contentd" / "blobs").rglob("*") if path.is_file()]
    layers = list((constellation.root / "snapshotd-overlayfs" / "snapshots").iterdir())
    assert blobs == []
    assert layers == []


def test_content(constellation: Constellation, tmp_path: Path) -> None:
    """Bytes are ingested, listed, read back, labelled and removed."""
    data = os.urandom(300_000)
    blob = image.Blob(media_type="application/octet-stream", data=data)
    constellation.ctr("content", "ingest", "--expected-digest", blob.digest, "ref-1", stdin=data)

    assert blob.digest in constellation.ctr("content", "ls", "-q").output
    target = tmp_path / "copy"
    with target.open("wb") as output:
        command = ["ctr", "-a", str(constellation.socket), "-n", constellation.namespace, "content", "get", blob.digest]
        subprocess.run(command, stdout=output, check=True, timeout=30)
    assert target.read_bytes() == data
    constellation.ctr("content", "label", blob.digest, "kept=yes")
    assert "kept=yes" in constellation.ctr("content", "ls").output
    assert constellation.ctr("content", "active").output.splitlines()[1:] == []

    constellation.ctr("content", "rm", blob.digest)
    assert blob.digest not in constellation.ctr("content", "ls", "-q").output


def test_content_fetch_leaves_no_image(constellation: Constellation, reference: str) -> None:
    """`content fetch` brings an image's content and its record, without snapshots."""
    constellation.ctr("content", "fetch", "--plain-http", reference)

    assert len(constellation.ctr("content", "ls", "-q").output.split()) >= 4
    assert constellation.ctr("snapshots", "ls").output.splitlines()[1:] == []


def test_snapshots(constellation: Constellation, pulled: str, tmp_path: Path) -> None:
    """Snapshots are shown, prepared, mounted by the printed command, committed, viewed and removed."""
    rows = [line.split() for line in constellation.ctr("snapshots", "ls").output.splitlines()[1:]]
    top = next(row[0] for row in rows if row[0] not in {other[1] for other in rows})
    target = tmp_path / "mnt"
    target.mkdir()

    printed = constellation.ctr("snapshots", "prepare", "--target", str(target), "rw", top).output
    subprocess.run(printed.split(), check=True)
    try:
        assert (target / "bin" / "busybox").exists()
        (target / "new").write_bytes(b"x" * 10_000)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert (
        "└" in constellation.ctr("snapshots", "tree").output or "\\_" in constellation.ctr("snapshots", "tree").output
    )
    assert str(target) in constellation.ctr("snapshots", "mounts", str(target), "rw").output
    assert "rw" in constellation.ctr("snapshots", "usage", "rw").output

    constellation.ctr("snapshots", "commit", "mine", "rw")
    constellation.ctr("snapshots", "view", "look", "mine")
    kinds = {row[0]: row[-1] for row in map(str.split, constellation.ctr("snapshots", "ls").output.splitlines()[1:])}
    assert kinds["mine"] == "Committed"
    assert kinds["look"] == "View"

    refused = constellation.ctr("snapshots", "rm", "mine", check=False)
    assert refused.status != 0
    constellation.ctr("snapshots", "rm", "look")
    constellation.ctr("snapshots", "rm", "mine")
    assert "mine" not in constellation.ctr("snapshots", "ls").output


def test_run_passes_output_and_status_on(constellation: Constellation, pulled: str) -> None:
    """`run --rm` prints what the container prints, ends with its status, and leaves nothing."""
    printed = constellation.ctr("run", "--rm", pulled, "one", "echo", "hello")
    failed = constellation.ctr("run", "--rm", pulled, "two", "sh", "-c", "echo oh >&2; exit 7", check=False)

    assert printed.output == "hello\n"
    assert (failed.status, failed.error) == (7, "oh\n")
    assert constellation.ctr("containers", "ls", "-q").output == ""
    assert constellation.ctr("tasks", "ls", "-q").output == ""


def test_run_in_a_terminal(constellation: Constellation, pulled: str) -> None:
    """`run -t` gives the container a terminal that echoes what is typed and has our size."""
    parent, child = pty.openpty()
    command = [
        "ctr",
        "-a",
        str(constellation.socket),
        "-n",
        constellation.namespace,
        "run",
        "--rm",
        "-t",
        pulled,
        "tty",
    ]
    process = subprocess.Popen([*command, "sh"], stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        limit = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < limit, seen
            if select.select([parent], [], [], 0.5)[0]:
                try:
                    seen += os.read(parent, 4096)
                except OSError:
                    break

    try:
        read_until(b"# ")
        os.write(parent, b"tty; echo $((6*7))\n")
        read_until(b"42")
        os.write(parent, b"exit 3\n")
        assert process.wait(20) == 3
    finally:
        process.kill()
        process.wait()
        os.close(parent)

    assert b"/dev/pts/0" in seen


def test_tasks(constellation: Constellation, pulled: str) -> None:
    """A detached container is listed, executed in, measured, paused, resumed, killed and removed."""
    constellation.ctr("run", "-d", pulled, "sleeper", "sleep", "1000")
    listed = constellation.ctr("tasks", "ls").output
    assert re.search(r"sleeper\s+\d+\s+RUNNING", listed)

    executed = constellation.ctr(
        "tasks", "exec", "--exec-id", "e1", "sleeper", "sh", "-c", "echo in; exit 5", check=False
    )
    assert (executed.status, executed.output) == (5, "in\n")
    assert len(constellation.ctr("tasks", "ps", "sleeper").output.splitlines()) == 2
    assert "memory" in constellation.ctr("tasks", "metrics", "sleeper").output

    constellation.ctr("tasks", "pause", "sleeper")
    assert "PAUSED" in constellation.ctr("tasks", "ls").output
    constellation.ctr("tasks", "resume", "sleeper")
    assert "RUNNING" in constellation.ctr("tasks", "ls").output

    refused = constellation.ctr("tasks", "rm", "sleeper", check=False)
    assert refused.status != 0
    constellation.ctr("tasks", "kill", "-s", "SIGKILL", "sleeper")
    constellation.wait_for("tasks", "ls", text="STOPPED")
    constellation.ctr("tasks", "rm", "sleeper", check=False)
    assert constellation.ctr("tasks", "ls", "-q").output == ""


def test_containers(constellation: Constellation, pulled: str) -> None:
    """A container's record is made, shown, labelled and removed without any task."""
    constellation.ctr("containers", "create", pulled, "record", "true")
    constellation.ctr("containers", "label", "record", "kept=yes")
    info = json.loads(constellation.ctr("containers", "info", "record").output)

    assert info["Image"] == pulled
    assert info["Labels"]["kept"] == "yes"
    assert info["Runtime"]["Name"] == "io.containerd.runc.v2"
    again = constellation.ctr("containers", "create", pulled, "record", "true", check=False)
    assert again.status != 0
    assert "already exists" in again.error
    constellation.ctr("containers", "rm", "record")
    assert constellation.ctr("containers", "ls", "-q").output == ""


def test_leases(constellation: Constellation) -> None:
    """Leases are made, listed and removed."""
    constellation.ctr("leases", "create", "--id", "held", "purpose=test")
    assert "purpose=test" in constellation.ctr("leases", "ls").output
    constellation.ctr("leases", "rm", "held")
    assert "held" not in constellation.ctr("leases", "ls", "-q").output


def test_events_show_all_of_it(constellation: Constellation, reference: str) -> None:
    """A subscriber sees images, snapshots, containers and tasks come and go."""
    command = ["ctr", "-a", str(constellation.socket), "-n", constellation.namespace, "events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
        try:
            time.sleep(0.5)
            constellation.ctr("images", "pull", "--plain-http", reference)
            constellation.ctr("run", "--rm", reference, "seen", "true")
            constellation.ctr("images", "rm", "--sync", reference)
            time.sleep(0.5)
        finally:
            subscriber.terminate()
        output = subscriber.stdout.read() if subscriber.stdout else ""
    topics = re.findall(r"(/\w+/[\w-]+)", output)

    expected = [
        *("/images/create", "/snapshot/prepare", "/snapshot/commit", "/containers/create", "/tasks/create"),
        *("/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete", "/images/delete"),
    ]
    assert [topic for topic in expected if topic not in topics] == []
    order = [topics.index(topic) for topic in ("/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")]
    assert order == sorted(order)


def test_import(constellation: Constellation, tmp_path: Path) -> None:
    """An OCI archive written by skopeo is imported and runs."""
    layout = image.build(index=False).write(tmp_path / "layout", "1.0")
    archive = tmp_path / "image.tar"
    source, target = f"oci:{layout}:1.0", f"oci-archive:{archive}:example.com/imported:1.0"
    subprocess.run(["skopeo", "--insecure-policy", "copy", source, target], check=True, capture_output=True)
    constellation.ctr("images", "import", str(archive))

    assert "example.com/imported:1.0" in constellation.ctr("images", "ls", "-q").output
    ran = constellation.ctr("run", "--rm", "example.com/imported:1.0", "imported", "cat", "/etc/motd")
    assert ran.output == "Carina\n"


def test_run_on_the_native_snapshotter(constellation: Constellation, reference: str) -> None:
    """Another snapshotter works the same."""
    constellation.ctr("images", "pull", "--plain-http", "--snapshotter", "native", reference)
    ran = constellation.ctr("run", "--rm", "--snapshotter", "native", reference, "natural", "cat", "/etc/motd")

    assert ran.output == "Carina\n"


def test_namespaces_do_not_see_each_other(constellation: Constellation, pulled: str) -> None:
    """Images, content, snapshots, containers and tasks of one namespace don't exist in another."""
    constellation.ctr("run", "-d", pulled, "mine", "sleep", "1000")
    other = ["ctr", "-a", str(constellation.socket), "-n", "carina-elsewhere"]

    for listing in (["images", "ls", "-q"], ["content", "ls", "-q"], ["containers", "ls", "-q"], ["tasks", "ls", "-q"]):
        assert subprocess.run([*other, *listing], capture_output=True, text=True, check=True).stdout == ""
    snapshots = subprocess.run([*other, "snapshots", "ls"], capture_output=True, text=True, check=True).stdout
    assert snapshots.splitlines()[1:] == []
    killed = subprocess.run([*other, "tasks", "kill", "mine"], capture_output=True, text=True, check=False)
    assert "not found" in killed.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("images", "pull", "--plain-http", "localhost:1/none:1"), "connection refused"),
        (("run", "--rm", "absent:1", "x"), "not found"),
        (("content", "get", "sha256:12"), "invalid"),
        (("snapshots", "--snapshotter", "nope", "ls"), "nope"),
        (("containers", "info", "absent"), "not found"),
        (("tasks", "kill", "absent"), "not found"),
    ],
)
def test_bad_input_is_a_clear_sentence(constellation: Constellation, arguments: tuple[str, ...], sentence: str) -> None:
    """What can't be is refused in a sentence that names it."""
    refused = constellation.ctr(*arguments, check=False)

    assert refused.status != 0
    assert sentence in refused.error.lower()
    assert "Traceback" not in refused.error
