"""docker-compose.yml: what it grants, and the constellation that it brings up under Debian's dockerd."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import image
from support.composed import ROOT, Composed, missing
from support.registry import Registry

GROUP = 7399
SERVICES = ["contentd", "snapshotd-overlayfs", "snapshotd-native", "metadatad", "imaged", "taskd", "gatewayd"]
ORDINARY = {"contentd": "7301:7300", "metadatad": "7302:7300", "gatewayd": "7303:7300"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The file as docker-compose understands it."""
    if shutil.which("docker-compose") is None:
        pytest.skip("not installed: docker-compose")
    shown = subprocess.run(["docker-compose", "config"], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert shown.returncode == 0, shown.stderr.decode()
    convert = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", convert], input=shown.stdout, capture_output=True, check=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_no_container_has_more_than_is_listed(services: dict[str, Any]) -> None:
    """Nothing is privileged; capabilities are given one by one, to those that make trees, mounts or tasks."""
    assert sorted(services) == sorted([*SERVICES, "prepare"])
    for name, service in services.items():
        assert "privileged" not in service, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "ALL" not in service.get("cap_add", []), name
    for name in ORDINARY:
        assert services[name]["user"] == ORDINARY[name]
        assert "cap_add" not in services[name]
    for name in [*SERVICES, "prepare"]:
        filtered = "seccomp:unconfined" not in services[name]["security_opt"]
        assert filtered is (name != "taskd"), name
        assert ("no-new-privileges:true" in services[name]["security_opt"]) is filtered, name
        assert services[name]["network_mode"] == ("host" if name in ("imaged", "taskd") else "none"), name


def test_each_service_is_watched_and_started_in_order(services: dict[str, Any]) -> None:
    """Every service has a health check and a restart policy, and waits until those that it calls are healthy."""
    calls = {
        "metadatad": ["contentd", "snapshotd-native", "snapshotd-overlayfs"],
        "imaged": ["metadatad"],
        "taskd": ["metadatad"],
        "gatewayd": ["imaged", "metadatad", "taskd"],
    }
    for name in SERVICES:
        assert services[name]["restart"] == "unless-stopped"
        socket = "carina" if name == "gatewayd" else name
        assert services[name]["healthcheck"]["test"][-1] == f"/run/carina/{socket}.sock"
        waited = {other: how["condition"] for other, how in services[name]["depends_on"].items()}
        if name in calls:
            assert waited == dict.fromkeys(calls[name], "service_healthy")
        else:
            assert waited == {"prepare": "service_completed_successfully"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry.push("test/busybox", "1.0", image.build())


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
@pytest.mark.timeout(900)
@pytest.mark.system
@pytest.mark.root
def test_the_constellation_in_containers(reference: str) -> None:
    """Pull, run, exec and remove with the host's `ctr`; each service killed and replaced while containers run on."""
    with Composed(group=GROUP) as composed:
        composed.compose("up", "--detach", timeout=400)
        composed.until("NAME", "namespaces", "ls")
        _is_reached_by_its_groups(composed)
        composed.ctr("images", "pull", "--plain-http", reference)
        assert composed.ctr("run", "--rm", reference, "once", "echo", "hello").output == "hello\n"
        for name, runtime in (("theirs", "io.containerd.runc.v2"), ("ours", "io.containerd.carina.v1")):
            composed.ctr("run", "--detach", "--runtime", runtime, reference, name, "sleep", "10000")
        before = _tasks(composed)
        for service in SERVICES:
            _has_no_more_than_listed(composed, service)
            killed = composed.pid(service)
            os.kill(killed, signal.SIGKILL)
            limit = time.monotonic() + 60
            while composed.pid(service) in (0, killed):
                assert time.monotonic() < limit
                time.sleep(0.2)
        _goes_on(composed, before)
        composed.compose("up", "--detach", "--no-deps", "--force-recreate", *SERVICES)
        _goes_on(composed, before)
        for name in before:
            composed.ctr("tasks", "kill", "--signal", "SIGKILL", name)
            composed.until("STOPPED", "tasks", "ls")
            composed.ctr("tasks", "rm", "--force", name, check=False)  # says what the exit status was
            composed.ctr("containers", "rm", name)
        composed.ctr("images", "rm", "--sync", reference)
        assert composed.ctr("snapshots", "ls").output.count("\n") == 1
        mounts = composed.host("cat", "/proc/self/mountinfo").output
        assert "/rootfs " not in mounts


def _tasks(composed: Composed) -> dict[str, str]:
    lines = composed.until("RUNNING", "tasks", "ls").splitlines()[1:]
    return {line.split()[0]: line.split()[1] for line in lines}


def _goes_on(composed: Composed, before: dict[str, str]) -> None:
    for name in before:
        composed.until(
            f"in {name}", "tasks", "exec", "--exec-id", f"e{time.monotonic_ns()}", name, "echo", f"in {name}"
        )
    assert _tasks(composed) == before


def _has_no_more_than_listed(composed: Composed, service: str) -> None:
    """As the kernel has it: the ordinary ones have nothing at all."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{composed.pid(service)}/status").read_text().splitlines()
    )
    if service in ORDINARY:
        assert status["Uid"].split() == [ORDINARY[service].split(":")[0]] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    if service != "taskd":
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


CONNECT = """
import os, socket
for name in sorted(os.environ["NAMES"].split()):
    try:
        socket.socket(socket.AF_UNIX).connect(f"/run/carina/{name}")
        print(name)
    except OSError:
        pass
"""


def _is_reached_by_its_groups(composed: Composed) -> None:
    names = "carina.sock " + " ".join(f"{name}.sock" for name in SERVICES if name != "gatewayd")
    for groups, expected in (("--clear-groups", []), (f"--groups={GROUP}", ["carina.sock"])):
        user = ["setpriv", "--reuid=65534", "--regid=65534", groups, "--"]
        command = [*user, "env", f"NAMES={names}", "/usr/bin/python3", "-c", CONNECT]
        assert composed.host(*command).output.split() == expected
        listed = composed.host(*user, "ls", "/var/lib/carina/contentd", check=False)
        assert "Permission denied" in listed.error
