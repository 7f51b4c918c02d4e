"""Reading every blob again: what is on disk must still be what its name says."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from carina.digest import Digest
from carina.errors import FailedPrecondition, NotFound
from contentd import files
from contentd.files import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    digest: Digest
    reason: str


def damaged(root: Path, *, quarantine: bool = False) -> Iterator[Damage]:
    """Every blob whose bytes are not those of its digest; moved to `<root>/quarantine` if that is asked for.

    A contentd may serve the same directory meanwhile.

    Raises:
        NotFound: there is no store in this directory.
    """
    layout = Layout(str(root.absolute()))
    if not os.path.isdir(layout.blobs("sha256")):
        raise NotFound(f"there is no content store in {layout.root}")
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="verify") as pool:
        for found in pool.map(lambda digest: _check(layout, digest), files.digests(layout)):
            if found is None:
                continue
            if quarantine:
                _move(layout, found.digest)
            yield found


def _check(layout: Layout, digest: Digest) -> Damage | None:
    try:
        found = files.hashed(layout.blob(digest), digest.algorithm)
    except FileNotFoundError:  # deleted meanwhile
        return None
    except OSError as error:
        return Damage(digest=digest, reason=f"can't be read: {(error.strerror or str(error)).lower()}")
    if found == digest.hex:
        return None
    return Damage(digest=digest, reason=f"its bytes are {digest.algorithm}:{found}")


def _move(layout: Layout, digest: Digest) -> None:
    try:
        os.makedirs(layout.quarantine, mode=0o700, exist_ok=True)
        os.rename(layout.blob(digest), f"{layout.quarantine}/{digest.algorithm}-{digest.hex}")
        files.remove_labels(layout, digest)
        files.flush_directory(layout.quarantine)
        files.flush_directory(layout.blobs(digest.algorithm))
    except OSError as error:
        raise FailedPrecondition(f"content {digest} can't be moved to {layout.quarantine}: {error}") from error
