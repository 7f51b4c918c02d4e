"""Generate `shared/carina/api` from `proto/`, or with --check say whether it is in step."""

import filecmp
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "shared" / "carina" / "api"
STRAY = "from google.protobuf.descriptor import Descriptor\n"


def include(module: str, up: int) -> Path:
    """The folder from which a module's .proto files are imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(next(iter(spec.submodule_search_locations)))
    return path.parents[up - 1] if up else path / "_proto"


def generate(target: Path) -> None:
    google = include("google.rpc", 2)
    files = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    plugin = Path(sys.executable).with_name("protoc-gen-python_betterproto2")
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        *(f"-I{ROOT / 'proto'}", f"-I{google}", f"-I{include('grpc_tools', 0)}"),
        f"--plugin=protoc-gen-python_betterproto2={plugin}",
        f"--python_betterproto2_out={target}",
        "--python_betterproto2_opt=client_generation=async,server_generation=async",
        *(*files, "google/rpc/status.proto"),
    ]
    # The plugin formats its output with ruff, which it looks up on the path.
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(command, cwd="/", env={"PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"protos: {done.stderr}")
    # The plugin's template imports a class of Google's runtime, which a message named Descriptor keeps from being
    # dropped as unused; nothing here needs that runtime.
    for path in target.rglob("*.py"):
        text = path.read_text()
        if STRAY in text:
            path.write_text(text.replace(STRAY, ""))


def differences(compared: "filecmp.dircmp[str]", below: str = "") -> list[str]:
    found = [below + name for name in (*compared.left_only, *compared.right_only, *compared.diff_files)]
    for name, inner in compared.subdirs.items():
        found += differences(inner, f"{below}{name}/")
    return found


def main() -> None:
    if "--check" not in sys.argv[1:]:
        API.mkdir(exist_ok=True)
        generate(API)
        return
    with tempfile.TemporaryDirectory() as made:
        generate(Path(made))
        stale = differences(filecmp.dircmp(made, API, ignore=["__pycache__"]))
    if stale:
        sys.exit(f"protos: not in step with proto/, run `make protos`: {', '.join(sorted(stale))}")
    print(f"protos: {API.relative_to(ROOT)} is in step with proto/")


if __name__ == "__main__":
    main()
