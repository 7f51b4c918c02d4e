"""Devices by their CDI names: what the files may say, which of them count, and what becomes of the specification."""

import json
from pathlib import Path
from typing import Any

import pytest

from carina.errors import CarinaError, InvalidArgument, NotFound
from carina.images.manifest import Config
from carina.oci import spec
from carina.oci.cdi import inject, load, qualified
from carina.oci.options import Options
from carina.oci.user import User
from carina.platforms import host

IMAGE = Config(platform=host(), diff_ids=(), cmd=("true",))
YAML = """
cdiVersion: "0.7.0"
kind: vendor.com/accelerator
containerEdits:
  env: ["SHARED=1"]
  hooks:
  - {hookName: createContainer, path: /usr/bin/update, args: [update, --ldcache]}
  additionalGids: [44, 0, 44]
devices:
- name: zero
  containerEdits:
    env: ["PATH=/opt/bin", "WHICH=zero"]
    deviceNodes:
    - {path: /dev/acc0, hostPath: /dev/null, permissions: r}
    - {path: /dev/acc1, type: c, major: 250, minor: 7, fileMode: 438, uid: 5}
    mounts:
    - {hostPath: /usr/lib, containerPath: /opt/vendor/lib, options: [ro, rbind], type: bind}
- name: all
  containerEdits:
    env: ["WHICH=all"]
    intelRdt: {closID: gold, l3CacheSchema: "L3:0=f"}
"""


def table(**changes: Any) -> dict[str, Any]:
    device = {"name": "one", "containerEdits": {"env": ["A=1"]}}
    return {"cdiVersion": "0.6.0", "kind": "vendor.com/thing", "devices": [device], **changes}


def edits(version: str = "1.0.0", **some: Any) -> dict[str, Any]:
    return table(cdiVersion=version, devices=[{"name": "one", "containerEdits": some}])


def write(directory: Path, name: str, value: Any) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def made(directory: Path, *names: str, **wishes: Any) -> dict[str, Any]:
    options = Options(cdi_devices=names, cdi_directories=(str(directory),), **wishes)
    return spec.generate("one", "test", IMAGE, options)


def test_edits_of_a_device(tmp_path: Path) -> None:
    """Variables, nodes as the host or the file has them, mounts, hooks, groups and RDT are in the specification."""
    write(tmp_path, "vendor.yaml", YAML)
    got = made(tmp_path, "vendor.com/accelerator=zero", "vendor.com/accelerator=all", user=User(uid=1000, gid=7))
    process, linux = got["process"], got["linux"]
    assert [entry for entry in process["env"] if entry.partition("=")[0] in ("SHARED", "PATH", "WHICH")] == [
        "SHARED=1",
        "PATH=/opt/bin",
        "WHICH=all",
    ]
    assert process["user"]["additionalGids"] == [44]
    nulled = {"path": "/dev/acc0", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 1000, "gid": 7}
    stated = {"path": "/dev/acc1", "type": "c", "major": 250, "minor": 7, "fileMode": 438, "uid": 5, "gid": 7}
    assert linux["devices"] == [nulled, stated]
    assert linux["resources"]["devices"][1:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"},
        {"allow": True, "type": "c", "major": 250, "minor": 7, "access": "rwm"},
    ]
    mount = {"destination": "/opt/vendor/lib", "source": "/usr/lib", "type": "bind", "options": ["ro", "rbind"]}
    assert mount in got["mounts"]
    assert got["hooks"] == {"createContainer": [{"path": "/usr/bin/update", "args": ["update", "--ldcache"]}]}
    assert linux["intelRdt"] == {"closID": "gold", "l3CacheSchema": "L3:0=f"}


def test_mounts_come_in_an_order_that_hides_none(tmp_path: Path) -> None:
    """One above others comes before them, and one at a path that is mounted already takes its place."""
    deep, top = {"hostPath": "/a", "containerPath": "/opt/x/y"}, {"hostPath": "/b", "containerPath": "/opt"}
    write(tmp_path, "v.json", edits(mounts=[deep, top, {"hostPath": "/c", "containerPath": "/dev/shm"}]))
    places = [mount["destination"] for mount in made(tmp_path, "vendor.com/thing=one")["mounts"]]
    assert places.index("/opt") < places.index("/opt/x/y")
    assert places.index("/dev") < places.index("/dev/shm")
    assert places.count("/dev/shm") == 1


def test_precedence(tmp_path: Path) -> None:
    """A device of a later directory is taken; one that two of a directory have is refused."""
    first, second = tmp_path / "etc", tmp_path / "run"
    write(first, "a.json", table())
    write(first, "b.json", table())
    write(first, "c.json", table(kind="vendor.com/other"))
    write(second, "ignored.txt", "nonsense")
    dirs = [str(first), str(tmp_path / "absent"), str(second)]
    with pytest.raises(InvalidArgument, match=r"vendor.com/thing=one is in two files: .*a.json and .*b.json"):
        inject(spec.generate("one", "test", IMAGE, Options()), ["vendor.com/thing=one"], dirs)
    write(second, "d.json", table(devices=[{"name": "one", "containerEdits": {"env": ["A=later"]}}]))
    got = spec.generate("one", "test", IMAGE, Options())
    inject(got, ["vendor.com/thing=one", "vendor.com/other=one"], dirs)
    assert [entry for entry in got["process"]["env"] if entry.startswith("A=")] == ["A=1"]
    assert load(dirs).devices["vendor.com/thing=one"].file == second / "d.json"


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    """It is named with the directories, and with what is wrong with files; other devices are not concerned by those."""
    write(tmp_path, "good.json", table())
    bad = write(tmp_path, "bad.yaml", "kind: [")
    with pytest.raises(
        NotFound, match=rf"vendor.com/thing=two is in no file of {tmp_path}; CDI file {bad} is not YAML"
    ):
        made(tmp_path, "vendor.com/thing=two")
    assert "A=1" in made(tmp_path, "vendor.com/thing=one")["process"]["env"]


def test_nothing_is_changed_where_it_fails(tmp_path: Path) -> None:
    """A device node that the host does not have leaves the specification as it was, also after other edits."""
    write(tmp_path, "v.json", edits(env=["A=1"], deviceNodes=[{"path": "/dev/carina-absent"}]))
    before = spec.generate("one", "test", IMAGE, Options())
    after = spec.generate("one", "test", IMAGE, Options())
    with pytest.raises(NotFound, match=r"CDI device vendor\.com/thing=one: device /dev/carina-absent does not exist"):
        inject(after, ["vendor.com/thing=one"], [str(tmp_path)])
    assert after == before
    write(tmp_path, "v.json", edits(deviceNodes=[{"path": "/etc/passwd"}]))
    with pytest.raises(InvalidArgument, match="/etc/passwd is not a device"):
        made(tmp_path, "vendor.com/thing=one")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "is not an object"),
        (table(cdiVersion="9.0.0"), "version '9.0.0' is not known"),
        (table(cdiVersion=1), "cdiVersion is not a text"),
        (table(kind="thing"), "kind 'thing' is not valid"),
        (table(kind="-x/thing"), "is not valid"),
        (table(devices=[]), "has no devices"),
        ({"cdiVersion": "0.6.0", "kind": "a.b/c"}, "has no devices"),
        (table(devices=table()["devices"] * 2), "has device 'one' twice"),
        (table(devices=[{"name": "one"}]), "device 'one' has no edits"),
        (table(devices=[{"name": "no/ne", "containerEdits": {"env": ["A=1"]}}]), "is not a device's name"),
        (table(surprise=1), "has an unknown field 'surprise'"),
        (edits(netDevices=[]), "has an unknown field 'netDevices'"),
        (edits(env=["=1"]), "is not NAME=VALUE"),
        (edits(env="A=1"), "env is not a list"),
        (edits(deviceNodes=[{}]), "has no path"),
        (edits(deviceNodes=[{"path": "dev"}]), "is not an absolute path"),
        (edits(deviceNodes=[{"path": "/d", "type": "x"}]), "'x' is not one of b, c, u, p"),
        (edits(deviceNodes=[{"path": "/d", "permissions": "rx"}]), "has others than r, w and m"),
        (edits(deviceNodes=[{"path": "/d", "major": -1}]), "is not a number from 0"),
        (edits(mounts=[{"hostPath": "/x"}]), "has no containerPath"),
        (edits(hooks=[{"hookName": "later", "path": "/x"}]), "'later' is not one of prestart"),
        (edits(hooks=[{"hookName": "poststop"}]), "has no path"),
        (edits(additionalGids=[True]), "is not a number"),
        (edits(intelRdt={"closID": "../x"}), "is not a class of service"),
        (edits("0.6.0", additionalGids=[4]), "states version 0.6.0, and has what came with 0.7.0"),
        (edits("0.4.0", deviceNodes=[{"path": "/d", "hostPath": "/dev/null"}]), "what came with 0.5.0"),
        (edits("0.3.0", mounts=[{"hostPath": "/x", "containerPath": "/y", "type": "bind"}]), "what came with 0.4.0"),
        (table(cdiVersion="0.5.0", annotations={"a": "b"}), "what came with 0.6.0"),
        ("{", "is not JSON"),
    ],
)
def test_bad_files(tmp_path: Path, value: Any, text: str) -> None:
    """Each mistake is told in a sentence that names the file."""
    path = write(tmp_path, "v.json", value)
    with pytest.raises(NotFound, match=text) as error:
        made(tmp_path, "vendor.com/thing=one")
    assert f"CDI file {path}" in str(error.value)


@pytest.mark.parametrize("version", ["0.1.0", "0.3.1", "0.8.0", "v1.0.0", "1.0.0"])
def test_versions(tmp_path: Path, version: str) -> None:
    """Every version up to 1.0 is read."""
    write(tmp_path, "v.json", edits(version, env=["A=1"]))
    assert "A=1" in made(tmp_path, "vendor.com/thing=one")["process"]["env"]


@pytest.mark.parametrize(
    "name", ["thing=one", "vendor.com/thing", "vendor.com/thing=", "../x=1", "a/b=c/d", "a/b=" + "x" * 300]
)
def test_names(tmp_path: Path, name: str) -> None:
    """What is no qualified name is refused before any file is read."""
    with pytest.raises(InvalidArgument, match=r"expected vendor\.com/class=name"):
        made(tmp_path, name)


def test_paths_are_no_names() -> None:
    """`--device` takes both: what begins with a slash is a path."""
    assert [qualified(text) for text in ("/dev/null", "/dev/a=b", "vendor.com/class=name")] == [False, False, True]


def test_files_that_hold_no_text(tmp_path: Path) -> None:
    """A directory, a device and a link that leads nowhere under a file's name are said to be no files."""
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b.json").symlink_to("/dev/zero")
    (tmp_path / "c.json").symlink_to("/carina-absent")
    found = load([str(tmp_path)])
    assert len(found.bad) == 3
    with pytest.raises(CarinaError, match=r"a\.json.*b\.json is not a regular file.*c\.json"):
        made(tmp_path, "vendor.com/thing=one")
