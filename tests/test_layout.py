"""The shape of the repository: folders, commands, units and documentation name the same services."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICES = sorted(
    path.name for path in (ROOT / "services").iterdir() if path.is_dir() and not path.name.startswith("_")
)
COMMANDS = {"shimd": "containerd-shim-carina-v1"}
"""Folders whose command has another name: containerd finds a shim by that of its runtime."""
FILES = {"__init__.py", "__main__.py", "config.py", "daemon.py", "README.md"}


def test_every_service_has_the_same_files() -> None:
    """A reader finds entry point, configuration, composition root and README at the same place in each service."""
    for service in SERVICES:
        missing = FILES - {path.name for path in (ROOT / "services" / service).iterdir()}

        assert missing == set(), service


def test_every_service_is_a_command_and_a_unit_and_a_compose_service() -> None:
    """Folder, console command, systemd unit and compose service are the same word; a shim is only a command."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    compose = (ROOT / "docker-compose.yml").read_text()
    contracts = (ROOT / ".importlinter").read_text()

    for service in SERVICES:
        assert project["project"]["scripts"][COMMANDS.get(service, service)] == f"{service}.__main__:main"
        assert f"\n    {service}\n" in contracts
        if service in COMMANDS:
            continue
        assert (ROOT / "deploy" / "systemd" / f"{service}.service").exists() or (
            ROOT / "deploy" / "systemd" / f"{service}@.service"
        ).exists()
        units = {path.name for path in (ROOT / "deploy" / "systemd").iterdir()}
        assert units & {f"{service}.socket", f"{service}@.socket"}, service
        assert f"\n| {service}" in (ROOT / "docs" / "security.md").read_text(), service
        assert f"{service}" in compose


def test_a_service_package_says_what_it_is_and_nothing_more() -> None:
    """Importing a service's package runs no code."""
    for service in SERVICES:
        tree = ast.parse((ROOT / "services" / service / "__init__.py").read_text())

        assert ast.get_docstring(tree), service
        assert len(tree.body) == 1, service


def test_the_tree_is_the_one_that_was_agreed() -> None:
    """The top level holds what the README says and nothing else grows there unnoticed."""
    expected = {
        *("services", "shared", "deploy", "proto", "tests", "bench", "docs"),
        *("README.md", "ARCHITECTURE.md", "DECISIONS.md", "CONTRIBUTING.md", "CHANGELOG.md"),
        *("Makefile", "pyproject.toml", "requirements.lock", "docker-compose.yml"),
    }

    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.name != "__pycache__"}

    assert found <= expected
    assert expected - found <= {"docs"}


def test_calls_between_services_have_no_cycle() -> None:
    """gatewayd calls imaged, taskd, metadatad; they call metadatad; it calls contentd and snapshotd; those nobody."""
    allowed = {
        "gatewayd": {"metadata", "images", "tasks"},
        "imaged": {"metadata"},
        "taskd": {"metadata"},
        "metadatad": {"content", "snapshots"},
        "contentd": set[str](),
        "snapshotd": set[str](),
        "shimd": set[str](),
    }
    for service, may_call in allowed.items():
        named = {name for path in (ROOT / "services" / service).rglob("*.py") for name in _addresses(path)}

        assert named <= may_call, service


def _addresses(path: Path) -> set[str]:
    """Services whose address a module reads from the configuration: `….services["NAME"]`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Constant):
            continue
        if isinstance(node.value, ast.Attribute) and node.value.attr == "services":
            found.add(str(node.slice.value).partition(".")[0])
    own = {"contentd": "content", "metadatad": "metadata", "imaged": "images", "taskd": "tasks", "gatewayd": "gateway"}
    return found - {own.get(path.parent.name, "")} - ({"snapshots"} if path.parent.name == "snapshotd" else set())
