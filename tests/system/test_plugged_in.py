"""Proxy plugins of every type in a whole constellation: later, gone, stopped, replaced, and reconfigured."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from carina import context
from carina.api.containerd.services.sandbox.v1 import ControllerStartRequest, ControllerStub
from carina.api.grpc.health.v1 import HealthCheckRequest, HealthStub
from carina.descriptor import Descriptor
from carina.diff.client import RemoteDiffer
from carina.digest import Digest
from carina.errors import Unimplemented
from carina.rpc.client import Channel, connect
from support.constellation import Constellation
from support.content import directory
from support.snapshots import serving, snapshotd

LIMIT = 30.0
OTHERS = """
import sys
from carina.aio.daemon import run
from carina.api.containerd.services.sandbox.v1 import (
    ControllerBase, ControllerStartResponse, ControllerStatusResponse
)
from carina.diff.server import DiffService
from carina.errors import NotFound, Unimplemented
from carina.rpc.server import serve

class Differ:
    async def apply(self, layer, mounts, *, sync_fs=True):
        if layer.media_type != "application/vnd.test.layer":
            raise Unimplemented("not mine")
        return layer
    async def diff(self, *words, **more):
        raise Unimplemented("not mine")

class Controller(ControllerBase):
    async def start(self, message):
        return ControllerStartResponse(sandbox_id=message.sandbox_id, pid=42)
    async def status(self, message):
        raise NotFound("no such sandbox")

async def main(lifetime):
    async with serve(f"unix://{sys.argv[1]}", [DiffService(Differ()), Controller()], name="others", grace=0.1):
        await lifetime.stopped()

run("others", main)
"""


@pytest.fixture
def base() -> Iterator[Path]:
    with directory() as path:
        yield path


def config(base: Path, more: str = "") -> str:
    return (
        f'[metadata]\ncontent = "blobs"\nanswer_seconds = 2\n'
        f'[proxy_plugins.blobs]\ntype = "content"\naddress = "{base}/contentd.sock"\n'
        f'[proxy_plugins.late]\ntype = "snapshot"\naddress = "{base}/snapshotd-native.sock"\n{more}'
    )


def until(holds: Callable[[], Any]) -> None:
    limit = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.1)


def status(carina: Constellation, name: str) -> str:
    """What `plugins ls` says of a plugin; empty where it is not there."""
    for line in carina.carina("plugins", "ls").output.splitlines():
        if line.split()[1] == name:
            return line.split(maxsplit=3)[3]
    return ""


def call(carina: Constellation, work: Callable[[Channel], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        channel = connect(carina.address)
        try:
            with context.within(namespace="test"), context.deadline(LIMIT):
                return await work(channel)
        finally:
            channel.close()

    return asyncio.run(main())


def health(carina: Constellation, name: str) -> str:
    found = call(carina, lambda channel: HealthStub(channel).check(HealthCheckRequest(service=name)))
    return str(found.status.name)


def test_plugins_come_hang_and_are_replaced(base: Path, reference: str) -> None:
    """Content lives in the chosen store; a snapshotter that comes later works, one that hangs harms nobody else."""
    arguments = ("-m", "contentd", "--root", str(base / "root"), "--state", str(base))
    with serving(base / "contentd.sock", *arguments), Constellation(config=config(base)) as carina:
        assert "nothing answers" in status(carina, "late")
        carina.ctr("images", "pull", "--plain-http", reference)
        assert len(os.listdir(base / "root/contentd/blobs/sha256")) == 5
        assert not [file for file in (carina.root / "contentd").rglob("sha256/*") if file.is_file()]
        with snapshotd(base, "native") as plugin:
            until(lambda: status(carina, "late") == "ok")
            carina.ctr("images", "pull", "--plain-http", "--snapshotter", "late", reference)
            os.kill(plugin.pid, signal.SIGSTOP)
            try:
                carina.ctr("images", "pull", "--plain-http", "--snapshotter", "native", reference)
                assert carina.ctr("run", "--rm", reference, "one", "echo", "fine").output == "fine\n"
                until(lambda: "did not answer" in status(carina, "late"))
                until(lambda: health(carina, "late") == "NOT_SERVING")
                refused = carina.ctr("snapshots", "--snapshotter", "late", "prepare", "key", check=False)
                assert "snapshotter late" in refused.error
            finally:
                os.kill(plugin.pid, signal.SIGCONT)
            until(lambda: status(carina, "late") == "ok")
            carina.ctr("snapshots", "--snapshotter", "late", "prepare", "key")
        with snapshotd(base, "native"):  # another process on the same socket
            until(lambda: status(carina, "late") == "ok")
            carina.ctr("snapshots", "--snapshotter", "late", "rm", "key")


def test_a_changed_file_is_taken_over(base: Path) -> None:
    """By `carina reload`, and by SIGHUP to `carina up`: without a restart, and not at all while the file is wrong."""
    others = f'[proxy_plugins.mine]\ntype = "diff"\naddress = "{base}/others.sock"\n'
    others += f'[proxy_plugins.boxes]\ntype = "sandbox"\naddress = "{base}/others.sock"\n'
    layer = Descriptor(media_type="application/vnd.test.layer", digest=Digest.of(b"x"), size=1)
    with serving(base / "others.sock", "-c", OTHERS, str(base / "others.sock")), Constellation() as carina:
        before = [line.split()[2] for line in carina.carina("status", *carina.paths).output.splitlines()]
        with pytest.raises(Unimplemented):
            call(carina, lambda channel: RemoteDiffer(channel).apply(layer, []))
        for text, said in (
            (f"{others}[nonsense]", "unknown key 'nonsense'"),
            (f"{others}[images]\nattempts = 0", "images.attempts"),
            (others.replace("sandbox", "sandbag"), "type 'sandbag' is not one of"),
            (f"{others}[", "is not TOML"),
        ):
            carina.config.write_text(text)
            refused = carina.carina("reload", "--config", str(carina.config), check=False)
            assert refused.status == 1
            first, *where = refused.error.splitlines()
            assert said in first
            assert all(line.startswith(f"  {carina.config}:") for line in where)
            assert status(carina, "mine") == ""
        carina.config.write_text(others)
        done = carina.carina("reload", "--config", str(carina.config)).output.splitlines()
        assert done == [
            f"proxy_plugins.{name} is new: {type} at {base}/others.sock"
            for name, type in (("boxes", "sandbox"), ("mine", "diff"))
        ]
        assert (status(carina, "mine"), status(carina, "boxes")) == ("ok", "ok")
        assert call(carina, lambda channel: RemoteDiffer(channel).apply(layer, [])) == layer
        start = ControllerStartRequest(sandbox_id="s", sandboxer="boxes")
        assert call(carina, lambda channel: ControllerStub(channel).start(start)).pid == 42
        carina.config.write_text("")
        carina.supervisor.send_signal(signal.SIGHUP)
        until(lambda: status(carina, "mine") == "")
        after = [line.split()[2] for line in carina.carina("status", *carina.paths).output.splitlines()]
        assert after == before
