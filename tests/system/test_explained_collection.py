"""Garbage collection explains itself on the command line, through the whole constellation."""

import json
import time
from typing import Any

import pytest

from support import image
from support.constellation import Constellation
from support.registry import Registry

LAYERS = (image.layer(image.busybox_tar()), image.layer(image.tar({"etc/motd": b"Explained\n"})))


def told(constellation: Constellation, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(constellation.carina(*arguments, "--format", "json").output)
    return answer


@pytest.fixture
def two(constellation: Constellation, registry: Registry) -> tuple[str, str]:
    """Two images that share their layers and differ in their configuration, pulled by `carina`."""
    references = (
        registry.push("test/explained", "1", image.build(layers=LAYERS, run={"Cmd": ["one"]})),
        registry.push("test/explained", "2", image.build(layers=LAYERS, run={"Cmd": ["two"]})),
    )
    for reference in references:
        constellation.carina("pull", "--plain-http", reference)
    constellation.carina("gc", "run", "--sync")
    return references


def blobs(constellation: Constellation) -> set[str]:
    return set(constellation.carina("content", "ls", "-q").output.split())


def snapshots(constellation: Constellation) -> set[str]:
    return set(constellation.carina("snapshots", "ls", "-q").output.split())


def on_disk(constellation: Constellation) -> int:
    """Bytes of all blobs in the content service's directory."""
    found = (constellation.root / "contentd" / "blobs").rglob("*")
    return sum(path.stat().st_size for path in found if path.is_file())


def test_the_plan_comes_true(constellation: Constellation, two: tuple[str, str]) -> None:
    """`gc plan --if-removed` lists what `images rm --sync` then frees, to the byte: of one image, then of the other."""
    for reference in two:
        alone = {found["image"]: found["bytes"] for found in told(constellation, "gc", "plan", "--images")["images"]}
        plan = told(constellation, "gc", "plan", "--if-removed", reference)
        before = blobs(constellation), snapshots(constellation), on_disk(constellation)
        constellation.carina("images", "rm", "--sync", reference)
        after = blobs(constellation), snapshots(constellation), on_disk(constellation)
        (mine,) = plan["namespaces"]

        assert mine["namespace"] == constellation.namespace
        assert {blob["digest"] for blob in mine["content"]} == before[0] - after[0] != set()
        assert set(mine["snapshots"].get("overlayfs", [])) == before[1] - after[1]
        assert plan["bytes"] == alone[reference] == before[2] - after[2] > 0
    assert after[:2] == (set(), set())
    assert told(constellation, "gc", "plan") == {"namespaces": [], "bytes": 0}


def test_why_names_the_images(constellation: Constellation, two: tuple[str, str]) -> None:
    """A layer and a snapshot are kept by both images, each hop by a label; what is not there is named in one line."""
    layer = LAYERS[0].blob.digest
    of_layer = told(constellation, "gc", "why", layer)
    of_snapshot = told(constellation, "gc", "why", "--snapshotter", "overlayfs", LAYERS[0].diff_id)

    for found in (of_layer, of_snapshot):
        assert found["kept"] is True
        assert [chain["root"]["kind"] for chain in found["chains"]] == ["image", "image"]
        assert {chain["root"]["id"] for chain in found["chains"]} == set(two)
        assert {chain["hops"][0]["by"] for chain in found["chains"]} == {"target"}
        assert {chain["hops"][-1]["id"] for chain in found["chains"]} == {found["id"]}
    assert {chain["hops"][-1]["by"] for chain in of_layer["chains"]} == {"containerd.io/gc.ref.content.l.0"}
    assert {chain["hops"][-1]["by"] for chain in of_snapshot["chains"]} == {"parent"}
    said = constellation.carina("gc", "why", layer).output
    assert said.startswith(f"image {two[0]}\n  target -> content sha256:")
    assert f"  containerd.io/gc.ref.content.l.0 -> content {layer}\n" in said
    absent = constellation.carina("gc", "why", f"sha256:{'0' * 64}", check=False)
    assert (absent.status, absent.error) == (1, f"carina: content sha256:{'0' * 64} does not exist\n")


def test_usage_tells_shared_from_unique(constellation: Constellation, two: tuple[str, str]) -> None:
    """The layers are shared, manifest and configuration unique; both snapshots have their recorded size."""
    found = {one["image"]: one for one in told(constellation, "usage")["images"]}
    layers = sum(layer.blob.size for layer in LAYERS)

    assert set(found) == set(two)
    for one in found.values():
        assert one["shared"] == layers
        assert one["content"] == one["unique"] + layers > layers
        assert (one["snapshots"], one["unmeasured"]) == (2, 0)
        assert one["snapshot_bytes"] > 0
    assert "UNIQUE" in constellation.carina("usage").output


def test_statistics_of_collections(constellation: Constellation, two: tuple[str, str]) -> None:
    """`gc stats` adds up what collections removed, and a full mark finds that they missed nothing."""
    before = told(constellation, "gc", "stats")
    constellation.carina("images", "rm", "--sync", two[0])
    run = told(constellation, "gc", "run", "--sync", "--full")
    after = told(constellation, "gc", "stats")
    limit = time.monotonic() + 30
    while after["remaining"] and time.monotonic() < limit:  # of a collection of its own accord, which nobody waits for
        time.sleep(0.1)
        after = told(constellation, "gc", "stats")

    def objects(statistics: dict[str, Any]) -> int:
        return sum(removed["objects"] for removed in statistics["removed"] if removed["type"] == "content")

    assert objects(after) > objects(before)
    assert after["collections"] > before["collections"]
    assert after["checks"] > before["checks"]
    assert (run["missed"], after["missed"], after["remaining"]) == (0, 0, [])
    assert "0 objects that collections had missed" in constellation.carina("gc", "stats").output
