"""The reader of archives: what others write it reads alike, and what nobody should write it refuses."""

import io
import os
import struct
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carina.errors import CarinaError, InvalidArgument, ResourceExhausted
from carina.layer import Limits
from carina.layer.tar import Entry, Reader
from support.layers import Layer, apply_here, listing


def _entries(archive: bytes, step: int = 700) -> list[tuple[Entry, bytes]]:
    chunks = iter([archive[at : at + step] for at in range(0, len(archive), step)])
    reader = Reader(lambda: next(chunks, b""))
    found = []
    while (entry := reader.next()) is not None:
        found.append((entry, b"".join(iter(lambda: reader.read(1 << 20), b""))))
    return found


def _block(name: bytes, *, kind: bytes = b"0", size: bytes = b"00000000000\0", magic: bytes = b"ustar\00000") -> bytes:
    """A header with a right checksum, whatever its fields."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\0" * 3
    block[124:136] = size.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax(*records: bytes) -> bytes:
    body = b""
    for record in records:
        length = len(record) + 2
        while len(b"%d %b\n" % (length, record)) != length:
            length += 1
        body += b"%d %b\n" % (length, record)
    return _block(b"pax", kind=b"x", size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_python_writes(form: int) -> None:
    """Names, long names, links, owners, times and data come out of every format as they went in."""
    file = io.BytesIO()
    long = "d" * 90 + "/" + "f" * 95
    names = [long, "plain", "é"] if form != tarfile.USTAR_FORMAT else [long, "plain"]
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.gid, member.mode, member.mtime = number * 600, 7, 2_000_000, 0o4755, 12345
            tar.addfile(member, io.BytesIO(bytes(number * 600)))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 99 if form == tarfile.USTAR_FORMAT else "t" * 300
        tar.addfile(link)
    found = _entries(file.getvalue())
    assert [entry.name.decode() for entry, _ in found] == [*names, "link"]
    assert [len(data) for _, data in found] == [*(600 * number for number in range(len(names))), 0]
    assert {(e.uid, e.gid, e.mode, e.mtime) for e, _ in found[:-1]} == {(7, 2_000_000, 0o4755, 12345 * 10**9)}
    assert found[-1][0].link.decode() == link.linkname


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix", "ustar", "v7"])
def test_reads_what_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    """A tree packed by GNU tar in any of its formats is the same tree again."""
    source = tmp_path / "source"
    (source / "d/e").mkdir(parents=True)
    (source / "d/file").write_bytes(os.urandom(3000))
    (source / "d/e/empty").touch()
    (source / "link").symlink_to("d/file")
    os.link(source / "d/file", source / "hard")
    os.chmod(source / "d/file", 0o4711)
    for path in (source / "d/file", source / "d/e/empty", source / "link"):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    archive = subprocess.run(["tar", "-c", "-H", form, "-C", str(source), "."], check=True, capture_output=True).stdout
    target = tmp_path / "target"
    target.mkdir()
    apply_here(archive, target)
    assert listing(target) == listing(source)


@pytest.mark.parametrize("version", ["", "0.0", "0.1", "1.0"])
def test_reads_sparse_files(tmp_path: Path, version: str) -> None:
    """A file with holes comes back with its data in place and its holes empty, from all four formats."""
    form = ["-H", "posix", f"--sparse-version={version}"] if version else ["-H", "gnu"]
    (tmp_path / "source").mkdir()
    with open(tmp_path / "source/holes", "wb") as file:
        for place in range(30):
            file.seek(place * (1 << 20) + (1 << 19))
            file.write(b"data%d" % place)
        file.truncate(40 << 20)
    archive = subprocess.run(
        ["tar", "-c", "-S", *form, "-C", str(tmp_path / "source"), "."], check=True, capture_output=True
    ).stdout
    assert len(archive) < 4 << 20
    (tmp_path / "target").mkdir()
    apply_here(archive, tmp_path / "target")
    found = tmp_path / "target/holes"
    assert found.read_bytes() == (tmp_path / "source/holes").read_bytes()
    assert found.stat().st_blocks * 512 < 8 << 20


def test_the_size_in_a_pax_header_governs_both_data_and_the_next_header() -> None:
    """No bytes are a file's data to one reader and a header to another."""
    hidden = _block(b"hidden")
    archive = _pax(b"size=512") + _block(b"carrier", size=b"00000000000\0") + hidden + _block(b"after") + bytes(1024)
    assert [(e.name, data) for e, data in _entries(archive)] == [(b"carrier", hidden), (b"after", b"")]


NEGATIVE = b"\xff" * 12
_TEN = _block(b"f", size=b"%011o\0" % 10) + bytes(512)
_LONG_RECORD = _block(b"p", kind=b"x", size=b"%011o\0" % 12) + b"99 path=abc\n".ljust(512, b"\0") + _block(b"f")
_LONG_MAP = (
    _pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9")
    + _block(b"f", size=b"%011o\0" % 1024)
    + b"1000000000\n".ljust(1024, b"\0")
)
BAD = {
    "a negative size": _block(b"f", size=NEGATIVE),
    "a size of 2^63": _block(b"f", size=b"\x80\0\0\0" + struct.pack(">Q", 1 << 63)),
    "a size with a sign": _block(b"f", size=b"-0000000001\0"),
    "a size with underscores": _block(b"f", size=b"0000000_001\0"),
    "a size in a PAX header with a sign": _pax(b"size=-1") + _block(b"f"),
    "a name of 2 GiB": _block(b"f", kind=b"L", size=b"%011o\0" % (2 << 30)),
    "a PAX header of 2 GiB": _block(b"f", kind=b"x", size=b"%011o\0" % (2 << 30)),
    "a negative PAX header": _block(b"f", kind=b"x", size=NEGATIVE),
    "a negative long name": _block(b"f", kind=b"L", size=NEGATIVE),
    "a record that is longer than its header": _LONG_RECORD,
    "a record without an equals sign": _pax(b"path") + _block(b"f"),
    "a NUL in a name": _pax(b"path=a\0b") + _block(b"f"),
    "an owner of -1": _pax(b"uid=4294967295") + _block(b"f"),
    "an unknown type": _block(b"f", kind=b"Z"),
    "data that is cut off": _block(b"f", size=b"%011o\0" % 5000) + bytes(600),
    "a header that is cut off": _block(b"f")[:300],
    "a wrong checksum": _block(b"f").replace(b"ustar", b"ustaR"),
    "a header of zeros in its middle": bytes(512) + _block(b"f"),
    "nothing after a PAX header": _pax(b"path=x") + bytes(1024),
    "a sparse file out of order": _pax(b"GNU.sparse.size=100", b"GNU.sparse.map=50,5,0,5") + _TEN,
    "a sparse file past its end": _pax(b"GNU.sparse.size=3", b"GNU.sparse.map=0,10") + _TEN,
    "a sparse map of a billion": _LONG_MAP,
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str, tmp_path: Path) -> None:
    """Impossible headers are an invalid argument, at once and without memory for what they announce."""
    with pytest.raises(InvalidArgument):
        apply_here(BAD[name], tmp_path)


def test_global_headers_change_nothing() -> None:
    """What a global PAX header says is skipped, as containerd does, however tempting."""
    pax = bytearray(_pax(b"path=evil", b"size=512"))
    pax[156:157] = b"g"
    pax[148:156] = b" " * 8
    pax[148:156] = b"%06o\0 " % sum(pax[:512])
    assert [e.name for e, _ in _entries(bytes(pax) + _block(b"f") + bytes(1024))] == [b"f"]


def test_entries_are_counted(tmp_path: Path) -> None:
    """An archive with more entries than the limit is refused."""
    archive = Layer().file("a").file("b").file("c").bytes()
    with pytest.raises(ResourceExhausted, match="more than 2 entries"):
        apply_here(archive, tmp_path, limits=Limits(entries=2))


def _seeds() -> Iterator[bytes]:
    yield Layer().directory("d").file("d/f", b"x" * 600).symlink("..", "d/s").link("d/f", "h").file("d/.wh.f").bytes()
    yield _pax(b"path=" + b"n" * 200, b"SCHILY.xattr.user.k=v") + _block(b"f", size=b"%011o\0" % 3) + bytes(1536)
    yield _block(b"name", kind=b"L", size=b"%011o\0" % 20) + b"a/../../b".ljust(512, b"\0") + _block(b"x") + bytes(1024)
    yield _pax(b"GNU.sparse.size=100", b"GNU.sparse.map=50,5") + _block(b"f", size=b"%011o\0" % 5) + bytes(1536)


SEEDS = list(_seeds())


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    archive = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(archive) - 1))
        piece = draw(st.binary(min_size=1, max_size=12))
        archive[at : at + len(piece)] = piece
    for start in range(0, len(archive) - 511, 512):
        # Most headers get a right checksum again, or nothing would come of them.
        if draw(st.integers(0, 7)) and archive[start + 257 : start + 262] == b"ustar":
            archive[start + 148 : start + 156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(archive[start : start + 512])
    return bytes(archive[: draw(st.integers(0, len(archive)))] if draw(st.booleans()) else archive)


@pytest.mark.root
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(archive=_damaged() | st.binary(max_size=1500), overlay=st.booleans())
def test_damaged_archives_end_and_stay_inside(tmp_path: Path, archive: bytes, overlay: bool) -> None:
    """Whatever the bytes, the applier ends, fails with an error of the domain if at all, writes nothing outside, and
    takes no more memory than a few headers."""
    room = tmp_path / os.urandom(8).hex()
    root = room / "root"
    root.mkdir(parents=True)
    tracemalloc.start()
    try:
        apply_here(archive, root, overlay=overlay)
    except CarinaError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20
    assert os.listdir(room) == ["root"]
    subprocess.run(["rm", "-rf", str(room)], check=True)
