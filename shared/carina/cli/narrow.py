"""Tables on terminals that are too narrow for them."""

import re
from collections.abc import Sequence
from typing import Final

_DIGEST: Final = re.compile(r"\b(sha(?:256|384|512):[0-9a-f]{12})[0-9a-f]{20,}\b")


def fit(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table within the terminal's width: digests shortened to twelve digits, long cells folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
    console = Console(highlight=False)
    shortened = [[_DIGEST.sub(r"\1", cell) for cell in row] for row in rows]
    first = max((len(row[0]) for row in shortened), default=0)
    for number, header in enumerate(headers):
        # What a row is about stays in one piece, as far as it leaves room for the rest.
        table.add_column(header, overflow="fold", min_width=min(first, console.width // 2) if number == 0 else None)
    for row in shortened:
        table.add_row(*map(Text, row))
    console.print(table)
