"""Every method of containerd's services, from the definitions in `proto/`."""

import re
from dataclasses import dataclass
from pathlib import Path

PROTO = Path(__file__).parents[2] / "proto" / "containerd" / "services"


@dataclass(frozen=True)
class Method:
    path: str
    """`/package.Service/Method`."""
    client_streams: bool
    server_streams: bool


def methods() -> list[Method]:
    """In the order of the files and within them. Not the service over ttrpc, which shims call."""
    found = []
    for file in sorted(PROTO.rglob("*.proto")):
        if "ttrpc" in file.parts:
            continue
        text = file.read_text()
        package = re.findall(r"^package ([\w.]+);", text, re.MULTILINE)[0]
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", text, re.MULTILINE | re.DOTALL):
            for name, asks, answers in re.findall(r"rpc (\w+)\((stream )?[\w.]+\)\s*returns\s*\((stream )?", body):
                found.append(Method(f"/{package}.{service}/{name}", bool(asks), bool(answers)))
    return found
