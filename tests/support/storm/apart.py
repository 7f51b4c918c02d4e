"""A constellation whose services are started apart from one another, each of the version that is wanted of it."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from support.storm.accounts import Accounts
from support.storm.nemesis import Harm
from support.storm.peers import SECONDS, Ours, Peer

ROOT: Final = Path(__file__).resolve().parents[3]
ORDER: Final = ("contentd", "snapshotd-overlayfs", "snapshotd-native", "metadatad", "imaged", "taskd", "gatewayd")


@contextlib.contextmanager
def earlier(revision: str) -> Iterator[Path]:
    """The source tree of a commit."""
    with tempfile.TemporaryDirectory(prefix="earlier-") as scratch:
        packed = Path(scratch, "tree.tar")
        subprocess.run(
            ["git", "-C", str(ROOT), "archive", "-o", str(packed), revision, "services", "shared"], check=True
        )
        subprocess.run(["tar", "-x", "-C", scratch, "-f", str(packed)], check=True)
        yield Path(scratch)


class Apart(Ours):
    """Every service begins with the code in `tree`; `upgraded` names those that run with the present one."""

    def __init__(self, tree: Path) -> None:
        super().__init__()
        self._tree = tree
        self.upgraded: set[str] = set()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._turn = threading.Lock()

    def services(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._running.items() if process.poll() is None}

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        for path, mode in ((self.root, 0o700), (self.state, 0o711)):
            path.mkdir(mode=mode)
        self._stopping.clear()
        for name in ORDER:
            self._run(name)
        for name in ORDER:
            self.wait(name)
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def _run(self, name: str) -> None:
        tree = ROOT if name in self.upgraded else self._tree
        program, _, snapshotter = name.partition("-")
        more = ["--snapshotter", snapshotter] if snapshotter else []
        environment = {
            **os.environ,
            "PYTHONPATH": f"{tree}/services:{tree}/shared",
            "CARINA_SHIM_IDLE_SECONDS": "3",
        }
        command = [sys.executable, "-m", program, "--root", str(self.root), "--state", str(self.state), *more]
        with self.log.open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def wait(self, name: str) -> None:
        limit = time.monotonic() + SECONDS
        while self.pid(name) != self._running[name].pid:
            assert time.monotonic() < limit, f"{name} does not come up: {self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def _keep(self) -> None:
        while not self._stopping.wait(0.1):
            with self._turn:
                for name, process in list(self._running.items()):
                    if process.poll() is not None:
                        self._run(name)

    def upgrade(self, name: str) -> None:
        """Stop a service as an administrator does, and start its new version."""
        with self._turn:
            self.upgraded.add(name)
            _end(self._running[name])
            self._run(name)
        self.wait(name)

    def stop(self) -> None:
        self._stopping.set()
        if hasattr(self, "_keeper"):
            self._keeper.join()
        for name in reversed(ORDER):
            if name in self._running:
                _end(self._running[name])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def upgrade(peer: Peer, accounts: Accounts, chance: random.Random) -> Harm:
    """One service after the other, from the back ends to the gateway or the other way round."""
    assert isinstance(peer, Apart)
    order = list(ORDER) if chance.random() < 0.5 else list(reversed(ORDER))
    for name in order:
        if name not in peer.upgraded:
            await asyncio.to_thread(peer.upgrade, name)
            await asyncio.sleep(0.3)
    return Harm("upgrade", {"*"}, f"{order[0]} first")
