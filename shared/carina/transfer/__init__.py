"""Transfers: images moved between registries, the image store and archives, with progress on the way."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from carina.descriptor import Descriptor
from carina.platforms import Platform

OCI_ARCHIVE: Final = "application/vnd.oci.image.layout.v1+tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a transfer, in containerd's words."""

    event: str
    """`waiting`, `downloading`, `uploading`, `already exists`, `complete`,
    `extracting`, `extracted`, `saved`, or a sentence."""
    name: str = ""
    """The image, or the key of a piece of content (`layer-sha256:…`)."""
    parents: tuple[str, ...] = ()
    progress: int = 0
    """Bytes."""
    total: int = 0
    """Bytes."""
    descriptor: Descriptor | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """What proves to a registry who asks; never logged."""

    username: str = ""
    secret: str = ""
    """Password, or a refresh token where there is no user name."""
    header: str = ""
    """The whole Authorization header, sent as it is."""


CredentialSource = Callable[[str, list[str]], Awaitable[Credentials | None]]
"""Asked with a host and its challenges; None: anonymous."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to get at a registry."""

    plain_http: bool = False
    scheme: str = ""
    """`http` or `https`; empty for the default: https, but http on the loopback interface."""
    headers: Mapping[str, str] = field(default_factory=dict)
    host_dir: str = ""
    """Directory of `REGISTRY/hosts.toml`, in place of the configured one."""
    credentials: CredentialSource | None = None


ANONYMOUS: Final = Access()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraReference:
    """A further name for what is stored (see containerd's ImageReference)."""

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """Unpack the image of a platform into a snapshotter (the default one where no name is given)."""

    platform: Platform | None = None
    snapshotter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The image store as the destination of a transfer, or as its source."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    """Whose images to take; all where empty."""
    all_metadata: bool = False
    """Take manifests and configurations of every platform."""
    manifest_limit: int = 0
    extra_references: tuple[ExtraReference, ...] = ()
    unpacks: tuple[Unpack, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A manifest that refers to another one: a signature, a list of parts."""

    descriptor: Descriptor
    artifact_type: str = ""


class Transfer(Protocol):
    """Transfers in the call's namespace (`carina.context`). They last as long as their work."""

    async def fetch(
        self, reference: str, into: Store, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        """Get an image from a registry, unpack it where asked, and record it. What is there already is not fetched.

        Raises:
            NotFound: the registry has no such repository, tag, or platform.
            InvalidArgument: the reference is not complete, or what it names is not an image.
            Unavailable: the registry can't be reached.
            Unauthenticated, PermissionDenied: it refuses.
            ResourceExhausted: it limits requests, or a disk is full.
            DataLoss: it sends other bytes than its manifest says.
        """

    async def pull(
        self,
        reference: str,
        *,
        platforms: Sequence[Platform] = (),
        unpack: Sequence[tuple[Platform, str]] = (),
        labels: Mapping[str, str] | None = None,
        plain_http: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """`fetch` into an image of the same name: the usual case. `unpack` pairs platforms with snapshotters."""
        into = Store(
            name=reference,
            labels=labels or {},
            platforms=tuple(platforms),
            unpacks=tuple(Unpack(platform=platform, snapshotter=snapshotter) for platform, snapshotter in unpack),
        )
        await self.fetch(reference, into, access=Access(plain_http=plain_http), on_progress=on_progress)

    async def push(
        self, source: Store, reference: str, *, access: Access = ANONYMOUS, on_progress: OnProgress | None = None
    ) -> None:
        """Put the image `source.name` into a registry. What is there already is not sent.

        Of an index, `source.platforms` takes one image as the manifest that it is, several as an index of them.

        Raises:
            NotFound: there is no such image, or not all of its content is here.
            InvalidArgument: the reference is not complete, or names another digest.
            Unavailable: the registry can't be reached, or refuses what it gets.
            Unauthenticated, PermissionDenied: it refuses access.
            ResourceExhausted: it limits requests.
        """

    async def referrers(
        self, reference: str, *, artifact_type: str = "", access: Access = ANONYMOUS
    ) -> tuple[Descriptor, Sequence[Referrer]]:
        """What a registry has under a reference, and what refers to that there, of one type or all.

        Raises:
            NotFound: the registry has no such repository, tag or digest. No referrers are no error.
            InvalidArgument: the reference is not complete, or what the registry answers is no list of referrers.
            Unavailable, Unauthenticated, PermissionDenied, ResourceExhausted: as `fetch`.
        """

    async def tag(self, name: str, into: Store) -> None:
        """Record an image under a further name. Raises NotFound."""

    async def load(
        self,
        archive: AsyncIterator[bytes],
        into: Store,
        *,
        compress: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Import an image archive (OCI layout or `docker save`): a tar stream.

        `compress` stores the layers of `docker save` with gzip where the archive has them without.

        Raises:
            InvalidArgument: not an image archive.
        """

    def save(
        self,
        source: Store,
        *,
        platforms: Sequence[Platform] = (),
        docker: bool = True,
        foreign: bool = True,
        on_progress: OnProgress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Export images as an OCI layout in a tar stream, of all platforms that are here unless some are named.

        With `docker` there is a manifest.json besides, for `docker load`; with `foreign` also layers that may not be
        redistributed. Raises NotFound.
        """
