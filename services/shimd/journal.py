"""The log: lines in logfmt into a bundle's `log` FIFO, which taskd or containerd reads, or else to standard error.

Nothing waits for a reader: a line that nobody takes is lost.
"""

import os
import sys
import traceback


def write(level: str, text: str, *, bundle: str = "") -> None:
    shown = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")[:1500]
    line = f'level={level} msg="{shown}"\n'.encode(errors="replace")
    try:
        descriptor = os.open(os.path.join(bundle, "log"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC) if bundle else -1
    except OSError:
        descriptor = -1
    try:
        os.write(descriptor if descriptor >= 0 else 2, line)
    except OSError:
        return
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def failed(what: str, error: BaseException, *, bundle: str = "") -> None:
    """An error that is a mistake of ours, with where it came from."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {os.path.basename(where[0].filename)}:{where[0].lineno}" if where else ""
    write("error", f"{what}: {type(error).__name__}{place}: {error}", bundle=bundle)
    if os.environ.get("CARINA_SHIM_TRACE"):
        traceback.print_exception(error, file=sys.stderr)
