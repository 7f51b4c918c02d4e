"""The hosts of a registry in the order of trial, from a directory that its configuration names.

<config_path>/registry.test_5000_/     or registry.test:5000/, or _default/: the first that there is
    hosts.toml                         hosts, as `hostsfile.py` reads them
    ca.crt, client.cert, client.key    where there is no hosts.toml: certificates, as Docker has them
"""

from pathlib import Path

from carina.errors import InvalidArgument
from imaged.certificates import Certificates
from imaged.hosts import Host, own
from imaged.hostsfile import NAME, parse, read


def hosts(registry: str, *, directory: Path | None = None, scheme: str = "") -> list[Host]:
    """The hosts of a registry in the order of trial. Reads files: run it in a thread.

    `directory` may be several with colons between them; `scheme` is what the caller asked for
    (`http` or `https`), empty for the default.

    Raises:
        InvalidArgument: the scheme, or what a file says, can't be.
    """
    if scheme not in ("", "http", "https"):
        raise InvalidArgument(f"registry {registry}: scheme {scheme[:20]!r} is neither http nor https")
    found = _directory(registry, directory) if directory else None
    if found is None:
        return [own(registry, scheme, Certificates())]
    text = read(found / NAME)
    if text.strip():
        return parse(text, path=found / NAME, registry=registry, scheme=scheme)
    return [own(registry, scheme, Certificates.in_directory(found))]


def _directory(registry: str, directory: Path) -> Path | None:
    name, _, port = registry.rpartition(":")
    candidates = [f"{name}_{port}_"] if name and port.isdigit() else []
    for root in str(directory).split(":"):
        for candidate in (*candidates, registry, "_default"):
            path = Path(root) / candidate
            if path.is_dir():
                return path
    return None
