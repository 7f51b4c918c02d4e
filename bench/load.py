"""The client of the store benchmark: Google's gRPC over messages made beforehand, so that no code of ours is timed.

A blob is written with one message, which holds its bytes and commits them, and answered with one.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import grpc

from carina.api.containerd.services.content.v1 import WriteAction, WriteContentRequest
from carina.api.containerd.services.images.v1 import CreateImageRequest, DeleteImageRequest, Image
from carina.api.containerd.services.leases.v1 import CreateRequest, DeleteRequest
from carina.api.containerd.types import Descriptor
from carina.rpc import codec
from support.image import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST

SERVICES: Final = "/containerd.services."
LAYERS: Final = 8
BLOBS: Final = LAYERS + 2
"""In one image: layers, configuration and manifest."""
SECONDS: Final = 300.0
"""For a call, whatever it does."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Made:
    """A tiny image: the messages that write its blobs, in the order in which a pull writes them, and its record."""

    name: str
    blobs: tuple[bytes, ...]
    record: bytes


def name_of(number: int) -> str:
    return f"registry.example/team-{number % 17}/service-{number}:v1"


def image(number: int) -> Made:
    """The image of a number: always the same bytes."""
    name = name_of(number)
    source = {"containerd.io/distribution.source.registry.example": name.partition("/")[2].partition(":")[0]}
    layers = [f"layer {index} of image {number}\n".encode() * 8 for index in range(LAYERS)]
    config = json.dumps({"os": "linux", "architecture": "amd64", "image": number}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, config),
            "layers": [_descriptor(OCI_LAYER, layer) for layer in layers],
        }
    ).encode()
    references = {"containerd.io/gc.ref.content.config": _digest(config)}
    references |= {f"containerd.io/gc.ref.content.l.{index}": _digest(layer) for index, layer in enumerate(layers)}
    snapshot = {"containerd.io/gc.ref.snapshot.overlayfs": _digest(b"".join(layers))}
    target = Descriptor(media_type=OCI_MANIFEST, digest=_digest(manifest), size=len(manifest))
    return Made(
        name=name,
        blobs=(
            *(write(layer, source) for layer in layers),
            write(config, source | snapshot),
            write(manifest, source | references),
        ),
        record=codec.encode(CreateImageRequest(image=Image(name=name, target=target))),
    )


def write(data: bytes, labels: Mapping[str, str]) -> bytes:
    """The message that writes and commits a blob."""
    digest = _digest(data)
    return codec.encode(
        WriteContentRequest(
            action=WriteAction.COMMIT,
            ref=f"bench-{digest}",
            total=len(data),
            expected=digest,
            data=data,
            labels=dict(labels),
        )
    )


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


class Client:
    """Calls with bytes for messages, from many threads that have a connection each."""

    def __init__(self, socket: Path, namespace: str, *, threads: int) -> None:
        self._address = f"unix:{socket}"
        self._metadata = [("containerd-namespace", namespace)]
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads)

    def each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Do something with every item, in all threads."""
        for _ in self._pool.map(work, items):
            pass

    def call(self, method: str, request: bytes = b"", *, lease: str = "") -> bytes:
        answer: bytes = self._channel().unary_unary(method)(request, metadata=self._with(lease), timeout=SECONDS)
        return answer

    def stream(self, method: str, request: bytes = b"") -> Iterator[bytes]:
        answers: Iterator[bytes] = self._channel().unary_stream(method)(
            request, metadata=self._metadata, timeout=SECONDS
        )
        return answers

    def write(self, request: bytes, *, lease: str) -> None:
        method = self._channel().stream_stream(SERVICES + "content.v1.Content/Write")
        for _ in method(iter([request]), metadata=self._with(lease), timeout=SECONDS):
            pass

    def close(self) -> None:
        self._pool.shutdown()

    def _channel(self) -> grpc.Channel:
        found: grpc.Channel | None = getattr(self._local, "channel", None)
        if found is None:
            # Without a pool of its own, gRPC lets all channels of a process share one connection.
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
            found = self._local.channel = grpc.insecure_channel(self._address, options=options)
        return found

    def _with(self, lease: str) -> list[tuple[str, str]]:
        return [*self._metadata, ("containerd-lease", lease)] if lease else self._metadata


def lease(client: Client, name: str) -> None:
    client.call(SERVICES + "leases.v1.Leases/Create", codec.encode(CreateRequest(id=name)))


def unlease(client: Client, name: str) -> None:
    client.call(SERVICES + "leases.v1.Leases/Delete", codec.encode(DeleteRequest(id=name)))


def build(client: Client, numbers: Iterable[int], *, make: Callable[[int], Made] = image) -> None:
    """Make the images of these numbers as pulls do: each under a lease of its own, the record last."""

    def one(number: int) -> None:
        made, holding = make(number), f"pull-{number}"
        lease(client, holding)
        for blob in made.blobs:
            client.write(blob, lease=holding)
        client.call(SERVICES + "images.v1.Images/Create", made.record, lease=holding)
        unlease(client, holding)

    client.each(one, numbers)


def remove(client: Client, number: int, *, sync: bool) -> None:
    request = codec.encode(DeleteImageRequest(name=name_of(number), sync=sync))
    client.call(SERVICES + "images.v1.Images/Delete", request)
