"""What every snapshotter promises. A subclass gives the fixture `snapshotter`, and says where it differs.

Keys and labels are unique to each test, so that the snapshotter may be shared and may hold other things.
"""

import asyncio
import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from carina.aio.threads import in_thread
from carina.errors import AlreadyExists, CarinaError, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from carina.linux.mount import mounted
from carina.mount import Mount
from carina.snapshots import Info, Kind, Snapshotter

Change = Callable[[Path], object]
ROOT_LABEL = "containerd.io/gc.root"


def write(path: str, text: str = "", mode: int = 0o644) -> Change:
    def change(tree: Path) -> None:
        (tree / path).write_text(text)
        (tree / path).chmod(mode)

    return change


def mkdir(path: str, mode: int = 0o755) -> Change:
    def change(tree: Path) -> None:
        (tree / path).mkdir()
        (tree / path).chmod(mode)

    return change


def remove(path: str) -> Change:
    def change(tree: Path) -> None:
        for directory, _, files in os.walk(tree / path, topdown=False):
            for name in files:
                os.unlink(os.path.join(directory, name))
            os.rmdir(directory)
        if (tree / path).is_file():
            (tree / path).unlink()

    return change


def chown(path: str, uid: int, gid: int) -> Change:
    return lambda tree: os.lchown(tree / path, uid, gid)


def chmod(path: str, mode: int) -> Change:
    return lambda tree: (tree / path).chmod(mode)


def rename(path: str, new: str) -> Change:
    return lambda tree: (tree / path).rename(tree / new)


def link(path: str, new: str) -> Change:
    return lambda tree: (tree / new).hardlink_to(tree / path)


def symlink(path: str, target: str) -> Change:
    return lambda tree: (tree / path).symlink_to(target)


def contents(tree: Path) -> dict[str, tuple[Any, ...]]:
    """Everything of a tree that is to be the same in a layer made from it."""
    found = {}
    for path in [tree, *tree.rglob("*")]:
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            data: object = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            data = os.readlink(path)
        else:
            data = status.st_rdev
        found[str(path.relative_to(tree))] = (oct(status.st_mode), status.st_uid, status.st_gid, data)
    return found


def apply(tree: Path, changes: Sequence[Change]) -> None:
    for change in changes:
        change(tree)


async def change_mounted(mounts: Sequence[Mount], changes: Sequence[Change]) -> None:
    def work() -> None:
        with mounted(mounts) as tree:
            apply(tree, changes)

    await in_thread(work)


async def read_mounted(mounts: Sequence[Mount]) -> dict[str, tuple[Any, ...]]:
    def work() -> dict[str, tuple[Any, ...]]:
        with mounted(mounts) as tree:
            return contents(tree)

    return await in_thread(work)


async def collected(infos: AsyncIterator[Info]) -> dict[str, Info]:
    return {info.name: info async for info in infos}


@pytest.mark.root
class SnapshotterSuite:
    renames_directories = True
    """False where a directory of a lower layer can't be renamed (overlayfs without redirect_dir)."""
    rebases = False
    """Whether a parent may be named at commit."""
    layers = 128
    """Height of a stack that it bears."""
    names_parents = True
    """False where a parent named at commit is not even read."""
    keeps_root_modes = True
    """False where a snapshot's root has mode 0755 whatever its parent's has."""
    malformed: type[CarinaError] = InvalidArgument
    """What input that can't be is answered with: CarinaError where that is an error of no class."""
    not_active: type[CarinaError] = FailedPrecondition
    """What committing a view is answered with, likewise."""

    @pytest.fixture(autouse=True)
    def plain_umask(self) -> Any:
        old = os.umask(0)
        yield
        os.umask(old)

    @pytest.fixture
    def name(self) -> Callable[[str], str]:
        unique = uuid.uuid4().hex[:12]
        return lambda text: f"{unique}/../{text}"

    @pytest.fixture
    def labels(self) -> dict[str, str]:
        return {ROOT_LABEL: uuid.uuid4().hex}

    async def chain(
        self, snapshotter: Snapshotter, name: Callable[[str], str], work: Path, layers: Sequence[Sequence[Change]]
    ) -> str:
        """Commit layer upon layer, and check each by a view of it; the name of the uppermost."""
        flat = work / "flat"
        flat.mkdir(mode=0o755)
        parent = ""
        for number, changes in enumerate(layers):
            key, committed = name(f"active-{number}"), name(f"layer-{number}")
            await change_mounted(await snapshotter.prepare(key, parent, {ROOT_LABEL: "x"}), changes)
            await in_thread(apply, flat, changes)
            await snapshotter.commit(committed, key, {ROOT_LABEL: "x"})
            view = name(f"view-{number}")
            shown = await read_mounted(await snapshotter.view(view, committed, {ROOT_LABEL: "x"}))
            assert await in_thread(contents, flat) == shown
            await snapshotter.remove(view)
            parent = committed
        return parent

    async def test_a_layer_is_prepared_changed_committed_and_built_upon(
        self, snapshotter: Snapshotter, name: Callable[[str], str], labels: dict[str, str], tmp_path: Path
    ) -> None:
        """The life of two layers and a view; a committed snapshot with others upon it can't be removed."""
        first = [write("foo", "foo\n", 0o777), mkdir("a"), mkdir("a/b"), mkdir("a/b/c")]
        second = [write("bar", "bar\n", 0o777), write("foo", "bar\n", 0o777), remove("a/b")]
        await change_mounted(await snapshotter.prepare(name("one"), "", labels), first)
        await snapshotter.commit(name("layer-1"), name("one"), labels)
        with pytest.raises(NotFound):
            await snapshotter.stat(name("one"))
        mounts = await snapshotter.prepare(name("two"), name("layer-1"), labels)
        assert await snapshotter.mounts(name("two")) == mounts
        assert (await read_mounted(mounts))["foo"][3] == b"foo\n"
        await change_mounted(mounts, second)
        assert (await snapshotter.stat(name("two"))).parent == name("layer-1")
        await snapshotter.commit(name("layer-2"), name("two"), labels)

        infos = [await snapshotter.stat(name(layer)) for layer in ("layer-1", "layer-2")]
        assert [(info.kind, info.parent) for info in infos] == [(Kind.COMMITTED, ""), (Kind.COMMITTED, name("layer-1"))]
        walked = await collected(snapshotter.walk([f'labels."{ROOT_LABEL}"=={labels[ROOT_LABEL]}']))
        assert walked == {info.name: info for info in infos}

        shown = await read_mounted(await snapshotter.view(name("view"), name("layer-2"), labels))
        flat = tmp_path / "flat"
        flat.mkdir(mode=0o755)
        apply(flat, [*first, *second])
        assert contents(flat) == shown
        await snapshotter.remove(name("view"))
        with pytest.raises(FailedPrecondition, match="remove"):
            await snapshotter.remove(name("layer-1"))
        await snapshotter.remove(name("layer-2"))
        await snapshotter.remove(name("layer-1"))
        assert await collected(snapshotter.walk([f'labels."{ROOT_LABEL}"=={labels[ROOT_LABEL]}'])) == {}

    async def test_an_active_snapshot_can_be_asked_about_while_mounted(
        self, snapshotter: Snapshotter, name: Callable[[str], str]
    ) -> None:
        """Stat tells kind and parent, and a fresh root is open to all, whatever the umask."""
        old = os.umask(0o077)
        try:
            mounts = await snapshotter.prepare(name("active"), "", {ROOT_LABEL: "x"})
        finally:
            os.umask(old)
        shown = await read_mounted(mounts)
        info = await snapshotter.stat(name("active"))
        assert (info.name, info.kind, info.parent) == (name("active"), Kind.ACTIVE, "")
        assert shown["."][0] == oct(stat.S_IFDIR | 0o755)

    async def test_a_key_is_used_once(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """A second prepare or view under a key, and a commit under a name in use, are refused and change nothing."""
        await snapshotter.prepare(name("a"))
        await snapshotter.commit(name("base"), name("a"))
        await snapshotter.prepare(name("active"), name("base"))
        await snapshotter.view(name("view"), name("base"))
        for key in ("active", "view", "base"):
            with pytest.raises(AlreadyExists):
                await snapshotter.prepare(name(key), name("base"))
            with pytest.raises(AlreadyExists):
                await snapshotter.view(name(key), name("base"))
        for used in ("base", "view"):
            with pytest.raises(AlreadyExists):
                await snapshotter.commit(name(used), name("active"))
        assert (await snapshotter.stat(name("active"))).kind is Kind.ACTIVE

    async def test_of_many_that_prepare_one_key_one_succeeds(
        self, snapshotter: Snapshotter, name: Callable[[str], str]
    ) -> None:
        """The others are told that it exists."""
        results = await asyncio.gather(*(snapshotter.prepare(name("same")) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(result, AlreadyExists) for result in results) == 4
        assert sum(isinstance(result, list) for result in results) == 1

    async def test_what_does_not_exist_is_not_found(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """Every method names the missing snapshot."""
        missing = name("missing")
        calls = (
            lambda: snapshotter.stat(missing),
            lambda: snapshotter.mounts(missing),
            lambda: snapshotter.usage(missing),
            lambda: snapshotter.remove(missing),
            lambda: snapshotter.commit(name("x"), missing),
            lambda: snapshotter.update(Info(name=missing), ["labels"]),
            lambda: snapshotter.prepare(name("child"), missing),
            lambda: snapshotter.view(name("child"), missing),
        )
        for call in calls:
            with pytest.raises(NotFound, match="missing"):
                await call()

    async def test_kinds_are_kept_apart(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """Only a committed snapshot is a parent, only an active one is committed, and a committed one isn't mounted."""
        await snapshotter.prepare(name("a"))
        await snapshotter.commit(name("base"), name("a"))
        await snapshotter.prepare(name("active"), name("base"))
        await snapshotter.view(name("view"), name("base"))
        for parent in ("active", "view"):
            with pytest.raises(InvalidArgument):
                await snapshotter.prepare(name("child"), name(parent))
        with pytest.raises(FailedPrecondition):
            await snapshotter.commit(name("other"), name("base"))
        with pytest.raises(self.not_active):
            await snapshotter.commit(name("other"), name("view"))
        with pytest.raises(FailedPrecondition):
            await snapshotter.mounts(name("base"))
        with pytest.raises(NotFound):
            await snapshotter.stat(name("other"))

    async def test_an_empty_key_is_refused(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """Neither a key nor a name may be empty."""
        with pytest.raises(self.malformed):
            await snapshotter.prepare("")
        await snapshotter.prepare(name("a"))
        with pytest.raises(self.malformed):
            await snapshotter.commit("", name("a"))

    async def test_labels_are_changed_by_field_and_nothing_else_is(
        self, snapshotter: Snapshotter, name: Callable[[str], str]
    ) -> None:
        """Update replaces all labels or single ones, whatever the kind, and refuses every other field."""
        before = datetime.now(UTC)
        root = {ROOT_LABEL: "root"}
        await snapshotter.prepare(name("c-a"), "", root)
        await snapshotter.commit(name("committed"), name("c-a"), root)
        await snapshotter.prepare(name("active"), name("committed"), root)
        await snapshotter.view(name("view"), "", root)
        for key, parent in (("committed", ""), ("active", name("committed")), ("view", "")):
            info = await snapshotter.stat(name(key))
            assert info.created_at is not None
            assert info.created_at == info.updated_at
            assert before <= info.created_at <= datetime.now(UTC)
            wanted = Info(name=name(key), parent="elsewhere", labels={**root, "l1": "v1", "l2": "v2", "l3": "v3"})
            updated = await snapshotter.update(wanted)
            assert (updated.kind, updated.parent, updated.created_at) == (info.kind, parent, info.created_at)
            assert updated.updated_at is not None
            assert updated.updated_at > info.created_at
            assert updated.labels == wanted.labels
            some = Info(name=name(key), labels={"l1": "new", "l4": "v4"})
            updated = await snapshotter.update(some, ["labels.l1", "labels.l2"])
            assert updated.labels == {**root, "l1": "new", "l3": "v3"}
            updated = await snapshotter.update(Info(name=name(key), labels={**root, "l4": "v4"}), ["labels"])
            assert updated.labels == {**root, "l4": "v4"}
            with pytest.raises(InvalidArgument, match="parent"):
                await snapshotter.update(Info(name=name(key), parent="elsewhere"), ["parent"])
            assert await snapshotter.stat(name(key)) == updated

    async def test_labels_are_not_inherited_and_have_a_size(
        self, snapshotter: Snapshotter, name: Callable[[str], str]
    ) -> None:
        """A commit takes its own labels alone; a label over 4,096 bytes is refused."""
        await snapshotter.prepare(name("a"), "", {ROOT_LABEL: "x", "mine": "1"})
        await snapshotter.commit(name("c"), name("a"), {ROOT_LABEL: "x"})
        assert (await snapshotter.stat(name("c"))).labels == {ROOT_LABEL: "x"}
        with pytest.raises(InvalidArgument):
            await snapshotter.prepare(name("b"), "", {"k": "v" * 4096})

    async def test_a_removed_key_is_free_again(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """Also at once, as another kind, and for a commit; nothing of the former shows."""
        await change_mounted(await snapshotter.prepare(name("a")), [write("old")])
        await snapshotter.commit(name("base"), name("a"))
        await snapshotter.prepare(name("reuse"), name("base"))
        await snapshotter.remove(name("reuse"))
        await snapshotter.view(name("reuse"), name("base"))
        await snapshotter.remove(name("reuse"))
        mounts = await snapshotter.prepare(name("reuse"))
        assert list(await read_mounted(mounts)) == ["."]
        await snapshotter.remove(name("base"))
        await snapshotter.commit(name("base"), name("reuse"))

    async def test_a_layer_between_others_is_kept(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """From the top down all can be removed."""
        await snapshotter.prepare(name("1"))
        await snapshotter.commit(name("base"), name("1"))
        await snapshotter.prepare(name("2"), name("base"))
        await snapshotter.commit(name("middle"), name("2"))
        await snapshotter.prepare(name("top"), name("middle"))
        with pytest.raises(FailedPrecondition):
            await snapshotter.remove(name("middle"))
        for key in ("top", "middle", "base"):
            await snapshotter.remove(name(key))

    async def test_walk_filters(
        self, snapshotter: Snapshotter, name: Callable[[str], str], labels: dict[str, str]
    ) -> None:
        """By name, parent, kind and labels; several filters add up."""
        await snapshotter.prepare(name("a-np"), "", labels)
        await snapshotter.prepare(name("t1"), "", labels)
        await snapshotter.commit(name("p"), name("t1"), labels)
        await snapshotter.prepare(name("a"), name("p"), labels)
        await snapshotter.view(name("v"), name("p"), labels)
        await snapshotter.prepare(name("t2"), "", labels)
        await snapshotter.commit(name("p-wl"), name("t2"), {**labels, "l": "1"})
        await snapshotter.prepare(name("a-wl"), name("p-wl"), {**labels, "l": "2"})
        await snapshotter.view(name("v-wl"), name("p-wl"), {**labels, "l": "3"})
        await snapshotter.prepare(name("a-np-wl"), "", {**labels, "l": "2"})
        mine = f'labels."{ROOT_LABEL}"=={labels[ROOT_LABEL]}'
        every = {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}
        for filters, expected in (
            ([mine], every),
            ([f"kind==active,{mine}"], {"a-np", "a", "a-wl", "a-np-wl"}),
            ([f"kind==view,{mine}"], {"v", "v-wl"}),
            ([f"kind==committed,{mine}"], {"p", "p-wl"}),
            ([f'name=="{name("p")}"', f'name=="{name("a-np-wl")}"'], {"p", "a-np-wl"}),
            ([f'name=="{name("a-wl")}",labels.l'], {"a-wl"}),
            ([f'parent=="{name("p")}"'], {"a", "v"}),
            ([f'parent!="",{mine}'], {"a", "v", "a-wl", "v-wl"}),
            ([f"labels.l,{mine}"], {"p-wl", "a-wl", "v-wl", "a-np-wl"}),
            ([f"labels.l==2,{mine}"], {"a-wl", "a-np-wl"}),
        ):
            assert set(await collected(snapshotter.walk(filters))) == {name(text) for text in expected}, filters
        everything = await collected(snapshotter.walk())
        assert {name(text) for text in every} <= set(everything)
        with pytest.raises(self.malformed):
            await collected(snapshotter.walk(["name=="]))

    async def test_a_walk_may_be_interrupted_by_other_calls(
        self, snapshotter: Snapshotter, name: Callable[[str], str], labels: dict[str, str]
    ) -> None:
        """Stat and remove during a walk neither deadlock nor disturb it."""
        for number in range(5):
            await snapshotter.prepare(name(str(number)), "", labels)
        seen = 0
        async for info in snapshotter.walk([f'labels."{ROOT_LABEL}"=={labels[ROOT_LABEL]}']):
            assert await snapshotter.stat(info.name) == info
            await snapshotter.remove(info.name)
            seen += 1
        assert seen == 5

    async def test_a_view_can_not_be_written(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """Not on one layer, not on two, and not without any."""
        await change_mounted(await snapshotter.prepare(name("1")), [write("one")])
        await snapshotter.commit(name("c1"), name("1"))
        await change_mounted(await snapshotter.prepare(name("2"), name("c1")), [write("two")])
        await snapshotter.commit(name("c2"), name("2"))
        for number, parent in enumerate(("", name("c1"), name("c2"))):
            mounts = await snapshotter.view(name(f"view-{number}"), parent)
            with pytest.raises(OSError, match="Read-only"):
                await change_mounted(mounts, [write("no")])

    async def test_usage_is_live_while_active_and_recorded_at_commit(
        self, snapshotter: Snapshotter, name: Callable[[str], str]
    ) -> None:
        """Bytes allocated and inodes; a hard link counts once, a hole not at all."""
        mounts = await snapshotter.prepare(name("a"))
        empty = await snapshotter.usage(name("a"))
        sparse: Change = lambda tree: os.truncate(tree / "file", 1 << 30)  # noqa: E731
        await change_mounted(mounts, [write("file", "x" * 100_000), link("file", "again"), sparse, mkdir("d")])
        used = await snapshotter.usage(name("a"))
        assert used.inodes == empty.inodes + 2
        assert 100_000 <= used.size - empty.size < 200_000
        await snapshotter.commit(name("c"), name("a"))
        assert await snapshotter.usage(name("c")) == used

    async def test_files_are_updated_in_an_upper_layer(
        self, snapshotter: Snapshotter, name: Callable[[str], str], tmp_path: Path
    ) -> None:
        """Also where only the mode differs."""
        first = [mkdir("etc", 0o700), write("etc/hosts", "10.0.0.1"), write("etc/profile", "PATH=/usr/bin")]
        second = [write("etc/hosts", "10.0.0.2"), write("etc/profile", "PATH=/usr/bin", 0o666), mkdir("root", 0o700)]
        await self.chain(snapshotter, name, tmp_path, [first, second, [chmod("etc/hosts", 0o600), chmod("etc", 0o711)]])

    async def test_a_directory_replaced_hides_the_former(
        self, snapshotter: Snapshotter, name: Callable[[str], str], tmp_path: Path
    ) -> None:
        """Over a removed directory, and over a removed file of the same name."""
        first = [mkdir("lib", 0o700), write("lib/hidden"), write("was-file")]
        second = [remove("lib"), mkdir("lib", 0o700), write("lib/not-hidden"), remove("was-file"), mkdir("was-file")]
        await self.chain(snapshotter, name, tmp_path, [first, second, [write("lib/new"), write("was-file/inside")]])

    async def test_owners_are_kept(self, snapshotter: Snapshotter, name: Callable[[str], str], tmp_path: Path) -> None:
        """Of files, directories and the root of the tree, which a layer above shows as the layer below left it."""
        first = [
            mkdir("opt", 0o700),
            mkdir("opt/a", 0o700),
            write("opt/a/file", "hello"),
            chown(".", 7, 8),
        ]
        if self.keeps_root_modes:
            first.append(chmod(".", 0o750))
        second = [chown("opt", 1, 1), chown("opt/a", 1, 1), chown("opt/a/file", 1, 1)]
        await self.chain(snapshotter, name, tmp_path, [first, second])

    async def test_permissions_of_directories_are_kept_on_commit(
        self, snapshotter: Snapshotter, name: Callable[[str], str], tmp_path: Path
    ) -> None:
        """Through removal and remaking over three layers."""
        made = [mkdir(f"dir{number}", 0o700) for number in range(1, 6)]
        first = [*made, write("dir4/f1"), write("dir5/f1"), *(chown(f"dir{n}", 1, 1) for n in (1, 2, 3, 5))]
        second = [chown("dir2", 0, 0), remove("dir3"), chown("dir4", 1, 1), chown("dir4/f1", 1, 1)]
        third = [mkdir("dir3", 0o700), chown("dir3", 1, 1), remove("dir5"), mkdir("dir5", 0o700), chown("dir5", 1, 1)]
        await self.chain(snapshotter, name, tmp_path, [first, second, third])

    async def test_files_are_removed_and_moved(
        self, snapshotter: Snapshotter, name: Callable[[str], str], tmp_path: Path
    ) -> None:
        """A file of a lower layer is gone where it was and there where it went, also over another."""
        first = [
            *(mkdir("dir1", 0o700), write("dir1/f1", "Hello"), mkdir("dir2", 0o700), write("dir2/f2", "..")),
            *(write("gone"), symlink("link", "/nowhere")),
        ]
        second = [
            *(mkdir("dir3", 0o700), write("dir3/f1", "Hello"), remove("dir1"), link("dir2/f2", "dir3/f2")),
            *(remove("dir2/f2"), remove("gone"), write("over", "new"), rename("over", "dir3/f1")),
        ]
        await self.chain(snapshotter, name, tmp_path, [first, second, []])

    async def test_a_directory_is_renamed(
        self, snapshotter: Snapshotter, name: Callable[[str], str], tmp_path: Path
    ) -> None:
        """One made in the same layer everywhere; one of a lower layer where the snapshotter can."""
        second = [mkdir("new"), write("new/file"), rename("new", "renamed")]
        if self.renames_directories:
            second.append(rename("dir1", "dir2"))
        await self.chain(snapshotter, name, tmp_path, [[mkdir("dir1", 0o700), write("dir1/file")], second])

    async def test_many_layers_are_mounted(
        self, snapshotter: Snapshotter, name: Callable[[str], str], tmp_path: Path
    ) -> None:
        """128 of them, where layers are mounted, make more options than fit a page."""
        flat = tmp_path / "flat"
        flat.mkdir(mode=0o755)
        layers: list[list[Change]] = [[write("bottom", "bottom"), mkdir("addhere"), mkdir("onlyme"), write("onlyme/0")]]
        for number in range(1, self.layers):
            only = [remove("onlyme"), mkdir("onlyme"), write(f"onlyme/{number}")]
            layers.append([write("overwriteme", str(number)), write(f"addhere/{number}", "same"), *only])
        parent = ""
        for number, changes in enumerate(layers):
            await change_mounted(await snapshotter.prepare(name(f"a{number}"), parent), changes)
            apply(flat, changes)
            parent = name(f"c{number}")
            await snapshotter.commit(parent, name(f"a{number}"))
        assert await read_mounted(await snapshotter.view(name("view"), parent)) == contents(flat)

    async def test_a_parent_can_be_named_at_commit(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """Where the snapshotter has the capability; everywhere the parent it was prepared on can't be changed."""
        if not self.names_parents:
            return
        for layer in ("one", "two"):
            await change_mounted(await snapshotter.prepare(name(f"a-{layer}")), [write(layer)])
            await snapshotter.commit(name(layer), name(f"a-{layer}"))
        await change_mounted(await snapshotter.prepare(name("free")), [write("free")])
        await snapshotter.prepare(name("bound"), name("one"))
        with pytest.raises(InvalidArgument):
            await snapshotter.commit(name("x"), name("bound"), parent=name("two"))
        await snapshotter.commit(name("same"), name("bound"), parent=name("one"))
        if not self.rebases:
            with pytest.raises(InvalidArgument):
                await snapshotter.commit(name("x"), name("free"), parent=name("one"))
            return
        with pytest.raises(NotFound):
            await snapshotter.commit(name("x"), name("free"), parent=name("nowhere"))
        await snapshotter.prepare(name("active"))
        with pytest.raises(FailedPrecondition):
            await snapshotter.commit(name("x"), name("free"), parent=name("active"))
        await snapshotter.commit(name("rebased"), name("free"), parent=name("one"))
        assert (await snapshotter.stat(name("rebased"))).parent == name("one")
        assert {"one", "free"} < set(await read_mounted(await snapshotter.view(name("v"), name("rebased"))))
        with pytest.raises(FailedPrecondition):
            await snapshotter.remove(name("one"))

    async def test_layers_made_side_by_side_look_as_if_made_upon_each_other(
        self, snapshotter: Snapshotter, name: Callable[[str], str]
    ) -> None:
        """Prepared without parent all at once, and put on each other at commit; an unset root is the base's."""
        if not self.rebases:
            return
        changes = {
            "base": [write("file", "base"), chown(".", 7, 8), chmod(".", 0o751)],
            "middle": [write("file", "middle"), write("more")],
            "root": [write("other"), chmod(".", 0o700)],
            "top": [write("more", "top")],
        }
        mounts = {layer: await snapshotter.prepare(name(f"a-{layer}")) for layer in changes}
        for layer in reversed(changes):
            await change_mounted(mounts[layer], changes[layer])
        parent = ""
        for layer in changes:
            await snapshotter.commit(name(layer), name(f"a-{layer}"), parent=parent)
            parent = name(layer)
        for layer, root in (("middle", (oct(stat.S_IFDIR | 0o751), 7, 8)), ("top", (oct(stat.S_IFDIR | 0o700), 0, 0))):
            shown = await read_mounted(await snapshotter.view(name(f"view-{layer}"), name(layer)))
            assert shown["."][:3] == root
        assert {path: value[3] for path, value in shown.items() if path != "."} == {
            "file": b"middle",
            "more": b"top",
            "other": b"",
        }

    async def test_cleanup_and_closing_twice(self, snapshotter: Snapshotter, name: Callable[[str], str]) -> None:
        """Both may be repeated; a snapshotter that leaves nothing behind says that it has no cleanup."""
        await snapshotter.prepare(name("a"))
        await snapshotter.remove(name("a"))
        for _ in range(2):
            try:
                await snapshotter.cleanup()
            except Unimplemented:
                break
        await snapshotter.close()
        await snapshotter.close()
