"""The configuration file: defaults, and every mistake named."""

from pathlib import Path

import pytest

from carina import config
from carina.errors import InvalidArgument, NotFound


def written(path: Path, text: str) -> Path:
    file = path / "config.toml"
    file.write_text(text)
    return file


def test_an_empty_file_means_the_default_constellation(tmp_path: Path) -> None:
    """Every service has an address in the state directory unless told otherwise."""
    loaded = config.load(written(tmp_path, ""), root=tmp_path / "r", state=tmp_path / "s")

    assert loaded.gateway == f"unix://{tmp_path}/s/carina.sock"
    assert loaded.services["content"] == f"unix://{tmp_path}/s/contentd.sock"
    assert loaded.services["snapshots.overlayfs"] == f"unix://{tmp_path}/s/snapshotd-overlayfs.sock"
    assert loaded.snapshotters == ["overlayfs", "native"]


def test_services_may_be_external(tmp_path: Path) -> None:
    """A service that somebody else starts has an address and is marked."""
    text = '[services.content]\naddress = "unix:///elsewhere.sock"\nexternal = true\n'
    loaded = config.load(written(tmp_path, text))

    assert loaded.services["content"] == "unix:///elsewhere.sock"
    assert loaded.external == {"content"}


def test_proxy_plugins_are_read(tmp_path: Path) -> None:
    """A proxy plugin is a name, a type and an address, as containerd writes them."""
    text = '[proxy_plugins.demo]\ntype = "snapshot"\naddress = "/run/demo.sock"\nnamespace = "inner"\n'
    text += 'platform = "linux/arm64"\ncapabilities = ["rebase"]\nexports = { root = "/srv" }\n'
    loaded = config.load(written(tmp_path, text))

    assert loaded.proxy_plugins["demo"] == config.ProxyPlugin(
        name="demo",
        type="snapshot",
        address="/run/demo.sock",
        namespace="inner",
        platform="linux/arm64",
        exports={"root": "/srv"},
        capabilities=("rebase",),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = [", "is not TOML"),
        ("rot = '/x'", "unknown key 'rot'"),
        ("root = 1", "root must be a string"),
        ("services = 1", "services must be a table"),
        ("[services.contents]\n", "services.contents is not a service"),
        ("[services.content]\naddress = 'tcp://host:1'", "expected unix:///path/of/socket"),
        ("[services.content]\naddress = 'unix:///" + "x" * 107 + "'", "has at most 107"),
        ("[proxy_plugins.x]\ntype = 'snap'\naddress = '/x'", "type 'snap' is not one of"),
        ("[proxy_plugins.x]\ntype = 'snapshot'", "expected unix:///path/of/socket"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    """Each mistake in the file is one sentence that says what is wrong."""
    with pytest.raises(InvalidArgument, match=sentence):
        config.load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[services.content]\nadress = "unix:///a"', "services.content: unknown key 'adress'"),
        ('[services.snapshots."../up"]', "'../up' is not valid"),
        ('[services.content]\naddress = ""', "address must not be empty"),
        ('root = ""', "root must not be empty"),
        ('[services.tasks]\naddress = "unix:///a"\n[services.images]\naddress = "unix:///a"', "is that of services"),
        ('[proxy_plugins.x]\ntype = "snapshot"\naddress = "unix:///a"\nplatfrom = "p"', "unknown key 'platfrom'"),
        ('[proxy_plugins.x]\ntype = "snapshot"\naddress = "unix:///a"\nexports = ["p"]', "exports must be a table"),
        ('[proxy_plugins.x]\ntype = "snapshot"\naddress = "unix:///a"\ncapabilities = "p"', "must be a list"),
    ],
)
def test_what_would_be_passed_over_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """A misspelt key, an empty path, a name that leaves the directory and an address given twice are named."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=sentence):
        config.load(path)


PLUGIN = '[proxy_plugins.x]\ntype = "snapshot"\naddress = "unix:///a"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (PLUGIN + 'platform = "no/such/platform/x"', "proxy_plugins.x: platform .* is not valid"),
        (PLUGIN + 'lease = "l"', "proxy_plugins.x: lease needs namespace"),
        (PLUGIN + 'namespace = "a b"', "proxy_plugins.x: namespace 'a b' is not valid"),
        (PLUGIN + 'capabilities = [""]', "must not be empty"),
        (PLUGIN.replace("snapshot", "content") + 'snapshotter = "s"', "snapshotter is for plugins of type snapshot"),
        (PLUGIN.replace(".x]", ".overlayfs]"), "'overlayfs' is that of a part of the constellation"),
        (PLUGIN.replace(".x]", ".taskd]"), "'taskd' is that of a part"),
        (PLUGIN.replace(".x]", '."a/b"]'), "'a/b' is not valid"),
        (PLUGIN + PLUGIN, "is not TOML"),
        (PLUGIN.replace("/a", "/s/metadatad.sock"), "is that of services.metadata, which is no back end"),
        (
            (PLUGIN + PLUGIN.replace(".x]", ".y]")).replace("snapshot", "content"),
            "proxy_plugins.y: it is the same back end as proxy_plugins.x",
        ),
    ],
)
def test_a_plugin_that_contradicts_itself_or_others_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """File, plugin and what is wrong are in the sentence."""
    path = written(tmp_path, text)
    with pytest.raises(InvalidArgument, match=sentence) as refused:
        config.load(path, state=Path("/s"))
    assert str(path) in str(refused.value)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """What can't be read is said in a sentence."""
    with pytest.raises(InvalidArgument, match="can't be read: Is a directory"):
        config.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that was asked for and is not there is not silently replaced by defaults."""
    with pytest.raises(NotFound, match=r"absent\.toml does not exist"):
        config.load(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[services.content]\naddress = "unix:///run/carina/contentd.fd.sock"', "is that of the state directory's"),
        ('[services.tasks]\naddress = "unix:///run/carina/carina.sock.ttrpc"', "is that of services.tasks"),
        ('[services.tasks]\naddress = "unix:///run/carina/../carina/imaged.sock"', "is that of services.images"),
        ('root = "/srv/x"\nstate = "/srv/x"', "root and state are both /srv/x"),
        ('[services.gateway]\naddress = "unix:///' + "x" * 105 + '"', "has at most 107"),
    ],
)
def test_addresses_that_contradict_each_other(tmp_path: Path, text: str, sentence: str) -> None:
    """Two listeners on one socket, however its path is written, are refused with both names."""
    with pytest.raises(InvalidArgument, match=sentence):
        config.load(written(tmp_path, text))
