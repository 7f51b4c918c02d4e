"""A shim that misbehaves: a script whose mode is in the name it was installed by, `containerd-shim-<mode>-v1`."""

import sys
from pathlib import Path

_SCRIPT = """#!{python}
import json, os, signal, socket, struct, sys, time

MODE = os.path.basename(sys.argv[0]).split("-")[2]
ACTION = sys.argv[-1]
BUNDLE = os.getcwd()
with open(os.environ["SHIM_CALLS"], "a") as calls:
    calls.write(f"{{MODE}} {{ACTION}}\\n")


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def serve(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    if os.fork():
        return
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while True:
        connection, _ = listener.accept()
        while True:
            header = connection.recv(10, socket.MSG_WAITALL)
            if len(header) < 10:
                break
            length, stream, kind, flags = struct.unpack(">IIBB", header)
            request = connection.recv(length, socket.MSG_WAITALL)
            if MODE == "silent":
                continue
            if MODE == "dies":
                os._exit(1)
            if MODE == "nonsense":
                connection.sendall(struct.pack(">IIBB", 5, stream, 2, 0) + b"\\xff\\xff\\xff\\xff\\xff")
            if MODE == "oversize":
                connection.sendall(struct.pack(">IIBB", 1 << 30, stream, 2, 0) + b"x" * 100_000)
            if MODE == "wordy":
                status = field(1, field(1, 2) + field(2, b"the dog ate it"))
                connection.sendall(struct.pack(">IIBB", len(status), stream, 2, 0) + status)


if ACTION == "delete":
    if MODE == "nodelete":
        sys.exit("can't clean up")
    sys.stdout.buffer.write(field(1, 77) + field(2, 137))
elif MODE == "hangs":
    time.sleep(600)
elif MODE == "garbage":
    sys.stdout.buffer.write(b"\\0\\xff" * 5_000_000)
elif MODE == "fails":
    sys.exit("no luck today")
elif MODE == "nobody":
    print("unix://" + os.path.join(BUNDLE, "nobody.sock"))
elif MODE in ("grpc", "foreign"):
    protocol = "grpc" if MODE == "grpc" else "carrier pigeon"
    print(json.dumps({{"version": 3, "address": "unix://" + BUNDLE + "/s.sock", "protocol": protocol}}))
else:
    serve(os.path.join(BUNDLE, "s.sock"))
    print(json.dumps({{"version": 3, "address": "unix://" + os.path.join(BUNDLE, "s.sock"), "protocol": "ttrpc"}}))
"""


def install(directory: Path, *modes: str) -> None:
    directory.mkdir(exist_ok=True)
    for mode in modes:
        path = directory / f"containerd-shim-{mode}-v1"
        path.write_text(_SCRIPT.format(python=sys.executable))
        path.chmod(0o755)
