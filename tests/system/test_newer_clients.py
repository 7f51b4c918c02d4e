"""Unmodified clients of containerd 2.x and Docker 28: what they do differently from the older ones of Debian 12."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from carina import context
from carina.api.containerd.services.sandbox import v1 as sandboxes
from carina.rpc.client import connect
from carina.sandboxes import Sandbox
from carina.sandboxes.client import RemoteSandboxStore, to_wire
from carina.typed import Runtime
from support.clients import DIRECTORY, missing, program
from support.constellation import BIN, Constellation
from support.content import containerd
from support.dockerd import Dockerd
from support.registry import Registry

Ctr = Callable[..., str]
needs_ctr = pytest.mark.skipif(bool(missing("ctr")), reason=missing("ctr") or "here")
needs_containerd = pytest.mark.skipif(bool(missing("ctr", "containerd")), reason=missing("ctr", "containerd") or "here")
needs_dockerd = pytest.mark.skipif(
    bool(missing("dockerd", "docker-buildx")), reason=missing("dockerd", "docker-buildx") or "here"
)
pytestmark = pytest.mark.root


def _ctr(address: str, namespace: str) -> Ctr:
    def call(*arguments: str, status: int = 0) -> str:
        command = [program("ctr"), "--address", address, "--namespace", namespace, *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, f"{arguments}: {done}"
        return done.stdout

    return call


@pytest.fixture
def ctr(constellation: Constellation) -> Ctr:
    return _ctr(str(constellation.socket), constellation.namespace)


@needs_ctr
def test_ctr_pulls_by_transfer_and_runs(ctr: Ctr, reference: str) -> None:
    """A pull that the server does for `ctr`, with its progress, and a container made from it."""
    shown = ctr("images", "pull", "--plain-http", reference)
    assert "manifest" in shown
    assert "Pulling from OCI Registry" in shown
    assert "complete (3/3)" in ctr("images", "check")
    assert ctr("run", "--rm", reference, "newer", "echo", "hello") == "hello\n"
    ctr("run", "--rm", reference, "newer", "sh", "-c", "exit 7", status=7)


@needs_ctr
def test_ctr_pulls_by_itself(ctr: Ctr, reference: str) -> None:
    """`--local`: the client fetches and unpacks over our content and snapshots."""
    ctr("images", "pull", "--local", "--plain-http", reference)

    assert "complete (3/3)" in ctr("images", "check")
    assert len(ctr("images", "usage", reference).splitlines()) == 3


@needs_ctr
def test_ctr_moves_images_by_streams(ctr: Ctr, reference: str, registry: Registry, tmp_path: Path) -> None:
    """Export and import travel on a stream, a tag and a push are the server's work."""
    ctr("images", "pull", "--plain-http", reference)
    ctr("images", "export", str(tmp_path / "image.tar"), reference)
    target = registry.reference("newer/pushed", "1")
    ctr("images", "tag", reference, target)
    ctr("images", "push", "--plain-http", target)
    ctr("images", "rm", "--sync", reference, target)
    assert ctr("images", "ls", "-q") == ""
    ctr("images", "import", str(tmp_path / "image.tar"))
    assert ctr("images", "ls", "-q").split() == [reference]
    ctr("images", "pull", "--plain-http", target)
    assert sorted(ctr("images", "ls", "-q").split()) == sorted([reference, target])


@needs_ctr
def test_ctr_manages_a_task(ctr: Ctr, reference: str) -> None:
    """A detached container's processes, pause and end."""
    ctr("images", "pull", "--plain-http", reference)
    ctr("run", "--detach", reference, "newer-task", "sleep", "1000")
    try:
        assert ctr("tasks", "exec", "--exec-id", "e", "newer-task", "echo", "inside") == "inside\n"
        assert "newer-task" in ctr("tasks", "ls")
        ctr("tasks", "pause", "newer-task")
        assert "PAUSED" in ctr("tasks", "ls")
        ctr("tasks", "resume", "newer-task")
        assert "pids.current" in ctr("tasks", "metrics", "newer-task")
    finally:
        ctr("tasks", "delete", "--force", "newer-task")
        ctr("containers", "rm", "newer-task")


@needs_ctr
def test_ctr_sees_no_failed_plugin(ctr: Ctr) -> None:
    """What Introspection lists is what a client of 2.x expects, and none of it failed."""
    rows = [line.split() for line in ctr("plugins", "ls").splitlines()[1:]]

    assert {row[-1] for row in rows} <= {"ok", "skip"}
    assert {"io.containerd.transfer.v1", "io.containerd.streaming.v1", "io.containerd.snapshotter.v1"} <= {
        row[0] for row in rows
    }


@needs_containerd
def test_a_pull_leaves_the_records_of_containerd_2(
    constellation: Constellation, ctr: Ctr, reference: str, tmp_path: Path
) -> None:
    """The Transfer service of a real containerd 2.x and ours: the same content, labels, images and snapshots."""

    def records(call: Ctr) -> tuple[object, ...]:
        blobs = sorted(
            [line.split("\t")[0], *sorted(line.split("\t")[-1].split(","))] for line in _rows(call, "content")
        )
        images = sorted(line.split()[:3] for line in _rows(call, "images"))
        return blobs, images, sorted(line.split() for line in _rows(call, "snapshots"))

    with containerd(tmp_path, program=program("containerd")) as address:
        theirs = _ctr(address.removeprefix("unix://"), "same")
        theirs("images", "pull", "--plain-http", reference)
        expected = records(theirs)
    ctr("images", "pull", "--plain-http", reference)

    assert records(ctr) == expected


@needs_ctr
def test_ctr_runs_sandboxes(ctr: Ctr, tmp_path: Path) -> None:
    """`ctr sandboxes run` makes one on our shim, lists it and removes it; another runtime's shim is named."""
    pod = tmp_path / "pod.json"
    pod.write_text('{"metadata": {"name": "p", "namespace": "d", "uid": "u"}}')
    ctr("sandboxes", "run", "--runtime", "io.containerd.carina.v1", str(pod), "box")
    assert [line.split()[0] for line in _rows(ctr, "sandboxes") if line.strip()] == ["box"]
    ctr("sandboxes", "rm", "--force", "box")
    ctr("sandboxes", "run", "--runtime", "io.containerd.nothing.v1", str(pod), "none", status=1)
    ctr("sandboxes", "rm", "none")
    assert [line for line in _rows(ctr, "sandboxes") if line.strip()] == []


@needs_containerd
async def test_a_newer_containerd_runs_sandboxes_on_our_shim(tmp_path: Path) -> None:
    """containerd 2.x's own controller starts our shim, and the sandbox lives and ends as under ours."""
    namespace = f"carina-theirs-{os.getpid()}"
    async with _with_sandboxes(tmp_path) as address:
        channel = connect(address)
        store, controller = RemoteSandboxStore(channel), sandboxes.ControllerStub(channel)
        record = Sandbox(id="box", runtime=Runtime(name="io.containerd.carina.v1"), sandboxer="shim")
        name: dict[str, Any] = {"sandbox_id": "box", "sandboxer": "shim"}
        try:
            with context.within(namespace=namespace), context.deadline(60):
                await store.create(record)
                await controller.create(sandboxes.ControllerCreateRequest(**name, sandbox=to_wire(record)))
                started = await controller.start(sandboxes.ControllerStartRequest(**name))
                status = await controller.status(sandboxes.ControllerStatusRequest(**name))
                assert (status.state, status.pid) == ("SANDBOX_READY", started.pid)
                assert "containerd-shim-carina-v1" in Path(f"/proc/{started.pid}/cmdline").read_text()
                await controller.stop(sandboxes.ControllerStopRequest(**name))
                assert (await controller.wait(sandboxes.ControllerWaitRequest(**name))).exit_status == 0
                await controller.shutdown(sandboxes.ControllerShutdownRequest(**name))
                await store.delete("box")
            async with asyncio.timeout(60):
                while Path(f"/proc/{started.pid}").exists():
                    await asyncio.sleep(0.05)
        finally:
            channel.close()


@asynccontextmanager
async def _with_sandboxes(path: Path) -> AsyncIterator[str]:
    """A containerd 2.x with its sandbox controllers, which come with CRI only."""
    (path / "config.toml").write_text(
        f'version = 3\nroot = "{path}/root"\nstate = "{path}/state"\n'
        'disabled_plugins = ["io.containerd.internal.v1.opt"]\n'
        f'[grpc]\naddress = "{path}/d.sock"\n[ttrpc]\naddress = "{path}/d.sock.ttrpc"\n'
        f'[plugins."io.containerd.cri.v1.runtime".cni]\nbin_dir = "{path}/none"\nconf_dir = "{path}/none"\n'
        '[plugins."io.containerd.grpc.v1.cri"]\nstream_server_port = "0"\n'
    )
    environment = {"PATH": f"{BIN}:{DIRECTORY / 'bin'}:{os.environ['PATH']}", "CARINA_SHIM_IDLE_SECONDS": "1"}
    with (path / "log").open("wb") as log:
        process = subprocess.Popen(
            [program("containerd"), "--config", str(path / "config.toml")],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
    try:
        async with asyncio.timeout(60):
            while b"containerd successfully booted" not in (path / "log").read_bytes():
                assert process.poll() is None, (path / "log").read_text()
                await asyncio.sleep(0.05)
        yield f"unix://{path}/d.sock"
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


def _rows(call: Ctr, noun: str) -> list[str]:
    return call(noun, "ls").splitlines()[1:]


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Dockerd]:
    """Docker with its images in our content store and snapshotter."""
    settings = json.dumps({"features": {"containerd-snapshotter": True}})
    with (
        Constellation(namespace=f"carina-docker28-{os.getpid()}") as own,
        Dockerd(own, program=program("dockerd"), settings=settings, client=DIRECTORY / "docker") as running,
    ):
        yield running
        running.clean()


@needs_dockerd
def test_docker_keeps_its_images_here(dockerd: Dockerd, reference: str) -> None:
    """Pulled, run and committed by Docker's containerd image store, on our content and snapshots."""
    dockerd.docker("pull", reference)
    assert dockerd.docker("run", "--rm", "--network", "none", reference, "echo", "hello").output == "hello\n"
    name = "docker28-commit"
    dockerd.docker("run", "--network", "none", "--name", name, reference, "sh", "-c", "echo changed > /file")
    dockerd.docker("commit", name, "localhost/changed:1")
    shown = dockerd.docker("run", "--rm", "--network", "none", "localhost/changed:1", "cat", "/file").output
    assert shown == "changed\n"
    dockerd.docker("rm", name)


@needs_dockerd
def test_docker_runs_containers(dockerd: Dockerd, reference: str) -> None:
    """Exec, top, stats and stop, as with the older one."""
    dockerd.docker("pull", reference)
    dockerd.docker("run", "--detach", "--network", "none", "--name", "docker28-run", reference, "sleep", "1000")
    assert dockerd.docker("exec", "docker28-run", "echo", "inside").output == "inside\n"
    assert "sleep 1000" in dockerd.docker("top", "docker28-run").output
    assert "docker28-run" in dockerd.docker("stats", "--no-stream", "docker28-run").output
    dockerd.docker("stop", "--time", "1", "docker28-run")
    assert dockerd.inspect("docker28-run", "{{.State.ExitCode}}") == "137"


@needs_dockerd
def test_docker_builds(dockerd: Dockerd, reference: str, tmp_path: Path) -> None:
    """BuildKit inside of Docker solves a build with our snapshots, differ, leases and content."""
    (tmp_path / "Dockerfile").write_text(f'FROM {reference}\nCOPY f /f\nRUN cat /f > /built\nCMD ["cat", "/built"]\n')
    (tmp_path / "f").write_text("built\n")
    dockerd.docker("build", "--network", "none", "--tag", "localhost/built:1", str(tmp_path))
    assert dockerd.docker("run", "--rm", "--network", "none", "localhost/built:1").output == "built\n"
    saved = tmp_path / "saved.tar"
    dockerd.docker("save", "--output", str(saved), "localhost/built:1")
    dockerd.docker("rmi", "localhost/built:1")
    dockerd.docker("load", "--input", str(saved))
    assert dockerd.docker("run", "--rm", "--network", "none", "localhost/built:1").output == "built\n"
