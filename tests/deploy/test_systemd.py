"""The units under a real systemd: installed, run, upgraded one at a time, looked at from /proc, uninstalled."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image
from support.machine import Machine, missing, wheels
from support.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = f"carina-test-machine-{os.getpid()}"  # control groups are the host's, and two machines may run
UNITS = ["contentd", "metadatad", "imaged", "taskd", "gatewayd", "snapshotd@overlayfs", "snapshotd@native"]
OUTSIDE = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
    pytest.mark.timeout(900),
    pytest.mark.system,
    pytest.mark.root,
]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(binds={ROOT: "/src", wheels(ROOT): "/wheels"}) as running:
        running.run("/src/deploy/install", "--wheels", "/wheels", timeout=300)
        yield running
    groups = Path("/sys/fs/cgroup")
    for directory in (*groups.glob(f"*/{NAMESPACE}"), *groups.glob(f"*/payload/{NAMESPACE}")):
        with contextlib.suppress(OSError):
            directory.rmdir()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nspawn shares the host's loopback interface."""
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry.push("test/busybox", "1.0", image.build())


@pytest.fixture
def container(machine: Machine, reference: str) -> Iterator[str]:
    """A running container, whose pid stays the same whatever is restarted."""
    ctr(machine, "images", "pull", "--plain-http", reference)
    ctr(machine, "run", "--detach", reference, "steady", "sleep", "10000")
    yield "steady"
    ctr(machine, "tasks", "rm", "--force", "steady")
    ctr(machine, "containers", "rm", "steady")
    ctr(machine, "images", "rm", "--sync", reference)


def ctr(machine: Machine, *arguments: str) -> str:
    return machine.run("ctr", "--address", "/run/carina/carina.sock", "--namespace", NAMESPACE, *arguments).output


def pids(machine: Machine) -> dict[str, str]:
    return {unit: machine.run("systemctl", "show", "--value", "-p", "MainPID", unit).output.strip() for unit in UNITS}


def task(machine: Machine) -> str:
    lines = ctr(machine, "tasks", "ls").splitlines()
    return next(line for line in lines if line.startswith("steady "))


def test_a_container_runs(machine: Machine, container: str) -> None:
    """Pulled, run, looked into by `ctr` and by `carina`, by a member of the group as well."""
    assert ctr(machine, "tasks", "exec", "--exec-id", "e", container, "echo", "inside") == "inside\n"
    status = machine.run("carina", "status").output
    assert len(re.findall(r"^\S+ +ok ", status, re.MULTILINE)) == len(UNITS)
    member = [*OUTSIDE[:3], "--groups", group(machine, "carina"), "--"]
    listed = machine.run(*member, "carina", "--namespace", NAMESPACE, "containers", "ls").output
    assert container in listed


def group(machine: Machine, name: str) -> str:
    return machine.run("getent", "group", name).output.split(":")[2]


def test_installing_again_changes_nothing(machine: Machine) -> None:
    """What is up to date is left alone, and no service is restarted."""
    before = pids(machine)
    said = machine.run("/src/deploy/install", "--wheels", "/wheels", timeout=300).output

    assert "nothing was out of date" in said
    assert pids(machine) == before


def test_one_service_is_upgraded_at_a_time(machine: Machine, container: str) -> None:
    """`--only` restarts that service on the new release; the others, and containers, stay as they are."""
    before, running = pids(machine), task(machine)
    machine.run(
        "sh", "-c", "rm -rf /tmp/next && mkdir /tmp/next && cd /src && cp -R deploy services shared *.* /tmp/next"
    )
    machine.run("sed", "-i", 's/^version = .*/version = "0.1.1"/', "/tmp/next/pyproject.toml")
    for unit, name in (("contentd", "contentd"), ("taskd", "taskd")):
        machine.run("/tmp/next/deploy/install", "--wheels", "/wheels", "--only", name, timeout=300)
        after = pids(machine)
        assert [one for one in UNITS if after[one] != before[one]] == [unit]
        assert machine.run("readlink", f"/opt/carina/{name}").output.startswith("/opt/carina/releases/0.1.1-")
        assert machine.run("readlink", "/opt/carina/metadatad").output.startswith("/opt/carina/releases/0.1.0-")
        assert task(machine) == running
        before = after
    machine.run("/src/deploy/install", "--wheels", "/wheels", timeout=300)  # and back
    assert machine.run("ls", "/opt/carina/releases").output.count("\n") == 1
    assert task(machine) == running


def test_restarts_refuse_no_call(machine: Machine, container: str) -> None:
    """While each service is killed and restarted, no connection is refused: calls wait, or are to be tried again."""
    running = task(machine)
    loop = (
        "n=0; while [ ! -e /tmp/enough ]; do "
        f"ctr -a /run/carina/carina.sock -n {NAMESPACE} containers ls -q >/tmp/out 2>&1 || cat /tmp/out; n=$((n+1)); "
        "done; echo calls $n"
    )
    client = subprocess.Popen(machine.command("sh", "-c", loop), stdout=subprocess.PIPE, text=True)
    try:
        for unit in UNITS:
            machine.run("systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", unit)
            wait_active(machine, unit)
            machine.run("systemctl", "restart", unit)
            time.sleep(0.3)
    finally:
        machine.run("touch", "/tmp/enough")
        said, _ = client.communicate(timeout=60)
        machine.run("rm", "/tmp/enough")

    lines = said.splitlines()
    assert "refused" not in said
    assert int(lines[-1].removeprefix("calls ")) > 10
    assert [line for line in lines[:-1] if "unavailable" not in line.lower() and line != container] == []
    assert task(machine) == running


LOAD = """
import asyncio, os, sys, time
from carina import context
from carina.errors import CarinaError, Unavailable
from carina.namespaces.client import RemoteNamespaceStore
from carina.rpc.client import connect
stop, rate, callers = sys.argv[1], 1000, 20
count = retried = 0
words, worst = set(), 0.0
async def caller(store):
    global count, retried, worst
    while not os.path.exists(stop):
        began = time.monotonic()
        while True:
            try:
                with context.deadline(30):
                    await store.list()
                break
            except Unavailable as error:
                retried += 1
                words.add(str(error))
                await asyncio.sleep(0.02)
        count += 1
        took = time.monotonic() - began
        worst = max(worst, took)
        await asyncio.sleep(max(0, callers / rate - took))
async def main():
    channels = [connect("unix:///run/carina/carina.sock") for _ in range(4)]
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for i in range(callers):
            group.create_task(caller(RemoteNamespaceStore(channels[i % 4])))
    for channel in channels:
        channel.close()
    print(f"{count} calls, {count / (time.monotonic() - began):.0f} a second, {retried} retried, longest {worst:.2f} s")
    print("\\n".join(sorted(words)))
asyncio.run(main())
"""


def test_restarts_under_load(machine: Machine, container: str) -> None:
    """With up to a thousand calls a second while each service is restarted, every call is answered: none is refused."""
    running = task(machine)
    machine.run("rm", "-f", "/tmp/enough")
    command = machine.command("/opt/carina/carina/bin/python", "-c", LOAD, "/tmp/enough")
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for unit in UNITS:
            machine.run("systemctl", "restart", unit)
            time.sleep(0.5)
    finally:
        machine.run("touch", "/tmp/enough")
        said, error = client.communicate(timeout=90)

    assert client.returncode == 0, error
    print(said)
    assert int(said.split()[0]) > 100
    assert "refused" not in said
    assert "No such file" not in said
    assert task(machine) == running


def wait_active(machine: Machine, unit: str) -> None:
    limit = time.monotonic() + 60
    while machine.run("systemctl", "is-active", unit, check=False).output.strip() != "active":
        assert time.monotonic() < limit, machine.journal(unit)
        time.sleep(0.1)


def test_a_service_that_stands_still_is_replaced(machine: Machine) -> None:
    """The watchdog ends a process whose event loop does not turn, and another takes its place."""
    machine.run("mkdir", "-p", "/run/systemd/system/contentd.service.d")
    machine.run("sh", "-c", "printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/contentd.service.d/w.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "contentd")
    before = pids(machine)["contentd"]
    machine.run("kill", "-STOP", before)
    limit = time.monotonic() + 60
    while pids(machine)["contentd"] in (before, "0"):
        assert time.monotonic() < limit
        time.sleep(0.2)
    wait_active(machine, "contentd")

    assert "Watchdog timeout" in machine.journal("contentd")
    machine.run("rm", "-r", "/run/systemd/system/contentd.service.d")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "contentd")


CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()
LOOK = """
import json, os, subprocess, sys
def lines(path):
    return dict(line.split(":", 1) for line in open(path).read().splitlines())
found = {}
first = lines('/proc/1/status')
for unit in sys.argv[1:]:
    pid = subprocess.check_output(["systemctl", "show", "--value", "-p", "MainPID", unit], text=True).strip()
    status = lines(f"/proc/{pid}/status")
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    listening = set()
    for line in open(f"/proc/{pid}/net/unix").read().splitlines() + open("/proc/1/net/unix").read().splitlines():
        words = line.split()
        if len(words) > 7 and words[3] == "00010000" and f"socket:[{words[6]}]" in inodes:
            listening.add(words[7])
    internet = sum(1 for inode in inodes for kind in ("tcp", "tcp6", "udp", "udp6", "raw")
                   for line in open(f"/proc/{pid}/net/{kind}") if f"socket:[{line.split()[9]}]" == inode)
    uid, gid = status["Uid"].split()[0], status["Gid"].split()[0]
    groups = status["Groups"].split()
    who = ["nsenter", "-t", pid, "-m", "setpriv", f"--reuid={uid}", f"--regid={gid}",
           *(["--groups", ",".join(groups)] if groups else ["--clear-groups"]), "--"]
    writable = []
    for path in [*sorted(f"/var/lib/carina/{name}" for name in os.listdir("/var/lib/carina")),
                 "/var/lib/carina", "/run/carina", "/etc/carina", "/opt/carina", "/etc", "/usr", "/root"]:
        if subprocess.run([*who, "test", "-w", path]).returncode == 0:
            writable.append(path)
    found[unit] = {
        "uid": uid, "gid": gid, "groups": groups,
        "bounding": int(status["CapBnd"], 16), "effective": int(status["CapEff"], 16),
        "all": int(first["CapBnd"], 16),
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "filters": int(status["Seccomp_filters"]) - int(first["Seccomp_filters"]),
        "mounts": os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/1/ns/mnt"),
        "network": os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/1/ns/net"),
        "listening": sorted(listening), "internet": internet, "writable": writable,
    }
print(json.dumps(found))
"""


def rows(heading: str) -> list[dict[str, str]]:
    """The first table of the page that has this column."""
    table: list[list[str]] = []
    for line in (ROOT / "docs" / "security.md").read_text().splitlines():
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        elif table and heading in table[0]:
            break
        else:
            table = []
    return [dict(zip(table[0], cells, strict=True)) for cells in table[2:]]


def test_the_security_table_is_true(machine: Machine) -> None:
    """Each cell of docs/security.md is what /proc says of the running service."""
    found = json.loads(machine.run("python3", "-c", LOOK, *UNITS).output)
    table = rows("capabilities")

    assert sorted(row["service"] for row in table) == sorted(UNITS)
    for row in table:
        unit = row["service"]
        seen = found[unit]
        assert seen["uid"] == machine.run("id", "-u", row["user"]).output.strip(), unit
        wanted = {group(machine, name) for name in row["groups"].split()}
        assert set(seen["groups"]) - {seen["gid"]} == wanted, unit
        bounding = [name for bit, name in enumerate(CAPABILITIES) if seen["bounding"] >> bit & 1]
        if row["capabilities"] == "all":
            assert seen["bounding"] == seen["all"], unit
        else:
            # A machine that is itself confined may have fewer to give.
            had = [name for bit, name in enumerate(CAPABILITIES) if seen["all"] >> bit & 1]
            wanted_names = [name for name in row["capabilities"].split() if name in had]
            assert bounding == wanted_names, unit
        assert seen["effective"] == (seen["bounding"] if row["user"] == "root" else 0), unit
        assert seen["no_new_privileges"] == {"no": "1", "yes": "0"}[row["new privileges"]], unit
        assert (seen["filters"] > 0) is {"filtered": True, "all": False}[row["system calls"]], unit
        assert seen["mounts"] == {"own": False, "the machine's": True}[row["mount namespace"]], unit
        assert seen["network"] == {"none": False, "the machine's": True}[row["network"]], unit
        assert seen["internet"] == 0, unit
        assert seen["listening"] == [f"/run/carina/{name}" for name in row["listens on"].split()], unit
        if row["may write"] == "everything":
            assert "/var/lib/carina" in seen["writable"], unit
        else:
            assert seen["writable"] == [f"/var/lib/carina/{row['may write']}"], unit


REACH = """
import os, socket, sys
reached = []
for name in sorted(os.listdir("/run/carina")) if os.access("/run/carina", os.R_OK) else sys.argv[1:]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        try:
            socket.socket(socket.AF_UNIX, kind).connect(f"/run/carina/{name}")
            reached.append(name)
        except OSError:
            pass
for name in ["", *"contentd metadatad gatewayd imaged taskd snapshotd-overlayfs snapshotd-native".split()]:
    try:
        os.listdir(f"/var/lib/carina/{name}")
        reached.append(f"/var/lib/carina/{name}")
    except PermissionError:
        pass
for path in ("/var/lib/carina/metadatad/metadata.sqlite", "/var/lib/carina/gatewayd/uuid"):
    try:
        open(path)
        reached.append(path)
    except PermissionError:
        pass
print(" ".join(reached))
"""


def test_who_is_outside_reaches_nothing(machine: Machine) -> None:
    """A user outside of the groups reaches no socket and no file; a member of `carina` the gateway only."""
    table = rows("mode")
    sockets = [row["socket"] for row in table]
    for row in table:
        seen = machine.run("stat", "--format=0%a %U %G", f"/run/carina/{row['socket']}").output.strip()
        assert seen == f"{row['mode']} {row['owner']} {row['group']}", row["socket"]

    def reached(*groups: str) -> list[str]:
        numbers = ["--groups", ",".join(group(machine, name) for name in groups)] if groups else ["--clear-groups"]
        who = ["setpriv", "--reuid=65534", "--regid=65534", *numbers, "--"]
        return machine.run(*who, "python3", "-c", REACH, *sockets).output.split()

    assert reached() == []
    assert reached("carina") == ["carina.sock"]
    listed = machine.run("ls", "/run/carina").output.split()
    assert {name for name in listed if ".sock" in name} == set(sockets)


def test_a_unit_of_the_wrong_user_says_so(machine: Machine) -> None:
    """Another `User=` ends with one sentence in the journal, and the store is as it was."""
    machine.run("mkdir", "-p", "/run/systemd/system/metadatad.service.d")
    script = "printf '[Service]\\nUser=root\\nStateDirectory=\\nRestart=no\\n' > $0"
    machine.run("sh", "-c", script, "/run/systemd/system/metadatad.service.d/u.conf")
    machine.run("systemctl", "daemon-reload")
    before = machine.run("sh", "-c", "ls -ln --time-style=+%s /var/lib/carina/metadatad | grep -v -- -shm").output
    try:
        assert machine.run("systemctl", "restart", "metadatad", check=False).status == 1
        said = machine.journal("metadatad")
        assert "belongs to user carina-metadatad, and metadatad runs as root: start it as carina-metadatad" in said
        after = machine.run("sh", "-c", "ls -ln --time-style=+%s /var/lib/carina/metadatad | grep -v -- -shm").output
        assert [line.split()[2:4] for line in after.splitlines()] == [
            line.split()[2:4] for line in before.splitlines()
        ][: len(after.splitlines())]
    finally:
        machine.run("rm", "-r", "/run/systemd/system/metadatad.service.d")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "metadatad")
    assert ctr(machine, "namespaces", "ls") != ""


def test_uninstalling_leaves_nothing(machine: Machine, reference: str) -> None:
    """Refused while a container runs; without --purge data and users stay, with it nothing does."""
    ctr(machine, "images", "pull", "--plain-http", reference)
    ctr(machine, "run", "--detach", reference, "last", "sleep", "10000")
    before = pids(machine)
    refused = machine.run("/src/deploy/uninstall", check=False)
    assert refused.status == 1
    assert f"containers are running and nothing was changed: stop them first ({NAMESPACE}/last" in refused.error
    assert pids(machine) == before
    ctr(machine, "tasks", "rm", "--force", "last")
    ctr(machine, "containers", "rm", "last")

    machine.run("/src/deploy/uninstall", "--purge")
    left = machine.run(
        "sh",
        "-c",
        "ls -d /opt/carina /run/carina /etc/carina /var/lib/carina/* /usr/local/bin/carina "
        "/etc/sysusers.d/carina* /etc/tmpfiles.d/carina* 2>/dev/null; "
        "find /etc/systemd /run/systemd/system -name 'carina*' -o -name 'contentd*' -o -name 'taskd*'; "
        "grep carina /etc/passwd /etc/group; "
        "systemctl list-units --all --no-legend --plain 'contentd*' 'taskd*' 'gatewayd*'"
        " | grep -v not-found; "
        "ps ax -o args | grep -E '^(contentd|metadatad|imaged|taskd|gatewayd|snapshotd)'; true",
    )
    assert left.output == ""
    again = machine.run("/src/deploy/uninstall", "--purge")
    assert "Carina is gone" in again.output

    machine.run("/src/deploy/install", "--wheels", "/wheels", timeout=300)
    assert ctr(machine, "images", "ls", "-q") == ""


def test_stores_of_root_are_taken_over(machine: Machine, reference: str) -> None:
    """What `carina up` kept as root is the ordinary users' after an installation, and is all there."""
    ctr(machine, "images", "pull", "--plain-http", reference)
    machine.run("systemctl", "stop", "carina.target", *UNITS)
    machine.run("sh", "-c", "chown -R 0:0 /var/lib/carina")
    machine.run("/src/deploy/install", "--wheels", "/wheels", timeout=300)

    assert ctr(machine, "images", "ls", "-q") == f"{reference}\n"
    assert ctr(machine, "run", "--rm", reference, "again", "echo", "again") == "again\n"
    owner = machine.run("sh", "-c", "find /var/lib/carina/contentd ! -user carina-contentd | head -3").output
    assert owner == ""
