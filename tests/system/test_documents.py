"""Every example of the documentation is run."""

import contextlib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.constellation import BIN, Constellation
from support.content import containerd, directory
from support.documents import REPOSITORY, Stage, blocks, stage
from support.registry import Registry

DOCS = REPOSITORY / "docs"
RUN = {"tutorial.md": 10, "client.md": 3, "snapshotter.md": 4, "embedded.md": 5, "swap.md": 7}
"""Pages with examples, and how many blocks each has."""


class Down(Constellation):
    """One that is not started: the page does that itself."""

    def start(self, *, umask: int = -1) -> None:
        pass


@pytest.fixture(scope="module")
def images(registry: Registry, reference: str) -> Mapping[str, str]:
    """What stands for images out there."""
    return {"docker.io/library/busybox:latest": reference, "registry.example:5000": registry.host}


def staged(directory: Path, made: Constellation, images: Mapping[str, str]) -> contextlib.AbstractContextManager[Stage]:
    replaced = {
        **images,
        "/run/carina/": f"{made.state}/",
        'namespace="example"': f'namespace="{made.namespace}"',
        "namespace==example": f"namespace=={made.namespace}",
        "/var/lib/demo": f"{made.directory}/demo",
        "/run/demo.sock": f"{made.directory}/demo.sock",
        ".venv/bin/": "",
    }
    environment = {"CARINA_ADDRESS": made.address, "CARINA_NAMESPACE": made.namespace}
    return stage(directory, replaced=replaced, environment=environment)


def wrap(made: Constellation, on: Stage) -> None:
    """`carina` finds the test's constellation where it takes no address."""
    paths = shlex.join(made.paths)
    command = shlex.quote(str(BIN / "carina"))
    on.command("carina", f'case "$1" in up|down|status) exec {command} "$@" {paths};; esac\nexec {command} "$@"')


@pytest.mark.parametrize("page", RUN)
@pytest.mark.timeout(240)
def test_examples_run(shared: Constellation, images: Mapping[str, str], page: str, tmp_path: Path) -> None:
    """Each block of a page does what the page says, in order."""
    made: Constellation = Down() if page == "tutorial.md" else shared
    with contextlib.ExitStack() as stack:
        if made is not shared:
            stack.enter_context(made)
        if "/run/containerd/containerd.sock" in (DOCS / page).read_text():
            foreign = stack.enter_context(containerd(stack.enter_context(directory())))
            images = {**images, "unix:///run/containerd/containerd.sock": foreign}
        on = stack.enter_context(staged(tmp_path, made, images))
        wrap(made, on)
        try:
            assert on.run(DOCS / page) == RUN[page]
        finally:
            if made is shared:
                shared.clean_namespace()


@pytest.mark.timeout(240)
def test_the_readme_runs(images: Mapping[str, str], tmp_path: Path) -> None:
    """The commands of the README, but for those that set the machine up and run the tests."""
    with Down() as made, staged(tmp_path, made, images) as on:
        wrap(made, on)
        assert on.run(REPOSITORY / "README.md", skip=r"sudo make |sudo deploy/|systemctl ") >= 2


def test_no_page_is_left_out() -> None:
    """A page with examples is among those that are run; links between pages and into the repository lead somewhere."""
    for page in DOCS.glob("*.md"):
        runnable = [block for block in blocks(page) if block.language in ("sh", "python")]
        assert len(runnable) == RUN.get(page.name, 0), page.name
        for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            assert os.path.exists(page.parent / link), f"{page.name}: {link}"
