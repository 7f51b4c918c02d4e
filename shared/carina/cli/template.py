"""Templates of --format: jinja2's, on the fields that --format json shows.

`{{name}}`, `{{size|size}}`, `{{labels|tojson}}`; a field may be written with Docker's dot, `{{.name}}`, and in
whatever case. `{{row|tojson}}` is all of it.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from carina.cli import output

_DOTTED: Final = re.compile(r"(\{\{-?\s*)\.([A-Za-z_])")


def render(text: str, row: Any) -> str:
    """Raises click.UsageError: it is no template, or asks for a field that there is not."""
    from jinja2 import StrictUndefined, TemplateError, UndefinedError
    from jinja2.sandbox import SandboxedEnvironment

    fields = dict(row) if isinstance(row, Mapping) else {"value": row}
    environment = SandboxedEnvironment(undefined=StrictUndefined, finalize=_safe, autoescape=False)
    environment.filters |= {"size": output.size, "age": _age}
    try:
        wanted = _DOTTED.sub(r"\1\2", text.replace("\\t", "\t").replace("\\n", "\n"))
        template = environment.from_string(wanted)
        return template.render(**{"row": fields} | _spelled(fields))
    except UndefinedError as error:
        raise click.UsageError(f"--format: {error.message}: expected {', '.join(sorted(fields))}") from error
    except (TemplateError, TypeError, ValueError) as error:
        raise click.UsageError(f"--format: {error} in {text!r}") from error


def _spelled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by their names, and as Docker's and containerd's programs spell them: `created_at`, `CreatedAt`, `ID`."""
    spelled = dict(fields)
    for key, value in fields.items():
        for other in ("".join(part.capitalize() for part in key.split("_")), key.upper(), key.replace("_", "")):
            spelled.setdefault(other, value)
    return spelled


def _safe(value: Any) -> Any:
    """What is a stranger's does not steer the terminal."""
    return output.plain(value) if isinstance(value, str) else value


def _age(text: str | None) -> str:
    if not text:
        return "-"
    moment = datetime.fromisoformat(text)
    return output.duration((datetime.now(UTC) - moment).total_seconds())
