"""containerd-shim-carina-v1: `start` and `delete` as containerd calls them, and the shim that `start` leaves behind.

What `start` imports, its caller waits for: the rest is imported by the process that stays.
"""

import os
import sys

from carina.errors import CarinaError
from shimd.config import Config, parse


def main() -> None:
    try:
        config = parse(sys.argv[1:], os.environ)
        if config.version:
            print(f"{os.path.basename(sys.argv[0])}:\n  Version:  0.1.0+carina")  # noqa: T201 - what -v is for
        elif config.info:
            _describe()
        elif config.action == "start":
            _start(config)
        elif config.action == "delete":
            from shimd.removal import remove

            os.write(1, remove(config))
        else:
            sys.exit("an action is missing: expected start or delete, or -info or -v")
    except CarinaError as error:
        sys.exit(f"containerd-shim-carina-v1: {error}")
    except OSError as error:
        sys.exit(f"containerd-shim-carina-v1: {error.filename or ''}: {error.strerror}")


def _describe() -> None:
    from shimd.messages import RUNTIME_INFO
    from shimd.wire import encode

    version = {"version": "0.1.0+carina", "revision": ""}
    os.write(1, encode(RUNTIME_INFO, {"name": "io.containerd.carina.v1", "version": version, "annotations": {}}))


def _start(config: Config) -> None:
    from shimd.birth import begin

    begin(config)


if __name__ == "__main__":
    main()
