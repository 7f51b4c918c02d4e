"""Pulls, imports, exports and pushes compared record by record: `ctr` on containerd, `ctr` on Carina, and `carina`."""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import image
from support.constellation import Constellation
from support.content import containerd
from support.layers import listing
from support.registry import Registry

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")]

Ctr = Callable[..., str]
Records = tuple[dict[str, set[str]], list[list[str]], list[list[str]]]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ctr]:
    """`ctr` on a containerd of its own."""
    with containerd(tmp_path_factory.mktemp("containerd")) as address:

        def call(*arguments: str) -> str:
            command = ["ctr", "--address", address.removeprefix("unix://"), "--namespace", "same", *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

        yield call


@pytest.fixture
def ours(constellation: Constellation) -> Ctr:
    return lambda *arguments: constellation.ctr(*arguments).output


def records(ctr: Ctr) -> Records:
    """Blobs with sizes and labels, images with types and digests, snapshots with parents and kinds."""
    blobs = [line.split("\t") for line in ctr("content", "ls").splitlines()[1:]]
    images = sorted(line.split()[:3] for line in ctr("images", "ls").splitlines()[1:])
    snapshots = sorted(line.split() for line in ctr("snapshots", "ls").splitlines()[1:])
    found = {line[0]: {line[1], *line[-1].split(",")} for line in blobs}
    # What no image refers to goes with the next collection, whenever that is.
    kept = [line[2] for line in images]
    for digest in kept:
        kept += [label.partition("=")[2] for label in found.get(digest, ()) if "/gc.ref.content." in label]
    return {digest: found[digest] for digest in kept if digest in found}, images, snapshots


def clean(*every: Ctr) -> None:
    for ctr in every:
        names = ctr("images", "ls", "-q").split()
        if names:
            ctr("images", "rm", "--sync", *names)


def docker_image(platforms: tuple[str, ...]) -> image.Image:
    layers = [image.layer(image.tar({name: b"1" * 500}), media_type=image.DOCKER_LAYER_GZIP) for name in ("f", "g")]
    return image.build(layers=layers, docker=True, platforms=platforms)


@pytest.mark.parametrize("docker", [False, True])
def test_a_pull_leaves_the_same_records(
    constellation: Constellation, registry: Registry, theirs: Ctr, ours: Ctr, docker: bool
) -> None:
    """Content, its labels, image and snapshots, of an OCI manifest and of an index of Docker's."""
    made = docker_image(("linux/amd64", "linux/arm64")) if docker else image.build(index=False)
    reference = registry.push(f"same/docker-{docker}".lower(), "1", made)

    theirs("images", "pull", "--plain-http", reference)
    expected = records(theirs)
    ours("images", "pull", "--plain-http", reference)
    by_ctr = records(ours)
    clean(theirs, ours)
    constellation.carina("pull", reference)

    assert by_ctr == expected
    assert records(ours) == expected


def test_an_import_leaves_the_same_records(
    constellation: Constellation, theirs: Ctr, ours: Ctr, tmp_path: Path
) -> None:
    """What `docker save` writes, with two names."""
    layer = image.layer(image.tar({"f": b"1" * 500}), "")
    config = image.build(layers=[layer], docker=True).config
    assert config is not None
    described = [{"Config": "c.json", "RepoTags": ["busybox:1", "foo/bar:2"], "Layers": ["x/layer.tar"]}]
    files = {"x/layer.tar": layer.blob.data, "c.json": config.data, "manifest.json": json.dumps(described).encode()}
    archive = tmp_path / "saved.tar"
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    theirs("images", "import", str(archive))
    expected = records(theirs)
    ours("images", "import", str(archive))
    by_ctr = records(ours)
    clean(theirs, ours)
    constellation.carina("import", str(archive))

    assert [line[0] for line in expected[1]] == ["docker.io/foo/bar:2", "docker.io/library/busybox:1"]
    assert by_ctr == expected
    assert records(ours) == expected


def test_an_import_of_a_layout_leaves_the_same_records(
    constellation: Constellation, theirs: Ctr, ours: Ctr, tmp_path: Path
) -> None:
    """What skopeo writes, as an archive in OCI's form and in Docker's, under the names in it or a base name."""
    made = image.build(layers=[image.layer(image.tar({"f": b"1" * 500}))], index=False)
    source = made.write(tmp_path / "layout", "7")
    for kind, name, options in (
        ("oci-archive", "7", ("--base-name", "example.test/skopeo")),
        ("docker-archive", "docker.io/library/skopeo:7", ()),
    ):
        archive = tmp_path / f"{kind}.tar"
        command = ["skopeo", "copy", "-q", f"oci:{source}:7", f"{kind}:{archive}:{name}"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

        theirs("images", "import", *options, str(archive))
        expected = records(theirs)
        ours("images", "import", *options, str(archive))
        by_ctr = records(ours)
        clean(theirs, ours)
        constellation.carina("import", *options, str(archive))

        assert len(expected[1]) == 1
        assert by_ctr == expected
        assert records(ours) == expected
        clean(ours)


@pytest.mark.parametrize("option", ["--uncompress", "--oci"])
def test_a_conversion_leaves_the_same_records(
    constellation: Constellation, registry: Registry, theirs: Ctr, ours: Ctr, option: str
) -> None:
    """Documents, layers and labels of an image that was converted, by either client and on either server."""
    reference = registry.push(f"same/converted{option}", "1", docker_image(("linux/amd64", "linux/arm64")))
    name = "example.test/converted:1"
    theirs("images", "pull", "--plain-http", reference)
    theirs("images", "convert", option, "--platform", "linux/amd64", reference, name)
    expected = records(theirs)
    ours("images", "pull", "--plain-http", reference)
    ours("images", "convert", option, "--platform", "linux/amd64", reference, name)
    by_ctr = records(ours)
    clean(theirs, ours)
    constellation.carina("pull", reference)
    constellation.carina("images", "convert", option, "--platform", "linux/amd64", reference, name)

    assert by_ctr == expected
    assert records(ours) == expected


def test_a_mounted_image_is_the_same(
    constellation: Constellation, registry: Registry, theirs: Ctr, ours: Ctr, tmp_path: Path
) -> None:
    """The tree below the directory, and the snapshot that holds it."""
    reference = registry.push("same/mounted", "1", image.build(index=False))
    target = tmp_path / "mounted"
    target.mkdir()
    found = []
    for pull, mount, unmount, ctr in (
        (theirs, theirs, theirs, theirs),
        (ours, ours, ours, ours),
        (ours, constellation.carina, constellation.carina, ours),
    ):
        pull("images", "pull", "--plain-http", reference)
        mount("images", "mount", reference, str(target))
        try:
            found.append((listing(target), records(ctr)))
        finally:
            unmount("images", "unmount", "--rm", str(target))
        clean(ctr)
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_an_export_and_a_push_say_the_same(
    constellation: Constellation, registry: Registry, theirs: Ctr, tmp_path: Path
) -> None:
    """The archive has the same blobs, names and Docker manifest; the registry has the same manifest."""
    reference = registry.push("same/exported", "1", docker_image(("linux/amd64", "linux/arm64")))
    theirs("images", "pull", "--plain-http", reference)
    constellation.carina("pull", reference)

    theirs("images", "export", str(tmp_path / "theirs.tar"), reference)
    constellation.carina("export", str(tmp_path / "ours.tar"), reference)
    pushed = [registry.reference("same/theirs"), registry.reference("same/ours")]
    theirs("images", "push", "--plain-http", "--platform", "linux/amd64", pushed[0], reference)
    constellation.carina("push", "--platform", "linux/amd64", reference, pushed[1])
    clean(theirs)

    assert _read(tmp_path / "ours.tar") == _read(tmp_path / "theirs.tar")
    found = [
        subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"], check=True, capture_output=True
        ).stdout
        for name in pushed
    ]
    assert found[0] == found[1]


def _read(archive: Path) -> tuple[dict[str, bytes], object, object]:
    """Blobs, the index's entries, and the manifest for Docker."""
    with tarfile.open(archive) as tar:
        opened = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        files = {name: file.read() for name, file in opened.items() if file is not None}
    blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
    return blobs, json.loads(files["index.json"])["manifests"], json.loads(files["manifest.json"])
