"""The lane's socket: a token for a descriptor, once."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from carina import context
from carina.errors import DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from carina.rpc import lane
from carina.rpc.lane import LaneServer, redeem


def _open(directory: Path, text: bytes = b"hello") -> int:
    path = directory / "blob"
    path.write_bytes(text)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


async def test_a_token_gives_the_descriptor_once(tmp_path: Path) -> None:
    """The receiver reads the very file, the offerer's descriptor is closed, and a second use finds nothing."""
    address = f"unix://{tmp_path}/fd.sock"
    async with LaneServer(tmp_path / "fd.sock") as server:
        offered = _open(tmp_path)
        token = server.offer(offered)

        received = await redeem(address, token)

        assert len(token) == 32
        assert os.read(received, 100) == b"hello"
        assert not os.get_inheritable(received)
        os.close(received)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(offered)
        with pytest.raises(NotFound, match="used or expired"):
            await redeem(address, token)


async def test_many_at_once(tmp_path: Path) -> None:
    """Each of a hundred concurrent receivers gets its own file."""
    address = f"unix://{tmp_path}/fd.sock"
    async with LaneServer(tmp_path / "fd.sock") as server:
        tokens = []
        for number in range(100):
            reading, writing = os.pipe()
            os.write(writing, str(number).encode())
            os.close(writing)
            tokens.append(server.offer(reading))
        received = await asyncio.gather(*(redeem(address, token) for token in tokens))
        for number, descriptor in enumerate(received):
            assert os.read(descriptor, 10) == str(number).encode()
            os.close(descriptor)


async def test_an_offer_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody fetches in time is closed, and its token is worth nothing."""
    monkeypatch.setattr(lane, "LIFETIME", 0.05)
    async with LaneServer(tmp_path / "fd.sock") as server:
        offered = _open(tmp_path)
        token = server.offer(offered)
        await asyncio.sleep(0.1)

        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(offered)
        with pytest.raises(NotFound):
            await redeem(f"unix://{tmp_path}/fd.sock", token)


async def test_offers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offer too many is refused, and its descriptor closed."""
    monkeypatch.setattr(lane, "MAX_OFFERS", 1)
    async with LaneServer(tmp_path / "fd.sock") as server:
        server.offer(_open(tmp_path))
        extra = _open(tmp_path)
        with pytest.raises(ResourceExhausted):
            server.offer(extra)

        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(extra)


async def test_nobody_there_and_nobody_answering(tmp_path: Path) -> None:
    """An absent lane is Unavailable, a silent one costs the call's deadline."""
    with pytest.raises(Unavailable, match="No such file"):
        await redeem(f"unix://{tmp_path}/fd.sock", bytes(32))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(f"{tmp_path}/fd.sock")
        silent.listen()
        with context.deadline(0.1), pytest.raises(DeadlineExceeded):
            await redeem(f"unix://{tmp_path}/fd.sock", bytes(32))


async def test_a_live_lane_is_not_taken_over(tmp_path: Path) -> None:
    """A second lane at the same path is refused while the first lives; afterwards the path is free."""
    async with LaneServer(tmp_path / "fd.sock"):
        with pytest.raises(FailedPrecondition, match=f"in use by pid {os.getpid()}"):
            async with LaneServer(tmp_path / "fd.sock"):
                pass

    assert not (tmp_path / "fd.sock").exists()


@pytest.mark.root
async def test_strangers_get_nothing(tmp_path: Path) -> None:
    """Another user's process may connect where file modes let it, and is still turned away."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    async with LaneServer(tmp_path / "fd.sock") as server:
        (tmp_path / "fd.sock").chmod(0o666)
        token = server.offer(_open(tmp_path))
        code = (
            "import os,socket,sys;os.setgroups([]);os.setgid(65534);os.setuid(65534);"
            "s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET);s.connect(sys.argv[1]);"
            "s.send(bytes.fromhex(sys.argv[2]));print(socket.recv_fds(s,1,1)[:2])"
        )
        process = await asyncio.create_subprocess_exec(
            "/usr/bin/python3", "-c", code, f"{tmp_path}/fd.sock", token.hex(), stdout=-1, stderr=-1
        )
        out, err = await process.communicate()

        assert b"[" not in out.replace(b"(b'', [])", b"")
        assert out == b"(b'', [])\n" or b"BrokenPipe" in err or b"ConnectionReset" in err
        os.close(await redeem(f"unix://{tmp_path}/fd.sock", token))
