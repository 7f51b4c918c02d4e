"""`make fuzz DURATION=seconds [SEED=n]`: every parser in turn until the time is over.

What makes one fail is made small, shown, and written beside the corpus, as a file to be added to it.
"""

import argparse
import sys
import time
import traceback

from hypothesis import HealthCheck, given, seed, settings

from fuzz.mutation import near
from fuzz.parsers import CORPUS, PARSERS, TOKENS, describe, seeds

TURN = 400
"""Examples of a parser before it is the next one's turn."""


def main() -> None:
    options = argparse.ArgumentParser(prog="fuzz")
    options.add_argument("--duration", type=float, default=60)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--parser", choices=sorted(PARSERS))
    chosen = options.parse_args()
    names = [chosen.parser] if chosen.parser else list(PARSERS)
    limit = time.monotonic() + chosen.duration
    number, tried = chosen.seed, 0
    failed: set[str] = set()
    while time.monotonic() < limit and len(failed) < len(names):
        for name in names:
            if name not in failed and time.monotonic() < limit:
                tried += TURN
                if not turn(name, number):
                    failed.add(name)
        number += 1
    print(f"parsers {len(names)}, examples {tried}, failed {len(failed)}")
    sys.exit(bool(failed))


def turn(name: str, number: int) -> bool:
    """Whether a parser has taken all examples."""
    parser = PARSERS[name]
    last = [b""]

    @seed(number)
    @settings(max_examples=TURN, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(near(seeds(name), TOKENS))
    def run(data: bytes) -> None:
        last[0] = data
        try:
            parser.read(data)
        except parser.refuses:
            pass

    try:
        run()
    except Exception:
        traceback.print_exc(limit=-4)
        path = CORPUS / name / f"found-{number}"
        path.write_bytes(last[0])
        print(f"{name}: {describe(last[0])}\nwritten to {path}", flush=True)
        return False
    return True


if __name__ == "__main__":
    main()
