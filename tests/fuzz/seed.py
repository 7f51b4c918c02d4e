"""Writes the corpus: what each parser takes, in its usual forms. What was found later is added by hand, as a file."""

import gzip
import json
from pathlib import Path

from carina.api.containerd.services.containers.v1 import Container, CreateContainerRequest
from carina.api.containerd.services.tasks.v1 import CreateTaskRequest
from carina.api.containerd.types import Mount
from carina.rpc import frames
from carina.rpc.codec import encode
from carina.rpc.headers import make
from carina.ttrpc.frames import Kind, pack
from fuzz.parsers import CORPUS
from support import image

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def corpus() -> dict[str, list[bytes]]:
    built = image.build(layers=[image.layer(image.tar({"a": None, "a/b": b"data", "l": "a/b"}))])
    assert built.config is not None
    archive = image.tar({"oci-layout": b"{}", "index.json": built.root.data, "x" * 120: b"long"})
    create = CreateTaskRequest(container_id="c", rootfs=[Mount(type="overlay", source="o", options=["lowerdir=/a"])])
    container = CreateContainerRequest(container=Container(id="c", labels={"a": "b"}, image="docker.io/library/a:b"))
    request = make((":method", "POST"), (":path", "/a.B/C"), ("te", "trailers"), ("grpc-timeout", "1S")).block
    call = frames.headers(1, request, end=False, limit=1 << 14) + frames.head(5, 0, 1, 1) + bytes(5)
    auths = {"auths": {"r.example": {"auth": "dTpw"}}, "credHelpers": {"q.example": "x"}, "credsStore": "y"}
    return {
        "protobuf": [encode(create), encode(container)],
        "shim-protobuf": [encode(create), encode(container)],
        "http2": [
            frames.settings({1: 0}) + call,
            frames.settings({}) + frames.ping(bytes(8)) + frames.rst_stream(1, 8),
        ],
        "hpack": [request],
        "ttrpc": [pack(1, Kind.REQUEST, encode(create)) + pack(3, Kind.RESPONSE, b"x")],
        "layer": [image.tar({"a": None, "a/b": b"data", "l": "a/b", "y" * 150: b"long"})],
        "archive": [archive, gzip.compress(archive, mtime=0)],
        "manifest": [built.manifests[0].data],
        "index": [built.root.data],
        "image-config": [built.config.data],
        "reference": [b"docker.io/library/busybox:1.0", f"r.example:5000/a/b@{built.digest}".encode(), b"busybox"],
        "platform": [b"linux/arm64/v8", b"windows(10.0)/amd64"],
        "digest": [built.digest.encode(), b"sha512:" + b"a" * 128],
        "filters": [b'name==a,labels."x.y"~=^b$', b"id!=c", b'topic~="/tasks/.*"'],
        "cursor": [b"12", b"abcdef:12"],
        "hosts": [
            b'server = "https://r.example"\n[host."https://m.example"]\ncapabilities = ["pull"]\nheader = {a = ["b"]}'
        ],
        "challenges": [b'Bearer realm="https://a/t",service="s",scope="repository:a:pull"\nBasic realm="x"'],
        "config": [(DEPLOY / "config.toml").read_bytes()],
        "docker-config": [json.dumps(auths).encode()],
        "users": [b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:\n\froot:x:0:\nwheel:x:10:root,nobody\n"],
        "processors": [b'[p]\naccepts = ["a"]\nreturns = "b"\npath = "/bin/cat"\nargs = ["x"]\nenv = ["A=b"]'],
    }


def main() -> None:
    for name, found in corpus().items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(found):
            (folder / f"usual-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
