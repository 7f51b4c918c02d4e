"""Where a registry is spoken to: directories, hosts.toml, and what may be wrong in them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carina.errors import InvalidArgument
from imaged.hosts import CAPABILITIES, Host
from imaged.hostsdir import hosts
from imaged.hostsfile import parse
from support.certificates import Authority

PATH = Path("/etc/certs.d/registry.test/hosts.toml")
EXAMPLE = """\
server = "https://registry.test"
capabilities = ["Pull", "resolve"]

[host."http://mirror.test:5000"]
  capabilities = ["pull"]
  dial_timeout = "1m1.5s"
  [host."http://mirror.test:5000".header]
    x-one = "1"
    x-two = ["2", "3"]

[host."https://other.test/proxy/"]
[host."https://exact.test/api/docker"]
  override_path = true
[host."registry.test"]
"""


def shown(host: Host) -> tuple[str, str]:
    return host.base, host.mirrors


def test_hosts_come_in_the_order_of_the_file_and_the_server_last() -> None:
    """Hosts keep their order, get /v2 unless told not to, and know which registry they are a mirror of."""
    found = parse(EXAMPLE, path=PATH, registry="registry.test")

    assert [shown(host) for host in found] == [
        ("http://mirror.test:5000/v2", "registry.test"),
        ("https://other.test/proxy/v2", "registry.test"),
        ("https://exact.test/api/docker", "registry.test"),
        ("https://registry.test/v2", ""),
        ("https://registry.test/v2", ""),
    ]
    assert found[0].capabilities == {"pull"}
    assert found[0].dial_timeout == 61.5
    assert found[0].headers == {"x-one": "1", "x-two": "2, 3"}
    assert found[1].capabilities == CAPABILITIES
    assert found[-1].capabilities == {"pull", "resolve"}


def test_without_server_the_registry_itself_comes_last() -> None:
    """The settings at the top of a file without server are the registry's own, and Docker Hub has another host."""
    found = parse('skip_verify = true\nheader = {a = "b"}\n', path=PATH, registry="docker.io")

    assert [shown(host) for host in found] == [("https://registry-1.docker.io/v2", "")]
    assert found[0].headers == {"a": "b"}
    assert found[0].tls is not True
    assert shown(parse("", path=PATH, registry="localhost:5000", scheme="https")[0])[0] == "https://localhost:5000/v2"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server = ", r"can't be read: Invalid value \(at end of document\)"),
        ("server = 5", r"server must be a text \(line 1\)"),
        (
            '\n[host."https://m.test"]\ncapabilities = ["pul"]',
            r"capabilities of 'https://m.test' has 'pul'.*line 3\)",
        ),
        ('[host."https://m.test"]\n\nca = 5', r"ca of 'https://m.test' must be a file or a list of files \(line 3\)"),
        ('[host."https://m.test"]\nclient = [["a"]]', r"client of .* pairs of files \(line 2\)"),
        ('[host."https://m.test"]\nskip_verify = "yes"', r"skip_verify of .* must be true or false \(line 2\)"),
        ('[host."https://m.test"]\ndial_timeout = "5"', r"dial_timeout of .* is '5': expected a duration .*\(line 2\)"),
        ('[host."https://m.test"]\ndial_timeout = "2h"', r"dial_timeout of .* at most an hour"),
        ('[host."https://m.test"]\nheader = {"a b" = "c"}', r"header of .* has 'a b', which is no name of a header"),
        ('[host."https://m.test"]\nheader = {a = "c\\nd"}', r"a of .* has characters that a header can't have"),
        ('[host."ftp://m.test"]', r"'ftp://m.test' is not the URL of a host \(line 1\)"),
        ('[host."https://user:password@m.test"]', "'m.test' is not the URL of a host"),
        ('[host."https://m.test:99999"]', "'https://m.test:99999' is not the URL of a host"),
        ('[host]\n"https://m.test" = 5', r"host of 'https://m.test' must be a table"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, problem: str) -> None:
    """A file that can't be meant is refused with its path, the key and the line."""
    with pytest.raises(InvalidArgument, match=f"registry configuration {PATH}:? {problem}"):
        parse(text, path=PATH, registry="registry.test")


def test_the_first_directory_that_is_there_counts(tmp_path: Path) -> None:
    """`host_port_` comes before `host:port`, that before `_default`, and one root before the next."""
    roots = Path(f"{tmp_path}/one:{tmp_path}/two")
    found = []
    for name in ("two/_default", "two/r.test:5000", "two/r.test_5000_", "one/_default"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "hosts.toml").write_text(f'server = "http://{name.replace("/", ".").replace(":", ".")}"\n')
        found.append(hosts("r.test:5000", directory=roots)[0].authority)

    assert found == ["two._default", "two.r.test.5000", "two.r.test_5000_", "one._default"]
    assert [host.base for host in hosts("r.test", directory=tmp_path / "none")] == ["https://r.test/v2"]


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        ("registry.test:5000", "https://registry.test:5000/v2"),
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.9:80", "http://127.0.0.9:80/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost", "https://localhost/v2"),
        ("localhost:443", "https://localhost:443/v2"),
        ("127.0.0.1.example.test:5000", "https://127.0.0.1.example.test:5000/v2"),
    ],
)
def test_plain_http_is_for_the_loopback_interface_only(registry: str, base: str) -> None:
    """Without configuration https is spoken to every registry but one on this machine."""
    assert [host.base for host in hosts(registry)] == [base]


def test_certificates_are_named_when_they_are_of_no_use(tmp_path: Path) -> None:
    """A file that is not there, is no certificate, or is another one's key is named."""
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("one")
    _, other = authority.issue("two")
    together = tmp_path / "together.pem"
    together.write_bytes(certificate.read_bytes() + key.read_bytes())

    def read(text: str) -> list[Host]:
        return parse(text, path=tmp_path / "hosts.toml", registry="registry.test")

    assert read(f'client = "together.pem"\nca = ["{authority.certificate}"]')[0].tls is not True
    assert read(f'client = ["together.pem", ["{certificate}", "{key}"]]')[0].tls_elsewhere is True
    with pytest.raises(InvalidArgument, match=rf"certificates {tmp_path}/none.crt can't be loaded: No such file"):
        read('ca = "none.crt"')
    with pytest.raises(InvalidArgument, match=f"certificates {key} can't be loaded: not PEM of what"):
        read(f'ca = "{key}"')
    with pytest.raises(InvalidArgument, match=f"certificates {certificate} and {other} can't be loaded: not PEM"):
        read(f'client = [["{certificate}", "{other}"]]')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8) | st.sampled_from(["pull", "5s", "x.crt"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["server", "host", "capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "x"]
)


def toml(value: Any) -> str:
    match value:
        case None:
            return "1979-05-27"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            escaped = "".join(
                f"\\U{ord(character):08x}" for character in value if not 0xD800 <= ord(character) < 0xE000
            )
            return f'"{escaped}"'
        case list():
            return f"[{', '.join(toml(one) for one in value)}]"
        case _:
            return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(st.text(max_size=12), VALUES, max_size=2))
def test_any_table_is_read_or_refused(table: dict[str, Any], entries: dict[str, Any]) -> None:
    """Whatever a file says, it is a list of hosts or InvalidArgument."""
    text = "\n".join(f"{key} = {toml(value)}" for key, value in ({"host": entries} | table).items())
    try:
        found = parse(text, path=PATH, registry="registry.test")
    except InvalidArgument:
        return

    assert found
    assert all(host.scheme in ("http", "https") and host.authority for host in found)


@given(st.text() | st.text(alphabet='[]".=\n host{}a:/1'))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever a file holds, it is a list of hosts or InvalidArgument."""
    try:
        assert parse(text, path=PATH, registry="registry.test")
    except InvalidArgument:
        pass
