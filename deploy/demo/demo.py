"""The main job, start to end, in a scratch directory, with a line per step.

Everything is done through the command line, as a user would;
the image comes from a real registry on loopback, and the snapshotter is the one of `copysnapshotter.py`.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))

from support import image  # noqa: E402 - the path is set above
from support.registry import Registry  # noqa: E402

WIDTH = 66


class Demo:
    """One run: a scratch root, a constellation on it, and the processes around it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.root = scratch / "root"
        self.state = scratch / "state"
        self.address = f"unix://{self.state}/carina.sock"
        self.mount_point = scratch / "mnt"
        self.started = time.monotonic()

    def carina(self, *arguments: str, shown: bool = True) -> str:
        """Run a sub-command in namespace `demo`; its output is indented below the step's line, and returned."""
        command = [str(BIN / "carina"), "--address", self.address, "--namespace", "demo", *arguments]
        if shown:
            print(f"    $ carina {shlex.join(arguments)}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = done.stdout.rstrip()
        if shown and text:
            print("\n".join(f"    {line}" for line in text.splitlines()))
        if done.returncode:
            raise SystemExit(f"demo: carina {shlex.join(arguments)} failed: {done.stderr.strip() or done.returncode}")
        return text

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        print(f"\n{text}", flush=True)
        begun = time.monotonic()
        yield
        print(f"{'':{WIDTH}}{(time.monotonic() - begun) * 1000:7.0f} ms", flush=True)


@contextlib.contextmanager
def process(command: list[str], log: Path, *, ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended with SIGTERM when the block ends."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        limit = time.monotonic() + 30
        while not ready():
            if child.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"demo: {shlex.join(command)} did not start:\n{log.read_text()}")
            time.sleep(0.01)
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect(os.fspath(path))
        except OSError:
            return False
    return True


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("demo: this needs root: it mounts file systems and runs containers (sudo make demo)")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    scratch = Path(tempfile.mkdtemp(prefix="carina-demo-"))
    demo = Demo(scratch)
    try:
        with contextlib.ExitStack() as stack:
            play(demo, stack)
        leftovers(demo)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"\nDone in {time.monotonic() - demo.started:.1f} s. Nothing is left running or mounted.")


def play(demo: Demo, stack: contextlib.ExitStack) -> None:
    with demo.step("The constellation comes up: every service is a process on its own socket"):
        command = [str(BIN / "carina"), "up", "--root", str(demo.root), "--state", str(demo.state)]
        log = demo.scratch / "carina.log"
        ready = lambda: log.exists() and "carina is ready" in log.read_text()  # noqa: E731
        stack.enter_context(process(command, log, ready=ready))
        demo.carina("status", "--root", str(demo.root), "--state", str(demo.state))

    with demo.step("A registry starts on loopback, with a small image made from busybox-static"):
        registry = stack.enter_context(Registry(demo.scratch / "registry"))
        reference = registry.push("demo/busybox", "1.0", image.build())
        print(f"    {reference}")

    with demo.step("A snapshotter of some thirty lines runs as its own process, and is plugged in"):
        address = demo.scratch / "demo.sock"
        script = str(HERE / "copysnapshotter.py")
        command = [sys.executable, script, str(demo.scratch / "copies"), str(address)]
        stack.enter_context(process(command, demo.scratch / "plugin.log", ready=lambda: answers(address)))
        demo.carina("plugins", "add", "demo", "--type", "snapshot", "--address", f"unix://{address}")
        demo.carina("plugins", "ls", "type==io.containerd.snapshotter.v1")

    pulled(demo, reference)
    run(demo, reference)
    collected(demo, reference)


def pulled(demo: Demo, reference: str) -> None:
    with demo.step("The image is pulled through it, into namespace demo"):
        demo.carina("pull", "--plain-http", "--snapshotter", "demo", reference)

    with demo.step("Its layers are a chain of snapshots"):
        demo.carina("snapshots", "--snapshotter", "demo", "tree")
        found = demo.carina(
            "snapshots", "--snapshotter", "demo", "ls", "-q", "kind==committed", shown=False
        ).splitlines()
        top = top_of(demo, found)

    with demo.step("A read-write snapshot is prepared on the top one, mounted, and looked into"):
        demo.mount_point.mkdir()
        arguments = ("snapshots", "--snapshotter", "demo", "prepare", "--target", str(demo.mount_point), "rw", top)
        commands = demo.carina(*arguments).splitlines()
        for command in commands:
            subprocess.run(shlex.split(command), check=True)
        try:
            print(f"    $ ls {demo.mount_point}\n    {'  '.join(sorted(os.listdir(demo.mount_point)))}")
        finally:
            for _ in commands:
                subprocess.run(["umount", str(demo.mount_point)], check=True)
        demo.carina("snapshots", "--snapshotter", "demo", "tree")


def top_of(demo: Demo, keys: list[str]) -> str:
    """The committed snapshot that is nobody's parent."""
    lines = demo.carina("snapshots", "--snapshotter", "demo", "ls", shown=False).splitlines()[1:]
    parents = {fields[1] for fields in map(str.split, lines) if len(fields) == 3}
    return next(key for key in keys if key not in parents)


def run(demo: Demo, reference: str) -> None:
    with demo.step("A container runs and prints"):
        demo.carina("run", "--rm", "--snapshotter", "demo", reference, "hello", "echo", "hello from a container")

    with demo.step("Another stays up, and a second process is executed in it"):
        demo.carina("run", "--detach", "--snapshotter", "demo", reference, "sleeper", "sleep", "1000")
        demo.carina("tasks", "exec", "--exec-id", "second", "sleeper", "ps")
        demo.carina("tasks", "ls")


def count(demo: Demo, *arguments: str) -> int:
    return len(demo.carina(*arguments, shown=False).splitlines())


def state(demo: Demo) -> None:
    content = count(demo, "content", "ls", "-q")
    snapshots = count(demo, "snapshots", "--snapshotter", "demo", "ls", "-q")
    blobs = sum(1 for path in (demo.root / "contentd" / "blobs").rglob("*") if path.is_file())
    print(f"    content: {content} records, {blobs} files; snapshots: {snapshots}")


def collected(demo: Demo, reference: str) -> None:
    with demo.step("The image is removed while the container lives: its content goes, its snapshots stay"):
        state(demo)
        demo.carina("images", "rm", "--sync", reference)
        state(demo)
        demo.carina("snapshots", "--snapshotter", "demo", "tree")
        demo.carina("tasks", "exec", "--exec-id", "third", "sleeper", "echo", "still here")

    with demo.step("Container and snapshot are removed: everything is collected"):
        demo.carina("tasks", "rm", "--force", "sleeper")
        demo.carina("containers", "rm", "sleeper")
        demo.carina("snapshots", "--snapshotter", "demo", "rm", "rw")
        demo.carina("gc", "run", "--sync")
        state(demo)
        if count(demo, "snapshots", "--snapshotter", "demo", "ls", "-q") or count(demo, "content", "ls", "-q"):
            raise SystemExit("demo: something was not collected")

    with demo.step("The snapshotter is taken out, and the constellation goes down"):
        demo.carina("plugins", "rm", "demo")
        demo.carina("down", "--root", str(demo.root), "--state", str(demo.state))


def leftovers(demo: Demo) -> None:
    """Fail where something of ours is still mounted or running."""
    for group in Path("/sys/fs/cgroup").glob("*/demo"):
        # runc removes a container's control group, not the namespace's above it.
        with contextlib.suppress(OSError):
            group.rmdir()
    scratch = os.fspath(demo.scratch)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if scratch in line]
    running = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and int(entry.name) != os.getpid() and scratch in (entry / "cmdline").read_text():
                running.append(entry.name)
    if mounts or running:
        raise SystemExit(f"demo: left behind: mounts {mounts}, processes {running}")


if __name__ == "__main__":
    main()
