"""Damage on the disk is found, put aside, and mended by writing the blob anew."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from carina.digest import HEX_LENGTHS, Digest
from carina.errors import NotFound, Unimplemented
from carina.integrity.client import RemoteIntegrity
from carina.integrity.server import IntegrityService
from carina.rpc.client import connect
from carina.rpc.server import serve
from contentd import verify
from contentd.__main__ import main
from contentd.files import Layout
from contentd.store import LocalContentStore


async def put(store: LocalContentStore, data: bytes, algorithm: str = "sha256") -> Digest:
    digest = Digest.of(data, algorithm)
    async with await store.writer(f"ref of {digest}", expected=digest) as writer:
        await writer.write(data)
        return await writer.commit(expected=digest)


def spoil(root: Path, digest: Digest, data: bytes) -> None:
    path = root / "blobs" / digest.algorithm / digest.hex
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("algorithm", HEX_LENGTHS)
async def test_every_algorithm(tmp_path: Path, algorithm: str) -> None:
    """Damage of a blob of any algorithm is told with the digest that its bytes have; a whole blob passes."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"bytes", algorithm)
        assert (await store.verify(digest)).problem == ""

        await asyncio.to_thread(spoil, tmp_path, digest, b"other")

        found = await store.verify(digest)
        assert (found.problem, found.quarantined, found.size) == (
            f"its bytes are {Digest.of(b'other', algorithm)}",
            False,
            5,
        )


async def test_mended_by_writing_again(tmp_path: Path) -> None:
    """A blob in quarantine can be written anew, and is then read from its new bytes even by those who had it open."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"sound")
        await asyncio.to_thread(spoil, tmp_path, digest, b"wrong")
        async with await store.reader(digest) as before:
            assert await before.read(0, 5) == b"wrong"

            # Another process puts it aside, so this one is told nothing.
            layout = Layout(str(tmp_path))
            assert await asyncio.to_thread(verify.set_aside, layout, digest)
            with pytest.raises(NotFound):
                await store.info(digest)
            await put(store, b"sound")

            async with await store.reader(digest) as after:
                assert await after.read(0, 5) == b"sound"
        assert (await store.verify(digest)).problem == ""


async def test_what_is_sound_is_put_back(tmp_path: Path) -> None:
    """A blob that was written anew between the look and the move is not lost."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"sound")
        assert not await asyncio.to_thread(verify.set_aside, Layout(str(tmp_path)), digest)
        assert (await store.verify(digest, quarantine=True)).problem == ""
        assert await asyncio.to_thread(os.listdir, tmp_path / "quarantine") == []


async def test_over_a_socket(tmp_path: Path) -> None:
    """A store is asked over its socket; one that can't look by itself answers Unimplemented."""
    async with LocalContentStore(tmp_path / "store") as store:
        digest = await put(store, b"sound")
        await asyncio.to_thread(spoil, tmp_path / "store", digest, b"wrong")
        for name, handlers in (("able", [IntegrityService(store)]), ("unable", [])):
            async with serve(f"unix://{tmp_path}/{name}.sock", handlers, name=name, grace=1.0):
                channel = connect(f"unix://{tmp_path}/{name}.sock")
                remote = RemoteIntegrity(channel)
                if handlers:
                    found = await remote.verify(digest, quarantine=True)
                    assert found.quarantined
                    with pytest.raises(NotFound):
                        await remote.verify(digest)
                else:
                    with pytest.raises(Unimplemented):
                        await remote.verify(digest)
                channel.close()


def test_limited_rate() -> None:
    """All threads together read no faster than they are told to."""
    pace = verify.Pace(1e6)
    begun = time.monotonic()
    for _ in range(3):
        pace(50_000)
    assert time.monotonic() - begun >= 0.15


def test_no_store(tmp_path: Path) -> None:
    """A directory without a store can't be checked, which is not the same as damage."""
    done = CliRunner().invoke(main, ["--root", str(tmp_path), "--state", str(tmp_path / "s"), "verify", "--rate", "0"])
    assert (done.exit_code, done.output) == (3, f"contentd verify: there is no content store in {tmp_path}/contentd\n")


async def test_a_link_is_no_blob(tmp_path: Path) -> None:
    """A symbolic link in the place of a blob is damage, and is moved away without being followed."""
    async with LocalContentStore(tmp_path) as store:
        digest = await put(store, b"sound")
        path = tmp_path / "blobs" / "sha256" / digest.hex
        await asyncio.to_thread(path.rename, tmp_path / "elsewhere")
        await asyncio.to_thread(path.symlink_to, tmp_path / "elsewhere")

        found = await store.verify(digest, quarantine=True)

        assert (found.problem, found.quarantined) == ("is a symbolic link and no blob", True)
        assert await asyncio.to_thread((tmp_path / "elsewhere").read_bytes) == b"sound"
