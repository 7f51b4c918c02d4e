"""The fault points of the code, found by reading it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def points() -> list[str]:
    """Every name that is passed to `faults.point`, sorted."""
    return sorted({name for folder in ("services", "shared") for name in _named(ROOT / folder)})


def _named(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        if "api" in path.parts or "faults.point" not in (text := path.read_text()):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.point":
                assert isinstance(node.args[0], ast.Constant), f"{path}: the name of a fault point is a literal"
                yield str(node.args[0].value)
