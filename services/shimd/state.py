"""What a bundle tells a later shim: `carina-shim.json`, replaced as a whole whenever a process begins or ends."""

import json
import os
from typing import Any, Final

NAME: Final = "carina-shim.json"


def write(bundle: str, record: dict[str, Any]) -> None:
    """Nothing happens where the bundle is gone."""
    temporary = os.path.join(bundle, f".{NAME}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.rename(temporary, os.path.join(bundle, NAME))


def read(bundle: str) -> dict[str, Any] | None:
    """None where there is none, or a damaged one."""
    try:
        with open(os.path.join(bundle, NAME), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
