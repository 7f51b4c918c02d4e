"""A registry on the loopback interface: Debian's docker-registry with its store in a scratch directory."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from support.image import Blob, Image

BINARY = "/usr/bin/docker-registry"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Registry:
    """Runs for the block: `with Registry(directory) as registry: registry.push("busybox", "1", image)`."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        tls: Mapping[str, Any] | None = None,
        auth: Mapping[str, Any] | None = None,
    ) -> None:
        """Two registries may share a directory: one to put images into, one that is as a test needs it."""
        self._directory = directory
        self._http = {"tls": tls} if tls else {}
        self._auth = {"auth": auth} if auth else {}
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    def reference(self, repository: str, tag: str = "latest") -> str:
        return f"{self.host}/{repository}:{tag}"

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        config = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self._directory / "store")}, "delete": {"enabled": True}},
            "http": {
                "addr": f"127.0.0.1:{self.port}",
                "secret": "scratch",
                **self._http,
            },
            **self._auth,
        }
        path = self._directory / f"config-{self.port}.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [BINARY, "serve", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it at once; entering again starts it on the same port."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                self._ask("GET", "/v2/")
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"docker-registry does not come up: {self._log.read_text()[-2000:]}")

    @property
    def _log(self) -> Path:
        return self._directory / f"log-{self.port}"

    def served(self, digest: str) -> list[tuple[int, int]]:
        """Status and bytes of each request for a blob that has been answered so far, as the registry's log has them."""
        found = re.findall(rf'"GET /v2/\S+/blobs/{digest} HTTP/1.1" (\d+) (\d+)', self._log.read_text())
        return [(int(status), int(size)) for status, size in found]

    def uploaded(self, digest: str) -> int:
        """How many uploads of a blob have been completed, as the registry's log has them."""
        return len(
            re.findall(
                rf'"PUT /v2/\S+digest={digest.replace(":", "(?::|%3A)")}\S* HTTP/1.1" 201 ', self._log.read_text()
            )
        )

    def push(self, repository: str, tag: str, image: Image) -> str:
        """Put an image into the registry and return its reference."""
        for blob in image.blobs:
            self._push_blob(repository, blob)
        for manifest in image.manifests:
            name = tag if manifest.digest == image.digest else manifest.digest
            self.push_document(repository, name, manifest)
        return self.reference(repository, tag)

    def push_document(self, repository: str, name: str, document: Blob) -> None:
        """Put a manifest or index under a tag or digest; what it names is there."""
        headers = {"Content-Type": document.media_type}
        status, _, body = self._ask("PUT", f"/v2/{repository}/manifests/{name}", document.data, headers)
        assert status == 201, (status, body)

    def _push_blob(self, repository: str, blob: Blob) -> None:
        status, headers, body = self._ask("POST", f"/v2/{repository}/blobs/uploads/")
        assert status == 202, (status, body)
        where = urlsplit(headers["location"])
        path = f"{where.path}?{where.query}&digest={blob.digest}"
        status, _, body = self._ask("PUT", path, blob.data, {"Content-Type": "application/octet-stream"})
        assert status == 201, (status, body)

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {"Host": self.host, **(headers or {})})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()
