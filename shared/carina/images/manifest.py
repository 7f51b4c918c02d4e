"""The documents of an image: index, manifest and configuration (OCI image specification, Docker schema 2).

Reading is strict: what could be taken for both a manifest and an index is neither,
sizes and counts are bounded, digests are digests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from carina.descriptor import Descriptor
from carina.digest import Digest
from carina.errors import InvalidArgument
from carina.platforms import Platform

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD: Final = f"{OCI_LAYER}+zstd"
OCI_LAYER_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEXES: Final = frozenset((OCI_INDEX, DOCKER_INDEX))
MANIFESTS: Final = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
CONFIGS: Final = frozenset((OCI_CONFIG, DOCKER_CONFIG))

MAX_SIZE: Final = 4 * 1024 * 1024
"""Bytes of one document."""
MAX_MANIFESTS: Final = 10_000
"""Entries of one index."""
MAX_LAYERS: Final = 1_000
MAX_URLS: Final = 8
"""Further places of one piece of content that are looked at."""
MAX_DEPTH: Final = 8
"""Indexes within indexes."""


def is_index(media_type: str) -> bool:
    return media_type in INDEXES


def is_manifest(media_type: str) -> bool:
    return media_type in MANIFESTS


def is_config(media_type: str) -> bool:
    return media_type in CONFIGS


def is_layer(media_type: str) -> bool:
    """Whether a media type is one of layers, compressed in whatever way."""
    return media_type.startswith((OCI_LAYER, OCI_LAYER_FOREIGN, DOCKER_LAYER, DOCKER_LAYER_FOREIGN))


def is_foreign(media_type: str) -> bool:
    """Whether a layer may not be redistributed: its manifest says where it can be had."""
    return media_type.startswith((OCI_LAYER_FOREIGN, DOCKER_LAYER_FOREIGN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A descriptor in an index."""

    descriptor: Descriptor
    platform: Platform | None = None
    artifact_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    media_type: str
    manifests: tuple[Entry, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def children(self) -> tuple[Descriptor, ...]:
        return tuple(entry.descriptor for entry in self.manifests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def children(self) -> tuple[Descriptor, ...]:
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What an image says of itself: its platform, its layers, and how to run it."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    """Digests of the uncompressed layers, bottom first."""
    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None
    urls: list[str] | None = None
    artifact_type: str = ""


class _Document(msgspec.Struct, rename="camel"):
    """An index or a manifest: both are read with all fields, so that one that is both is seen."""

    schema_version: int
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    annotations: dict[str, str] | None = None
    fs_layers: msgspec.Raw | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="fsLayers")


class _RootFS(msgspec.Struct):
    type: str = ""
    diff_ids: list[str] | None = None


class _Run(msgspec.Struct, rename="pascal"):
    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None


class _Config(_Platform):
    rootfs: _RootFS | None = None
    config: _Run | None = None


_T = TypeVar("_T")


def parse(data: bytes, descriptor: Descriptor) -> Index | Manifest:
    """Read the document of a descriptor, whose media type it must bear out.

    Raises:
        InvalidArgument: too large, not JSON, both manifest and index, not what the media type says, or over a limit.
    """
    document = _decode(data, _Document, descriptor)
    return _document(document, descriptor)


def _document(document: _Document, descriptor: Descriptor) -> Index | Manifest:
    what = f"manifest {descriptor.digest}"
    looks_index = document.manifests is not None
    looks_manifest = document.config is not None or document.layers is not None
    if looks_index and looks_manifest:
        raise InvalidArgument(f"{what} is both an image manifest and an index, so what it means depends on the reader")
    if document.fs_layers is not msgspec.UNSET:
        raise InvalidArgument(f"{what} is of Docker's schema 1, which is not supported")
    if document.schema_version != 2:
        raise InvalidArgument(f"{what} has schema version {document.schema_version}, expected 2")
    if document.media_type and document.media_type != descriptor.media_type:
        raise InvalidArgument(
            f"{what} says that it is of media type {document.media_type[:100]!r},"
            f" its descriptor says {descriptor.media_type[:100]!r}"
        )
    if is_index(descriptor.media_type):
        if looks_manifest:
            raise InvalidArgument(f"{what} is an image manifest under the media type of an index")
        return _index(document, descriptor.media_type, what)
    if is_manifest(descriptor.media_type):
        if looks_index or document.config is None:
            raise InvalidArgument(f"{what} is not an image manifest, as its media type says: it names no configuration")
        return _manifest(document, document.config, descriptor.media_type, what)
    raise InvalidArgument(f"{what} has media type {descriptor.media_type[:100]!r}, which is not one of manifests")


def _index(document: _Document, media_type: str, what: str) -> Index:
    entries = document.manifests or []
    if len(entries) > MAX_MANIFESTS:
        raise InvalidArgument(f"{what} lists {len(entries)} manifests, more than {MAX_MANIFESTS}")
    manifests = tuple(
        Entry(descriptor=_descriptor(one, what), platform=_platform(one.platform), artifact_type=one.artifact_type)
        for one in entries
    )
    return Index(media_type=media_type, manifests=manifests, annotations=document.annotations or {})


def _manifest(document: _Document, config: _Descriptor, media_type: str, what: str) -> Manifest:
    layers = document.layers or []
    if len(layers) > MAX_LAYERS:
        raise InvalidArgument(f"{what} has {len(layers)} layers, more than {MAX_LAYERS}")
    return Manifest(
        media_type=media_type,
        config=_descriptor(config, what),
        layers=tuple(_descriptor(one, what) for one in layers),
        annotations=document.annotations or {},
    )


def parse_config(data: bytes, descriptor: Descriptor) -> Config:
    """Read an image's configuration.

    Raises:
        InvalidArgument: too large, not JSON, or a diff id that is not a digest.
    """
    document = _decode(data, _Config, descriptor)
    diff_ids = (document.rootfs.diff_ids or []) if document.rootfs else []
    if len(diff_ids) > MAX_LAYERS:
        raise InvalidArgument(f"image configuration {descriptor.digest} names {len(diff_ids)} layers")
    run = document.config or _Run()
    return Config(
        platform=(_platform(document) or Platform()).normalized(),
        diff_ids=tuple(Digest(text) for text in diff_ids),
        user=run.user or "",
        env=tuple(run.env or ()),
        entrypoint=tuple(run.entrypoint or ()),
        cmd=tuple(run.cmd or ()),
        working_dir=run.working_dir or "",
        stop_signal=run.stop_signal or "",
        labels=run.labels or {},
        volumes=tuple(run.volumes or ()),
        exposed_ports=tuple(run.exposed_ports or ()),
    )


def media_type_of(data: bytes) -> str:
    """What a document without a descriptor says that it is, or must be by its fields; empty where that is unclear."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if document.media_type:
        return document.media_type
    if (document.manifests is not None) == (document.config is not None):
        return ""
    return OCI_INDEX if document.manifests is not None else OCI_MANIFEST


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Names of the snapshots of a stack of layers: each names the layer and all below it (OCI config.md, ChainID)."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def _decode(data: bytes, form: type[_T], descriptor: Descriptor) -> _T:
    if len(data) > MAX_SIZE:
        raise InvalidArgument(f"document {descriptor.digest} is {len(data)} bytes long, more than {MAX_SIZE}")
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(
            f"document {descriptor.digest} is not a {descriptor.media_type[:100]}: {error}"
        ) from error


def _descriptor(one: _Descriptor, what: str) -> Descriptor:
    if one.size < 0:
        raise InvalidArgument(f"{what} names content of {one.size} bytes")
    if not 0 < len(one.media_type) <= 255:
        raise InvalidArgument(f"{what} names content without a media type")
    return Descriptor(
        media_type=one.media_type,
        digest=Digest(one.digest),
        size=one.size,
        annotations=one.annotations or {},
        urls=tuple((one.urls or ())[:MAX_URLS]),
    )


def _platform(one: _Platform | None) -> Platform | None:
    if one is None:
        return None
    return Platform(
        os=one.os,
        architecture=one.architecture,
        variant=one.variant,
        os_version=one.os_version,
        os_features=tuple(one.os_features or ()),
    )
