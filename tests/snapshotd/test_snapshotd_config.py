"""The settings of a snapshotter."""

from pathlib import Path

import pytest

from carina.config import load
from carina.errors import InvalidArgument
from snapshotd.config import read
from snapshotd.native import Native
from snapshotd.overlay import Overlay


def configuration(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_defaults(tmp_path: Path) -> None:
    """Directory and socket carry the snapshotter's name; commits are durable."""
    config = read(load(configuration(tmp_path, ""), root=tmp_path, state=tmp_path / "s"), "native")
    assert config.root == tmp_path / "snapshotd-native"
    assert config.address == f"unix://{tmp_path}/s/snapshotd-native.sock"
    assert config.settings.durable
    assert isinstance(config.make_driver(), Native)


def test_a_second_snapshotter_of_a_driver(tmp_path: Path) -> None:
    """Any name can be given a driver, options and an address."""
    text = """
        [services.snapshots.fast]
        address = "unix:///run/fast.sock"
        [snapshots.fast]
        driver = "overlayfs"
        durable = false
        mount_options = ["volatile"]
        root_path = "/srv/fast"
        slow_chown = true
    """
    config = read(load(configuration(tmp_path, text)), "fast")
    assert (config.address, config.mount_options) == ("unix:///run/fast.sock", ("volatile",))
    assert not config.settings.durable
    assert (config.root, config.slow_chown) == (Path("/srv/fast"), True)
    assert isinstance(config.make_driver(), Overlay)


@pytest.mark.parametrize(
    "text",
    [
        "unknown = 1",
        "root_path = 'relative'",
        "slow_chown = 1",
        "durable = 'yes'",
        "mount_options = 'volatile'",
        "driver = 'zfs'",
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str) -> None:
    """The sentence says which key it is."""
    with pytest.raises(InvalidArgument, match=text.partition(" ")[0]):
        read(load(configuration(tmp_path, f"[snapshots.overlayfs]\n{text}")), "overlayfs")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "A", "x" * 65, "zfs"])
def test_a_name_is_no_path_and_needs_a_driver(tmp_path: Path, name: str) -> None:
    """It becomes part of directory names."""
    with pytest.raises(InvalidArgument):
        read(load(configuration(tmp_path, "")), name)
