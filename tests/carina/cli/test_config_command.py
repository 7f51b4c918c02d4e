"""`carina config`: defaults, what is in force, checks with lines, and containerd's files in our words."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from carina.cli.configuration import commented, defaults, effective
from carina.cli.containerdconfig import read, translate
from carina.config import load
from carina.errors import InvalidArgument

BIN = Path(sys.executable).parent / "carina"


def carina(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run([BIN, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_default_is_a_configuration(tmp_path: Path) -> None:
    """What `default` prints can be checked, and is what is in force without a file."""
    file = tmp_path / "config.toml"
    file.write_text(commented())
    assert carina("config", "check", file)[:2] == (0, f"{file}: ok\n")
    assert effective(load(file)) == effective(load())
    assert defaults()["metadata"]["gc"]["pause_threshold"] == 0.02


def test_dump_says_what_is_in_force(tmp_path: Path) -> None:
    """Settings of the file and defaults together, and the addresses that follow from its directories."""
    file = tmp_path / "config.toml"
    file.write_text(
        f'state = "{tmp_path}/s"\n[metadata]\nevents_kept = 7\n[proxy_plugins.a]\ntype = "diff"\naddress = "/x"\n'
    )
    status, output, _ = carina("config", "dump", file)
    found = tomllib.loads(output)
    assert status == 0
    assert found["metadata"]["events_kept"] == 7
    assert found["metadata"]["content_sharing_policy"] == "shared"
    assert found["services"]["gateway"]["address"] == f"unix://{tmp_path}/s/carina.sock"
    assert found["proxy_plugins"]["a"] == {"type": "diff", "address": "/x"}
    file.write_text(output)
    assert carina("config", "check", file)[0] == 0


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("x = = 1\n", 1, "is not TOML"),
        ("[metadata]\nevents_kept = 1\n[metadata.gc]\npause_treshold = 0.1\n", 4, "expected one of"),
        ('[images]\nattempts = 5\nconnect_timeout = "soon"\n', 3, "connect_timeout"),
        ("roott = '/x'\n", 1, "unknown key 'roott'"),
        ("[services.contentt]\n", 1, "services.contentt is not a service"),
        ('[services.content]\naddress = "tcp://x"\n', 2, "expected unix:///path/of/socket"),
        ('[proxy_plugins.a]\ntype = "snapshots"\naddress = "/x"\n', 2, "type 'snapshots' is not one of"),
    ],
)
def test_mistakes_have_lines(tmp_path: Path, text: str, line: int, sentence: str) -> None:
    """A mistake is one sentence that says what is expected, then file and line; nothing is started with it."""
    file = tmp_path / "bad.toml"
    file.write_text(text)
    for command in (
        ("config", "check", file),
        ("up", "--config", file, "--root", tmp_path / "r", "--state", tmp_path / "s"),
    ):
        status, output, error = carina(*command)
        assert (status, output) == (1, "")
        assert sentence in error.splitlines()[0]
        assert f"{file}:{line}: {text.splitlines()[line - 1]}" in error
        assert "Traceback" not in error


def test_unknown_keys_are_guessed(tmp_path: Path) -> None:
    """An unknown setting is told with the one that was probably meant."""
    file = tmp_path / "bad.toml"
    file.write_text("[metadata.gc]\npause_treshold = 0.1\n")
    assert "Did you mean pause_threshold?" in carina("config", "check", file)[2]


V2 = """
version = 2
root = "/data/containerd"
imports = ["conf.d/*.toml"]
[grpc]
  address = "/run/containerd/containerd.sock"
  gid = 27
[timeouts]
  "io.containerd.timeout.task.state" = "4s"
[proxy_plugins.stargz]
  type = "snapshot"
  address = "/run/stargz.sock"
  [proxy_plugins.stargz.exports]
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.gc.v1.scheduler"]
  pause_threshold = 0.1
  schedule_delay = "50ms"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.snapshotter.v1.overlayfs"]
  mount_options = ["volatile"]
[plugins."io.containerd.snapshotter.v1.devmapper"]
  pool_name = "pool"
"""
V3 = """
version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.native"]
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  max_concurrent_downloads = 6
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"
[plugins."io.containerd.image-verifier.v1.bindir"]
  bin_dir = "/opt/verify"
  per_verifier_timeout = "20s"
"""
V4 = """
version = 4
[plugins."io.containerd.server.v1.grpc"]
  address = "/run/containerd/containerd.sock"
  gid = 0
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "isolated"
  no_sync = true
"""


def test_import_of_version_2(tmp_path: Path) -> None:
    """What has a counterpart is taken; what has none is told with the reason; imported files count."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "more.toml").write_text(
        'version = 2\n[plugins."io.containerd.gc.v1.scheduler"]\nmutation_threshold = 9\n'
    )
    file = tmp_path / "containerd.toml"
    file.write_text(V2)
    made = translate(read(file), places=False)
    assert made.config == {
        "gateway": {"group": 27},
        "tasks": {"state_seconds": 4.0},
        "metadata": {"gc": {"pause_threshold": 0.1, "schedule_delay": "50ms", "mutation_threshold": 9}},
        "images": {"config_path": "/etc/containerd/certs.d"},
        "snapshots": {"overlayfs": {"mount_options": ["volatile"]}},
        "proxy_plugins": {
            "stargz": {
                "type": "snapshot",
                "address": "unix:///run/stargz.sock",
                "exports": {"enable_remote_snapshot_annotations": "true"},
            }
        },
    }
    left = dict(made.left)
    assert "can be plugged in" in left['plugins."io.containerd.snapshotter.v1.devmapper".pool_name']
    assert "--places" in left["root"]
    assert "--places" in left["grpc.address"]


def test_import_of_versions_3_and_4(tmp_path: Path) -> None:
    """The places of keys in later versions are known, too."""
    file = tmp_path / "containerd.toml"
    file.write_text(V3)
    assert translate(read(file), places=False).config == {
        "images": {
            "default_snapshotter": "overlayfs",
            "max_concurrent_downloads": 6,
            "config_path": "/etc/containerd/certs.d",
            "verifier": {"bin_dir": "/opt/verify", "per_verifier_timeout": "20s"},
        },
        "services": {"snapshots": {"overlayfs": {}}},
    }
    file.write_text(V4)
    made = translate(read(file), places=True)
    assert made.config == {
        "services": {"gateway": {"address": "unix:///run/containerd/containerd.sock"}},
        "metadata": {"content_sharing_policy": "isolated"},
    }
    assert "always synced" in dict(made.left)['plugins."io.containerd.metadata.v1.bolt".no_sync']


def test_imported_file_is_checked_and_not_overwritten(tmp_path: Path) -> None:
    """The command writes a file that every service takes, says on standard error what became of each key, and
    overwrites nothing."""
    file, made = tmp_path / "containerd.toml", tmp_path / "carina.toml"
    file.write_text(V2)
    status, output, error = carina("config", "import", file, "--output", made)
    assert (status, output) == (0, "")
    assert "taken      grpc.gid → gateway.group" in error
    assert "not taken  root: " in error
    assert carina("config", "check", made)[0] == 0
    status, _, error = carina("config", "import", file, "--output", made)
    assert status == 1
    assert f"{made} is there already" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["carina.toml", "containerd.toml"]


def test_import_of_what_is_none(tmp_path: Path) -> None:
    """Files of version 1, or that are no TOML, are refused with what to do."""
    file = tmp_path / "containerd.toml"
    file.write_text("version = 1\n")
    with pytest.raises(InvalidArgument, match="version 1 is not one of 2, 3, 4: `containerd config migrate`"):
        read(file)
    file.write_text("version =\n")
    with pytest.raises(InvalidArgument, match="is not TOML"):
        read(file)
