"""What callers may want of a container beyond its command: security, devices, limits, identities."""

from typing import Any

import pytest

from carina.errors import CarinaError, InvalidArgument
from carina.images.manifest import Config
from carina.oci import spec
from carina.oci.options import Options
from carina.oci.seccomp import ALLOWED, default_profile
from carina.platforms import host

IMAGE = Config(platform=host(), diff_ids=(), cmd=("true",))


def made(**wishes: Any) -> dict[str, Any]:
    return spec.generate("one", "test", IMAGE, Options(**wishes))


def test_capabilities() -> None:
    """Capabilities are added and taken away in all three sets, and none becomes inheritable."""
    sets = made(add_capabilities=["CAP_NET_ADMIN"], drop_capabilities=["CAP_CHOWN"])["process"]["capabilities"]

    assert set(sets) == {"bounding", "effective", "permitted"}
    for names in sets.values():
        assert "CAP_NET_ADMIN" in names
        assert "CAP_CHOWN" not in names
    assert made(drop_capabilities=["ALL"])["process"]["capabilities"]["effective"] == []
    assert "CAP_SYS_ADMIN" in made(add_capabilities=["ALL"])["process"]["capabilities"]["bounding"]


def test_devices() -> None:
    """A device of the host is there under its name, and allowed; those of a directory all are."""
    linux = made(devices=["/dev/null"])["linux"]

    assert (linux["devices"][0]["path"], linux["devices"][0]["major"], linux["devices"][0]["minor"]) == (
        "/dev/null",
        1,
        3,
    )
    assert linux["resources"]["devices"][1] == {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    assert len(made(devices=["/dev"])["linux"]["devices"]) > 3


def test_limits_and_identities() -> None:
    """Every other wish is where the runtime specification has it, and where nothing is wished nothing is."""
    wished = made(
        cpu_shares=512,
        cpu_quota=50_000,
        cpu_period=100_000,
        pids_limit=10,
        rlimits={"RLIMIT_NOFILE": (5, 6)},
        sysctls={"net.ipv4.ip_forward": "1"},
        join={"network": "/proc/1/ns/net"},
        uid_mappings=[(0, 1000, 5)],
        hooks={"prestart": [{"path": "/bin/true"}]},
        apparmor="mine",
        selinux_process="p",
        selinux_mount="m",
        cgroup="/other",
        rootfs_propagation="rslave",
        rdt_class="gold",
        new_privileges=True,
    )
    linux, process = wished["linux"], wished["process"]

    assert linux["resources"]["cpu"] == {"shares": 512, "quota": 50_000, "period": 100_000}
    assert linux["resources"]["pids"] == {"limit": 10}
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]
    assert linux["sysctl"] == {"net.ipv4.ip_forward": "1"}
    assert {"type": "network", "path": "/proc/1/ns/net"} in linux["namespaces"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 5}]
    assert wished["hooks"] == {"prestart": [{"path": "/bin/true"}]}
    assert (process["apparmorProfile"], process["selinuxLabel"], linux["mountLabel"]) == ("mine", "p", "m")
    assert (linux["cgroupsPath"], linux["rootfsPropagation"]) == ("/other", "rslave")
    assert linux["intelRdt"] == {"closID": "gold"}
    assert process["noNewPrivileges"] is False
    assert not {"hooks", "seccomp", "sysctl", "uidMappings", "devices"} & {*made(), *made()["linux"]}


@pytest.mark.parametrize(
    "wishes",
    [
        {"add_capabilities": ["CAP_FLY"]},
        {"add_capabilities": ["NET_ADMIN"]},
        {"devices": ["dev/null"]},
        {"devices": ["/etc/passwd"]},
        {"devices": ["/dev/absent"]},
        {"rlimits": {"RLIMIT_NOFILE": (6, 5)}},
        {"rlimits": {"NOFILE": (1, 1)}},
        {"join": {"moon": "/x"}},
        {"join": {"network": "x"}},
        {"uid_mappings": [(0, 0, 0)]},
        {"gid_mappings": [(0, 1 << 32, 1)]},
        {"hooks": {"sometimes": []}},
        {"rootfs_propagation": "wild"},
        {"pids_limit": -1},
    ],
)
def test_what_can_not_be(wishes: dict[str, Any]) -> None:
    """A value that can't be is refused before anything is made."""
    with pytest.raises(CarinaError, match=r"^[^\n]{10,200}$"):
        made(**wishes)


def test_what_the_default_profile_allows() -> None:
    """Rings, keys, modules and clocks are out, AF_ALG and AF_VSOCK sockets too, and a capability opens its calls."""
    profile = made(seccomp=True)["linux"]["seccomp"]
    names = set(profile["syscalls"][0]["names"])
    families = {
        rule["args"][0]["valueTwo"] for rule in profile["syscalls"] if rule["names"] == ["socket"] and rule["args"]
    }

    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert "chroot" in names
    assert not names & {"io_uring_setup", "keyctl", "init_module", "mount", "bpf", "unshare", "clone", "clone3"}
    assert not names & {"socket", "socketcall", "userfaultfd", "clock_settime", "personality"}
    assert {1, 2, 10, 16, 17} <= families
    assert not families & {38, 40}
    assert "mount" in default_profile(["CAP_SYS_ADMIN"], "x86_64")["syscalls"][0]["names"]
    assert not ALLOWED & {"clone", "socket"}
    with pytest.raises(InvalidArgument, match="machines of type pdp11"):
        default_profile([], "pdp11")
