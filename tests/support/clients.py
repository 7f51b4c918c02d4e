"""Clients and shims newer than the machine's own, where `make clients` has put them: containerd 2.x and its friends."""

import os
from pathlib import Path

DIRECTORY = Path(os.environ.get("CARINA_CLIENTS", Path(__file__).parents[2] / ".clients"))


def program(name: str) -> str:
    """The path of a newer program; empty where it is not here."""
    path = DIRECTORY / "bin" / name
    return str(path) if path.is_file() else ""


def missing(*names: str) -> str:
    """Why a test that needs these can't run; empty where it can."""
    absent = [name for name in names if not program(name)]
    return f"not here: {', '.join(absent)} of containerd 2.x (`make clients` fetches them)" if absent else ""
