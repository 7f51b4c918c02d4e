"""Names of runtimes, their options, what shims print, and what bundles look like on disk."""

import asyncio
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from carina.api.containerd.runc.v1 import Options
from carina.api.containerd.runtime.bootstrap.v1 import BootstrapResult
from carina.api.containerd.services.introspection.v1 import PluginInfoRequest, PluginsRequest
from carina.api.containerd.types import RuntimeRequest
from carina.api.google.protobuf import Any
from carina.errors import AlreadyExists, CarinaError, InvalidArgument, NotFound, Unimplemented
from carina.rpc.codec import decode, encode
from carina.typed import TypedValue
from support.tasks import world
from taskd.bootstrap import parse_bootstrap
from taskd.bundle import Bootstrap, Bundle
from taskd.daemon import opened
from taskd.runtime import RUNC_OPTIONS, binary_name, find_shim
from taskd.shim import runc_options


@pytest.mark.parametrize("name", ["", "runc", "io..v2", "a/b.v2", "../x.v2", "io.containerd.\0.v2"])
def test_names_that_are_none(name: str) -> None:
    """Whatever is not a runtime's name is refused before it becomes part of a path."""
    with pytest.raises(InvalidArgument):
        binary_name(name)


def test_shim_is_found(tmp_path: Path) -> None:
    """A shim is found by name in a directory, and by path only where it is executable."""
    shim = tmp_path / "containerd-shim-mine-v7"
    shim.touch()
    with pytest.raises(NotFound):
        find_shim("io.x.mine.v7", [str(tmp_path)])
    with pytest.raises(NotFound):
        find_shim(str(shim))
    shim.chmod(0o755)
    assert find_shim("io.x.mine.v7", [str(tmp_path)]) == shim
    assert find_shim(str(shim)) == shim


def test_runc_root() -> None:
    """runc's root is ours unless the client has set one; other options keep their bytes."""
    default = runc_options(None, Path("/state/runc"))
    assert (default.type_url, decode(Options, default.value).root) == (RUNC_OPTIONS, "/state/runc")
    given = TypedValue(RUNC_OPTIONS, encode(Options(binary_name="crun", root="/mine")))
    assert runc_options(given, Path("/state/runc")) == given
    partial = TypedValue(f"types.googleapis.com/{RUNC_OPTIONS}", encode(Options(binary_name="crun")) + b"\x98\x06\x01")
    made = runc_options(partial, Path("/state/runc"))
    assert made.value.startswith(partial.value)
    assert (decode(Options, made.value).binary_name, decode(Options, made.value).root) == ("crun", "/state/runc")
    foreign = TypedValue("runtimeoptions.v1.Options", b"\x0a\x01x")
    assert runc_options(foreign, Path("/state/runc")) == foreign


@pytest.mark.parametrize(
    ("output", "version"),
    [
        (encode(BootstrapResult(version=3, address="unix:///s", protocol="ttrpc")), 3),
        (b'{"version": 3, "address": "unix:///s", "protocol": "ttrpc"}', 3),
        (b'{"version": 2, "address": "unix:///s", "protocol": ""}\n', 2),
        (b"unix:///s\n", 2),
    ],
)
def test_what_start_prints(output: bytes, version: int) -> None:
    """The address is understood as each version of shims prints it."""
    assert parse_bootstrap(output, "shim") == Bootstrap(version=version, address="unix:///s", protocol="ttrpc")


@pytest.mark.parametrize(
    "output", [b"", b"hello", b"[]", b'{"version": 3}', b"unix://@abstract", b"vsock://1:2", b"[" * 100_000]
)
def test_what_start_should_not_print(output: bytes) -> None:
    """Anything else is an error that shows it; an abstract socket is no address, anybody could connect to it."""
    with pytest.raises(CarinaError, match="answered no address"):
        parse_bootstrap(output, "shim")


def test_bundle_modes(tmp_path: Path) -> None:
    """Only root gets into a bundle, or the container's own root where that is remapped; and it goes without trace."""
    bundle = Bundle(namespace="n", id="i", path=tmp_path / "b/n/i", work=tmp_path / "work/n/i")
    old = os.umask(0)
    try:
        bundle.create(b'{"linux": {"gidMappings": [{"containerID": 0, "hostID": 4242, "size": 1}]}}')
        assert (stat.S_IMODE(bundle.path.stat().st_mode), bundle.path.stat().st_gid) == (0o710, 4242)
        bundle.remove()
        bundle.create(b"{}")
        assert stat.S_IMODE(bundle.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(bundle.path.parent.stat().st_mode) == 0o711
        assert stat.S_IMODE((bundle.path / "config.json").stat().st_mode) == 0o600
        with pytest.raises(AlreadyExists):
            bundle.create(b"{}")
        assert json.loads((bundle.path / "config.json").read_text()) == {}
        assert stat.S_ISFIFO(bundle.log.stat().st_mode)
    finally:
        os.umask(old)
    bundle.remove()
    bundle.remove()
    assert list((tmp_path / "b/n").iterdir()) == []
    assert not bundle.work.exists()


@pytest.mark.root
def test_bundle_keeps_what_is_mounted(tmp_path: Path) -> None:
    """Removing a bundle unmounts its root file system and takes nothing out of it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "precious").touch()
    bundle = Bundle(namespace="n", id="i", path=tmp_path / "b/n/i", work=tmp_path / "work/n/i")
    bundle.create(b"{}")
    for _ in range(2):
        subprocess.run(["mount", "--bind", source, bundle.path / "rootfs"], check=True)
    bundle.remove()
    assert not bundle.path.exists()
    assert (source / "precious").exists()


async def test_introspection() -> None:
    """taskd lists its plugins under containerd's names, and says when a runtime can't describe itself."""
    async with world() as made, opened(made.config, made.containers, made.events) as own:  # type: ignore[arg-type]
        found = (await own.introspection.plugins(PluginsRequest())).plugins
        assert ("io.containerd.runtime.v2", "task") in [(plugin.type, plugin.id) for plugin in found]
        assert found[0].platforms[0].os == "linux"
        for runtime, error in (("io.containerd.absent.v2", NotFound), ("io.containerd.runc.v2", Unimplemented)):
            options = Any(
                type_url="containerd.types.RuntimeRequest", value=encode(RuntimeRequest(runtime_path=runtime))
            )
            with pytest.raises(error):
                await own.introspection.plugin_info(
                    PluginInfoRequest(type="io.containerd.runtime.v2", id="task", options=options)
                )


async def test_publish_binary() -> None:
    """The program that shims may publish with gets an event through."""
    async with world() as made, made.local():
        arguments = ["--address", str(made.config.gateway), "publish", "--topic", "/tasks/oom", "--namespace", "n"]
        process = await asyncio.create_subprocess_exec(
            str(made.config.publisher), *arguments, stdin=asyncio.subprocess.PIPE
        )
        await process.communicate(encode(Any(type_url="containerd.events.TaskOOM", value=b"\x0a\x03abc")))
        assert process.returncode == 0
        await made.events.until("/tasks/oom", "abc")
