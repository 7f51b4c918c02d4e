"""Images moved by a client: what people say, put into the words of `carina.transfer`."""

import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from carina import platforms as machine
from carina.aio.finish import finish, or_undo
from carina.aio.threads import in_thread
from carina.errors import InvalidArgument
from carina.images import Image
from carina.linux.errnos import translated
from carina.platforms import Platform
from carina.reference import normalize
from carina.transfer import Access, ExtraReference, OnProgress, Progress, Store, Unpack

if TYPE_CHECKING:
    from carina.client.client import Client

_PIECE = 1 << 20


async def fetch(
    client: "Client",
    reference: str,
    snapshotter: str,
    platforms: Sequence[Platform],
    labels: Mapping[str, str] | None,
    access: Access,
    on_progress: OnProgress | None,
    *,
    unpack: bool,
) -> Image:
    name = str(normalize(reference))
    wanted = tuple(platforms) or (machine.host(),)
    into = Store(
        name=name,
        labels=labels or {},
        platforms=wanted,
        unpacks=await _unpacks(client, wanted, snapshotter) if unpack else (),
    )
    await client.transfer.fetch(name, into, access=access, on_progress=on_progress)
    return await client.images.get(name)


async def _unpacks(client: "Client", platforms: Sequence[Platform], snapshotter: str) -> tuple[Unpack, ...]:
    from carina.client.run import snapshotter_for

    name = await snapshotter_for(client, snapshotter)
    return tuple(Unpack(platform=one, snapshotter=name) for one in platforms)


async def push(
    client: "Client",
    name: str,
    reference: str,
    platforms: Sequence[Platform],
    access: Access,
    on_progress: OnProgress | None,
) -> None:
    image = str(normalize(name))
    to = str(normalize(reference)) if reference else image
    await client.transfer.push(
        Store(name=image, platforms=tuple(platforms)), to, access=access, on_progress=on_progress
    )


async def tag(client: "Client", name: str, new: str) -> Image:
    into = str(normalize(new))
    await client.transfer.tag(str(normalize(name)), Store(name=into))
    return await client.images.get(into)


async def load(
    client: "Client",
    archive: Path | AsyncIterator[bytes],
    name: str,
    platforms: Sequence[Platform],
    snapshotter: str | None,
    on_progress: OnProgress | None,
) -> list[Image]:
    saved: list[str] = []

    def watch(progress: Progress) -> None:
        if progress.event == "saved":
            saved.append(progress.name)
        if on_progress is not None:
            on_progress(progress)

    wanted = tuple(platforms) or (machine.host(),)
    # An archive without names, from `docker save ID`: what is in it is called after the day.
    nameless = ExtraReference(
        name=f"import-{datetime.now(UTC).date().isoformat()}", is_prefix=True, allow_overwrite=True
    )
    into = Store(
        name=str(normalize(name)) if name else "",
        platforms=wanted,
        extra_references=() if name else (nameless,),
        unpacks=() if snapshotter is None else await _unpacks(client, wanted, snapshotter),
    )
    if isinstance(archive, Path):
        async with aclosing(_file(archive)) as pieces:
            await client.transfer.load(pieces, into, on_progress=watch)
    else:
        await client.transfer.load(archive, into, on_progress=watch)
    return [await client.images.get(one) for one in dict.fromkeys(saved)]


async def _file(path: Path) -> AsyncGenerator[bytes, None]:
    file = await in_thread(_opened, path)
    try:
        while piece := await in_thread(file.read, _PIECE):
            yield piece
    finally:
        file.close()


def _opened(path: Path) -> FileIO:
    try:
        return FileIO(path)
    except OSError as error:
        raise translated(error, f"archive {path}") from error


async def save(
    client: "Client", path: Path, names: Sequence[str], platforms: Sequence[Platform], on_progress: OnProgress | None
) -> None:
    if not names:
        raise InvalidArgument("no image is named that is to be exported")
    first, *more = (str(normalize(name)) for name in names)
    source = Store(name=first, extra_references=tuple(ExtraReference(name=name) for name in more))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        file = await or_undo(in_thread(_created, partial), lambda made: in_thread(made.close))
        try:
            saved = client.transfer.save(source, platforms=platforms, on_progress=on_progress)
            async with aclosing(saved) as pieces:
                async for piece in pieces:
                    await in_thread(_write, file, piece)
            await in_thread(os.fsync, file.fileno())
        finally:
            file.close()
        await in_thread(os.rename, partial, path)
    except BaseException:
        await finish(in_thread(partial.unlink, missing_ok=True))
        raise


def _created(path: Path) -> FileIO:
    try:
        return FileIO(path, "x")
    except OSError as error:
        raise translated(error, f"archive {path}") from error


def _write(file: FileIO, data: bytes) -> None:
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise translated(error, f"archive {file.name}") from error
