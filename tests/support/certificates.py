"""Certificates for tests, made by openssl: an authority, servers on the loopback interface, clients."""

import subprocess
from pathlib import Path

NAMES = "DNS:localhost,IP:127.0.0.1"


class Authority:
    """Signs certificates; keeps everything in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate, self._key = directory / "ca.crt", directory / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", "/CN=test authority", "-keyout", self._key, "-out", self.certificate),
        )

    def issue(self, name: str, *, expired: bool = False, names: str = NAMES, rsa: bool = False) -> tuple[Path, Path]:
        """A certificate with its key, for a server or a client."""
        certificate, key, request = (self.directory / f"{name}.{kind}" for kind in ("cert", "key", "csr"))
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        kind = ("rsa:2048",) if rsa else ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        _openssl(
            *("req", "-newkey", *kind, "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        if expired:
            self._expired(request, certificate, extensions)
        else:
            _openssl(
                *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-days", "2"),
                *("-CAcreateserial", "-extfile", extensions, "-out", certificate),
            )
        return certificate, key

    def _expired(self, request: Path, certificate: Path, extensions: Path) -> None:
        (self.directory / "index").touch()
        config = self.directory / "ca.conf"
        config.write_text(
            f"[ca]\ndefault_ca=one\n[one]\ndatabase={self.directory}/index\nnew_certs_dir={self.directory}\n"
            "rand_serial=yes\ndefault_md=sha256\nunique_subject=no\npolicy=any\n[any]\ncommonName=supplied\n"
        )
        _openssl(
            *("ca", "-batch", "-notext", "-config", config, "-cert", self.certificate, "-keyfile", self._key),
            *("-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-extfile", extensions),
            *("-in", request, "-out", certificate),
        )


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr.decode()
