"""Where images come from and go to, whatever it is: a registry, a directory, or what somebody plugs in.

A `Resolver` stands for one reference at one place. The registry's is the default (`resolver.py`),
a directory with an OCI layout is another (`layout.py`).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from carina.content import ContentStore
from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.images.manifest import Entry
from carina.reference import Reference

Moved = Callable[[int], None]


class Source(Protocol):
    """Content by digest."""

    @property
    def name(self) -> str:
        """How errors name where the bytes come from."""

    @property
    def reference(self) -> Reference: ...

    async def read(self, descriptor: Descriptor) -> bytes:
        """A whole document. Raises what `stream` raises."""

    def stream(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on; who takes them checks what they are.

        Raises:
            NotFound: it is not there.
            DataLoss: there are fewer bytes, or more, than the descriptor says.
            Unavailable, Unauthenticated, PermissionDenied, ResourceExhausted: it can't be had.
        """

    def distrust(self, descriptor: Descriptor) -> bool:
        """The bytes that came are wrong: have them from elsewhere the next time. False where there is nowhere else."""


class Destination(Protocol):
    """What content can be put into."""

    async def has(self, descriptor: Descriptor, name: str = "") -> bool: ...

    async def document(self, descriptor: Descriptor, data: bytes, name: str = "") -> None:
        """Put a manifest or an index, under its digest or a name."""

    async def blob(self, descriptor: Descriptor, sources: Sequence[str], moved: Moved) -> bool:
        """Put a blob; False where it was there already in one of the repositories `sources`."""


class Resolver(Protocol):
    """One reference at one place."""

    @property
    def title(self) -> str:
        """How progress names it."""

    @property
    def reference(self) -> Reference: ...

    async def resolve(self) -> Descriptor:
        """What the reference names there.

        Raises:
            NotFound: nothing.
            InvalidArgument: what is there is not an image, or not what the reference's digest says.
        """

    def source(self, slots: asyncio.Semaphore) -> Source:
        """Its content, by as many connections as `slots` allow."""

    def destination(self, store: ContentStore) -> Destination:
        """Where content of `store` goes. Raises Unimplemented where nothing can be put."""

    async def referrers(self, digest: Digest, artifact_type: str = "") -> list[Entry]:
        """The manifests that refer to content (signatures, lists of parts), of one type or all."""
