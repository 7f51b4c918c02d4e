"""The client: what a container prints, read through it; and events at a steady rate to many subscribers.

Subscribers are processes of their own on Google's gRPC, and look at no message: what is measured is who sends them.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, Protocol

import grpc

import carina
from bench import peers
from bench.peers import Carina, Containerd, Peer
from carina.typed import TypedValue
from support import image
from support.registry import Registry

ROOT: Final = Path(__file__).resolve().parent.parent
MEGABYTES: Final = 512
RATE: Final = 1000
"""Events a second."""
SECONDS: Final = 10
SUBSCRIBERS: Final = 50
PROCESSES: Final = 2
"""That the subscribers are spread over."""
PATIENCE: Final = 120.0
TOPIC: Final = "/bench/tick"


class Report(Protocol):
    def add(self, what: str, unit: str, ours: float, theirs: float | None = None) -> None: ...


def client(report: Report, carina: Carina, containerd: Containerd, registry: Registry) -> None:
    reference = registry.push("bench/client", "1", image.build())
    rates: dict[str, list[float]] = {}
    for _ in range(3):
        for peer in (carina, containerd):
            rates.setdefault(peer.name, []).append(asyncio.run(_printed(peer, reference)))
    ours, theirs = (max(rates[peer.name]) for peer in (carina, containerd))
    report.add(f"stdout of a container through the client, {MEGABYTES} MiB", "MB/s", ours, theirs)
    found = {peer.name: _ticks(peer) for peer in (carina, containerd)}
    ours, theirs = (found[peer.name] for peer in (carina, containerd))
    what = f"{RATE} events/s for {SECONDS} s to {SUBSCRIBERS} subscribers"
    report.add(f"{what}: achieved", "1/s", ours["rate"], theirs["rate"])
    report.add(f"{what}: all there after the last", "ms", ours["lag"] * 1000, theirs["lag"] * 1000)
    report.add(f"{what}: processor time of the server", "s", ours["processor"], theirs["processor"])
    for peer, figures in zip((carina, containerd), (ours, theirs), strict=True):
        if figures["missing"]:
            print(f"  {peer.name}: {figures['missing']:.0f} messages did not arrive")


async def _printed(peer: Peer, reference: str) -> float:
    """Megabytes a second."""
    async with carina.Client(f"unix://{peer.socket}", namespace=peer.namespace) as made:
        pulled = await made.pull(reference)
        command = ["dd", "if=/dev/zero", "bs=65536", f"count={MEGABYTES * 16}"]
        async with await made.create_container(f"bench-{os.getpid()}", pulled, command) as container:
            async with container.task() as task:
                assert task.stdout is not None
                begun, moved = time.perf_counter(), 0
                while piece := await task.stdout.read(1 << 20):
                    moved += len(piece)
                taken = time.perf_counter() - begun
        if moved != MEGABYTES << 20:
            raise SystemExit(f"bench: a container printed {moved} of {MEGABYTES << 20} bytes through the client")
    return moved / taken / 1e6


def _ticks(peer: Peer) -> dict[str, float]:
    count = RATE * SECONDS
    each = SUBSCRIBERS // PROCESSES
    command = [sys.executable, "-m", "bench.client", str(peer.socket), str(each), str(count)]
    children = [
        subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    try:
        # A subscription says nothing until there is an event; the first that each hears is not counted.
        asyncio.run(_until_heard(peer, children))
        before = peers.processor_seconds(peer.pids())
        taken, last = asyncio.run(_publish(peer, count))
        answers = [json.loads(child.communicate(timeout=PATIENCE + 30)[0].splitlines()[-1]) for child in children]
        processor = peers.processor_seconds(peer.pids()) - before
    finally:
        for child in children:
            child.kill()
            child.wait()
    missing = sum(answer["missing"] for answer in answers)
    lag = max(answer["ended"] for answer in answers) - last
    return {"rate": count / taken, "lag": max(0.0, lag), "processor": processor, "missing": missing}


async def _until_heard(peer: Peer, children: "list[subprocess.Popen[str]]") -> None:
    async with carina.Client(f"unix://{peer.socket}", namespace=peer.namespace) as made:

        async def call() -> None:
            while True:
                await made.events.publish(f"{TOPIC}/first", TypedValue("google.protobuf.Empty", b""))
                await asyncio.sleep(0.1)

        calling = asyncio.create_task(call(), name="call subscribers")
        for child in children:
            assert child.stdout is not None
            line = await asyncio.to_thread(child.stdout.readline)
            if line.strip() != "ready":
                raise SystemExit(f"bench: a process of subscribers said {line!r}")
        calling.cancel()
        await asyncio.wait([calling])


async def _publish(peer: Peer, count: int) -> tuple[float, float]:
    """How long it took, and the moment of the last one."""
    value = TypedValue("containerd.events.NamespaceCreate", b"\n\x05bench")
    async with carina.Client(f"unix://{peer.socket}", namespace=peer.namespace) as made:
        begun = time.monotonic()
        limit = asyncio.Semaphore(64)

        async def one() -> None:
            async with limit:
                await made.events.publish(TOPIC, value)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
                group.create_task(one(), name=f"event {number}")
        last = time.monotonic()
    return last - begun, last


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def _subscribers(socket: str, subscribers: int, count: int) -> None:
    """The child: says `ready` when all have heard the first event, and in the end what came when."""
    method = "/containerd.services.events.v1.Events/Subscribe"
    heard = threading.Barrier(subscribers + 1)
    ended = [0.0] * subscribers
    missing = [count] * subscribers
    request = b"".join(b"\n" + bytes([len(one)]) + one for one in (f'topic~="^{TOPIC}"'.encode(),))

    def follow(index: int) -> None:
        with grpc.insecure_channel(f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            first = True
            try:
                for message in channel.unary_stream(method)(request, timeout=PATIENCE):
                    if first:
                        heard.wait()
                        first = False
                    if b"/first" not in message:
                        missing[index] -= 1
                    if not missing[index]:
                        break
            except grpc.RpcError:
                pass
            ended[index] = time.monotonic()

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(subscribers)]
    for thread in threads:
        thread.start()
    heard.wait()
    print("ready", flush=True)
    for thread in threads:
        thread.join()
    print(json.dumps({"ended": max(ended), "missing": sum(missing)}), flush=True)


if __name__ == "__main__":
    _subscribers(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
