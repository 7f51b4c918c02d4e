"""What is wanted of a new container: the options that `run` and `containers create` share."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from carina.cli import output
from carina.cli.complete import names

if TYPE_CHECKING:
    from carina.client.run import Wish
    from carina.oci.options import Options
    from carina.typed import TypedValue

_PERIOD = 100_000
_MAX_FILE = 1 << 20
_MOUNT_KEYS = {"type", "src", "source", "dst", "destination", "options"}
_OPTIONS: Final = (
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
    click.option(
        "--snapshotter",
        envvar="CARINA_SNAPSHOTTER",
        default="",
        shell_complete=names("snapshotters"),
        help="Snapshotter of its root file system.",
    ),
    click.option("--runtime", default="", help="io.containerd.runc.v2, or the path of a shim."),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable."),
    click.option("--cwd", default="", help="Working directory."),
    click.option("-u", "--user", default="", help="User[:group], by name or number."),
    click.option("--hostname", default="", help="Host name."),
    click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the container."),
    click.option("--mount", "mounts", multiple=True, metavar="type=bind,src=S,dst=D,options=rbind:ro"),
    click.option("--net-host", is_flag=True, help="Share the machine's network."),
    click.option("--read-only", is_flag=True, help="Mount its root file system read-only."),
    click.option("--privileged", is_flag=True, help="All capabilities and devices."),
    click.option("--memory-limit", type=click.IntRange(0), default=0, help="Bytes."),
    click.option("--cpus", type=click.FloatRange(0), default=0.0, help="Processors' worth of time."),
    click.option(
        "--cpu-shares", type=click.IntRange(0), default=0, help="Share of the processors where they are scarce."
    ),
    click.option("--cpu-quota", type=click.IntRange(0), default=0, help="Microseconds in each period."),
    click.option("--cpu-period", type=click.IntRange(0), default=0, help="Microseconds."),
    click.option("--pids-limit", type=click.IntRange(0), default=0, help="Processes and threads."),
    click.option("--ulimit", "rlimits", multiple=True, metavar="RLIMIT_NAME=SOFT:HARD", help="Limit of the process."),
    click.option("--sysctl", "sysctls", multiple=True, metavar="NAME=VALUE", help="Setting of its kernel namespaces."),
    click.option("--cap-add", multiple=True, metavar="CAP_NAME", help="Capability to add; ALL for all."),
    click.option("--cap-drop", multiple=True, metavar="CAP_NAME", help="Capability to take away; ALL for all."),
    click.option("--allow-new-privs", is_flag=True, help="Let set-user-id programs have their effect."),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="PATH",
        help="Device, directory of devices, or name as --cdi-device.",
    ),
    click.option(
        "--cdi-device", "cdi_devices", multiple=True, metavar="VENDOR/CLASS=NAME", help="Device by its CDI name."
    ),
    click.option(
        "--cdi-spec-dir",
        "cdi_directories",
        multiple=True,
        type=click.Path(exists=True, file_okay=False),
        help="Where CDI files are, in place of /etc/cdi and /var/run/cdi.",
    ),
    click.option("--seccomp", is_flag=True, help="Allow only the system calls of the default profile."),
    click.option("--seccomp-profile", type=click.File("rb"), help="A profile in its place, with --seccomp."),
    click.option("--apparmor-profile", default="", help="AppArmor profile that the kernel has."),
    click.option("--with-ns", "join", multiple=True, metavar="KIND:PATH", help="Namespace to join."),
    click.option(
        "--uidmap", "uid_maps", multiple=True, metavar="CONTAINER:HOST:LENGTH", help="User ids of the container."
    ),
    click.option(
        "--gidmap", "gid_maps", multiple=True, metavar="CONTAINER:HOST:LENGTH", help="Group ids of the container."
    ),
    click.option(
        "--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Annotation of its specification."
    ),
    click.option("--cgroup", default=None, help="Path of its control group."),
    click.option("--rootfs-propagation", default="", help="Propagation of mounts of its root file system."),
    click.option("--rdt-class", default="", help="Class of service (Intel RDT)."),
    click.option("--env-file", type=click.File("r"), help="Environment variables, one on each line."),
    click.option("-c", "--config", "spec_file", type=click.File("rb"), metavar="FILE", help="A whole specification."),
    click.option("--rootfs", is_flag=True, help="REFERENCE is a directory, not an image."),
    click.option("--platform", default="", metavar="OS/ARCH", help="Of the image; this machine's where absent."),
    click.option(
        "--snapshotter-label", "snapshot_labels", multiple=True, metavar="KEY=VALUE", help="Label of the snapshot."
    ),
    click.option("--sandbox", default="", metavar="ID", help="Sandbox that it belongs to."),
    click.option("--remap-labels", is_flag=True, help="Have the snapshotter map the ids of --uidmap and --gidmap."),
    click.option("--runc-binary", default="", metavar="PATH", help="A program that is called as runc is."),
    click.option("--runc-root", default="", metavar="DIR", help="Directory of runc's states."),
    click.option("--runc-systemd-cgroup", is_flag=True, help="Have runc ask systemd for the control group."),
    click.option("--no-pivot", is_flag=True, help="Do not use pivot_root(2)."),
    click.option("--runtime-config-path", default="", metavar="PATH", help="Configuration file of another runtime."),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that `wish` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wish(id: str, *, tty: bool, mounts: Sequence[str], labels: Sequence[str], **options: Any) -> "Wish":
    """What the options say. Raises click.UsageError: they contradict each other, or one has the wrong form."""
    from carina.client.run import Wish
    from carina.platforms import Platform

    file = options["spec_file"]
    return Wish(
        id=id,
        snapshotter=options["snapshotter"],
        runtime=options["runtime"],
        user=options["user"],
        labels=output.parse_labels(labels),
        options=_options(tty=tty, mounts=mounts, **options),
        platform=Platform.parse(options["platform"]) if options["platform"] else None,
        snapshot_labels=_snapshot_labels(**options),
        sandbox=options["sandbox"],
        runtime_options=_runtime_options(**options),
        spec=None if file is None else _document(file, "a runtime specification", "ociVersion"),
    )


def _snapshot_labels(*, snapshot_labels: Sequence[str], remap_labels: bool, **given: Any) -> dict[str, str]:
    found = output.parse_labels(snapshot_labels)
    if remap_labels:
        for kind in ("uid", "gid"):
            maps = given[f"{kind}_maps"]
            if len(maps) != 1:
                raise click.UsageError("--remap-labels goes with one --uidmap and one --gidmap")
            found[f"containerd.io/snapshot/{kind}mapping"] = ":".join(map(str, _mapping(maps[0])))
    return found


def _runtime_options(**given: Any) -> "TypedValue | None":
    from carina.tasks import runc

    path = given["runtime_config_path"]
    made = runc.options(
        binary=given["runc_binary"],
        root=given["runc_root"],
        systemd_cgroup=given["runc_systemd_cgroup"],
        no_pivot=given["no_pivot"],
    )
    if path and made is not None:
        raise click.UsageError("--runtime-config-path is for runtimes other than runc")
    return runc.config(path) if path else made


def _options(*, tty: bool, mounts: Sequence[str], **given: Any) -> "Options":
    from carina.oci.options import Options

    names = (
        "cwd",
        "hostname",
        "read_only",
        "privileged",
        "memory_limit",
        "cpu_shares",
        "pids_limit",
        "cgroup",
    )
    quota, period = given["cpu_quota"], given["cpu_period"]
    if given["cpus"]:
        if quota or period:
            raise click.UsageError("--cpus goes with neither --cpu-quota nor --cpu-period: it sets both")
        quota, period = int(given["cpus"] * _PERIOD), _PERIOD
    if given["seccomp_profile"] and not given["seccomp"]:
        raise click.UsageError("--seccomp-profile goes with --seccomp")
    file = given["env_file"].read(_MAX_FILE).splitlines() if given["env_file"] else []
    return Options(
        **{name: given[name] for name in names},
        **_devices(given["devices"], given["cdi_devices"], given["cdi_directories"]),
        args=given["command"],
        env=[*(line for line in file if line.strip() and not line.startswith("#")), *given["env"]],
        terminal=tty,
        host_network=given["net_host"],
        mounts=[_mount(text) for text in mounts],
        annotations=output.parse_labels(given["annotations"]),
        add_capabilities=given["cap_add"],
        drop_capabilities=given["cap_drop"],
        new_privileges=given["allow_new_privs"],
        cpu_quota=quota,
        cpu_period=period,
        rlimits=dict(_rlimit(text) for text in given["rlimits"]),
        sysctls=output.parse_labels(given["sysctls"]),
        join=dict(_namespace(text) for text in given["join"]),
        uid_mappings=[_mapping(text) for text in given["uid_maps"]],
        gid_mappings=[_mapping(text) for text in given["gid_maps"]],
        seccomp=given["seccomp"],
        seccomp_profile=_profile(given["seccomp_profile"]),
        apparmor=given["apparmor_profile"],
        rootfs_propagation=given["rootfs_propagation"],
        rdt_class=given["rdt_class"],
    )


def _devices(devices: Sequence[str], cdi: Sequence[str], directories: Sequence[str]) -> dict[str, Any]:
    from carina.oci.cdi import DIRECTORIES, qualified

    return {
        "devices": [name for name in devices if not qualified(name)],
        "cdi_devices": [*(name for name in devices if qualified(name)), *cdi],
        "cdi_directories": directories or DIRECTORIES,
    }


def _profile(file: BinaryIO | None) -> dict[str, Any] | None:
    return None if file is None else _document(file, "a seccomp profile", "defaultAction")


def _document(file: BinaryIO, noun: str, key: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read(_MAX_FILE))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or key not in found:
        raise click.UsageError(f"{file.name} is not {noun}: a JSON object with {key!r}")
    return found


def _rlimit(text: str) -> tuple[str, tuple[int, int]]:
    name, _, values = text.partition("=")
    soft, colon, hard = values.partition(":")
    if not soft.isdecimal() or (colon and not hard.isdecimal()):
        raise click.UsageError(f"--ulimit {text!r}: expected RLIMIT_NAME=SOFT:HARD")
    return name, (int(soft), int(hard or soft))


def _namespace(text: str) -> tuple[str, str]:
    kind, colon, path = text.partition(":")
    if not colon:
        raise click.UsageError(f"--with-ns {text!r}: expected KIND:PATH")
    return kind, path


def _mapping(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"mapping {text!r}: expected CONTAINER:HOST:LENGTH")
    inside, outside, length = map(int, parts)
    return inside, outside, length


def _mount(text: str) -> dict[str, Any]:
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := set(fields) - _MOUNT_KEYS:
        raise click.UsageError(f"--mount {text!r}: unknown key {min(unknown)!r}")
    source = fields.get("src") or fields.get("source", "")
    destination = fields.get("dst") or fields.get("destination", "")
    if not destination.startswith("/"):
        raise click.UsageError(f"--mount {text!r}: dst must be an absolute path")
    kept = [option for option in fields.get("options", "").split(":") if option]
    kind = fields.get("type", "bind")
    if kind == "bind" and not {"bind", "rbind"} & set(kept):
        # Without one of them runtimes look for a file system of type "bind".
        kept.insert(0, "rbind")
    return {"type": kind, "source": source, "destination": destination, "options": kept}
