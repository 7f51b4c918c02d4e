"""What deploy/config.toml says of the settings is what the services do."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import contentd.config
import gatewayd.config
import imaged.config
import metadatad.config
import snapshotd.config
import taskd.config
from carina.config import Config, load
from carina.errors import InvalidArgument

FILE = Path(__file__).resolve().parent.parent / "deploy" / "config.toml"
WITHOUT_DEFAULT = {"gateway": {"group"}, "images": {"stream_processors"}}
"""Settings whose default is that there is none: the file shows them as examples."""
SERVICES = {
    "content": contentd.config.read,
    "snapshots.overlayfs": lambda whole: snapshotd.config.read(whole, "overlayfs"),
    "snapshots.native": lambda whole: snapshotd.config.read(whole, "native"),
    "metadata": lambda whole: _comparable(metadatad.config.read(whole)),
    "metadata.gc": lambda whole: _comparable(metadatad.config.read(whole)),
    "images": imaged.config.Config.of,
    "images.diff": imaged.config.Config.of,
    "tasks": taskd.config.from_constellation,
    "gateway": gatewayd.config.read,
}


def _comparable(config: metadatad.config.Config) -> metadatad.config.Config:
    """metadatad's settings hold the constellation's, and those know the text of the file."""
    whole = dataclasses.replace(config.constellation, path=None, sections={})
    return dataclasses.replace(config, constellation=whole)


def _uncommented() -> str:
    """Every setting at its default said aloud: lines that begin with `#` and a letter."""
    return re.sub(r"(?m)^#(?=[a-z])", "", FILE.read_text())


def _loaded(directory: Path, text: str) -> Config:
    path = directory / "config.toml"
    path.write_text(text)
    return load(path)


def test_the_file_changes_nothing_as_it_is(tmp_path: Path) -> None:
    """Installed unchanged, it has the meaning of an empty file: nothing in it is set."""
    shipped, empty = load(FILE), _loaded(tmp_path, "")

    assert (shipped.root, shipped.state) == (empty.root, empty.state)
    assert shipped.services == empty.services
    assert shipped.proxy_plugins == {}
    assert {name: read(shipped) for name, read in SERVICES.items()} == {
        name: read(empty) for name, read in SERVICES.items()
    }


def test_the_defaults_in_the_file_are_the_real_ones(tmp_path: Path) -> None:
    """With every line uncommented, the constellation and each service are set as by an empty file."""
    said, empty = _loaded(tmp_path, _uncommented()), _loaded(tmp_path, "")

    assert dataclasses.replace(said, sections={}) == dataclasses.replace(empty, sections={})
    for name, read in SERVICES.items():
        assert read(said) == read(empty), name


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_is_in_the_file(tmp_path: Path, name: str) -> None:
    """A section has all the keys that its service takes, which the service names when it is given another one."""
    config = _loaded(tmp_path, f"[{name}]\nnonsense = 1\n")
    with pytest.raises(InvalidArgument, match=r"nonsense.*expected one of") as refused:
        SERVICES[name](config)
    taken = set(str(refused.value).partition("expected one of ")[2].split(", "))

    section: dict[str, Any] = tomllib.loads(_uncommented())
    for key in name.split("."):
        section = section[key]

    # The native snapshotter makes no overlays, to which mount options would be added.
    assert taken - set(section) - WITHOUT_DEFAULT.get(name, set()) <= (
        {"mount_options"} if name == "snapshots.native" else set()
    )


def test_examples_are_valid(tmp_path: Path) -> None:
    """What the file shows as examples, indented behind `#`, can be uncommented too."""
    examples = "\n".join(re.findall(r"(?m)^#   (\[.*|[a-z_]+ = .*)$", FILE.read_text()))
    plugins, group, _ = examples.partition("group = ")

    assert set(_loaded(tmp_path, plugins).proxy_plugins) == {"demo"}
    assert group
