"""Makes docs/commands.md and docs/ctr.md from the command line itself: `python deploy/reference.py [--check]`.

What ctr has stands in deploy/ctr.toml. A command or flag of it that neither is here nor has a reason there is an error.
"""

import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from carina.cli.__main__ import carina
from carina.cli.status import MEANINGS

TOP = Path(__file__).resolve().parent.parent
MADE = "<!-- Made by deploy/reference.py; `make reference` makes it again. -->\n"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1] if path else "carina")
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, name
            yield from commands(found, (*path, name))


def commands_page() -> str:
    lines = ["# Commands\n", MADE, _intro()]
    for path, command in commands(carina):
        lines += [f"## carina {' '.join(path)}".rstrip() + "\n", _help(command) + "\n"]
        usage = " ".join(("carina", *path, *_pieces(command)))
        lines += [f"```\n{usage}\n```\n"]
        rows = [_option(option) for option in command.params if isinstance(option, click.Option) and not option.hidden]
        if rows:
            lines += ["| option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"]
    return "\n".join(lines)


def _intro() -> str:
    statuses = "\n".join(f"| {status} | {meaning} |" for status, meaning in MEANINGS.items())
    return (
        "Every list takes `-q` (names only) and `--format table|json|TEMPLATE`; "
        "a template is jinja2's, on the fields that JSON shows: `--format '{{name}} {{size|size}}'`.\n"
        "Commands have ctr's other names for them, too: `list`, `delete`, `del` and `remove`, `c`, `i`, `t`, ...\n"
        "Colours and redrawn lines are for terminals only; `NO_COLOR` does without colours.\n\n"
        f"| exit status | meaning |\n|---|---|\n{statuses}\n"
    )


def _pieces(command: click.Command) -> list[str]:
    context = click.Context(command, info_name=command.name)
    return command.collect_usage_pieces(context)


def _help(command: click.Command) -> str:
    return "\n".join(line.strip() for line in (command.help or "").splitlines()).replace("<", "&lt;")


def _option(option: click.Option) -> str:
    names = ", ".join((*option.opts, *option.secondary_opts))
    value = "" if option.is_flag or option.count else f" {_metavar(option)}"
    default = option.default
    shown = f" Default: `{default}`." if option.show_default and default not in (None, "", ()) else ""
    variable = f" Environment: `{option.envvar}`." if option.envvar else ""
    return f"| `{names}{value}` | {(option.help or '').replace('|', chr(92) + '|')}{shown}{variable} |".replace(
        "table|json", "table\\|json"
    )


def _metavar(option: click.Option) -> str:
    return option.make_metavar(click.Context(click.Command("x"))).replace("|", "\\|")


def ctr_page() -> str:
    """Raises SystemExit: something of ctr's is neither here nor explained."""
    table = tomllib.loads((TOP / "deploy" / "ctr.toml").read_text())
    known = {" ".join(path): command for path, command in commands(carina)}
    lines = [
        "# What ctr has, and what answers it here\n",
        MADE,
        "Where this table says `same`, `carina` is `ctr` for hands and scripts: the words, the flags, their order.\n",
        "It speaks to a containerd as well: `carina --address unix:///run/containerd/containerd.sock images ls`.\n",
        "| ctr | here | flags that are the same | flags that are not |\n|---|---|---|---|",
    ]
    wrong: list[str] = []
    rows: dict[str, tuple[str, list[str], list[str]]] = {}
    for entry in table["command"]:
        _row(entry, table, known, rows, wrong)
    if wrong:
        raise SystemExit("neither here nor explained in deploy/ctr.toml:\n  " + "\n  ".join(wrong))
    for name, (here, same, other) in rows.items():
        lines.append(f"| `ctr {name}`".rstrip() + f" | {here} | {' '.join(same)} | {'; '.join(other)} |")
    return "\n".join(lines).replace("`ctr `", "`ctr`") + "\n"


def _row(
    entry: Mapping[str, Any],
    table: Mapping[str, Any],
    known: Mapping[str, click.Command],
    rows: dict[str, tuple[str, list[str], list[str]]],
    wrong: list[str],
) -> None:
    name = entry["name"]
    since = f" (ctr {entry['since']})" if "since" in entry else ""
    absent = table["absent"].get(name) or table["absent"].get(f"{name.partition(' ')[0]} *")
    if absent:
        rows[name + since] = (f"none: {absent}", [], [])
        return
    words = table["elsewhere"].get(name, name)
    command = _resolve(words.partition(" --")[0].split())
    if command is None:
        wrong.append(f"ctr {name}")
        return
    above = name.split()[:-1]
    wrong += [f"ctr {name}, called {alias}" for alias in entry.get("aliases", ()) if not _resolve([*above, alias])]
    same, other = [], []
    for flag in entry.get("flags", ()):
        spellings = flag.split(", ")
        if set(spellings) <= {opt for option in command.params for opt in option.opts}:
            same.append(f"`{flag}`")
        elif why := table["flags"].get(f"{name} {spellings[0]}") or table["flags"].get(f"* {spellings[0]}"):
            other.append(f"`{flag}`: {why}")
        else:
            wrong.append(f"ctr {name} {flag}")
    here = "same" if words == name else f"`carina {words}`"
    rows[name + since] = (here, same, other)


def _resolve(words: list[str]) -> click.Command | None:
    """The command that the words call, aliases and all."""
    command: click.Command | None = carina
    for word in words:
        if not isinstance(command, click.Group):
            return None
        command = command.get_command(click.Context(command), word)
    return command


def main() -> None:
    stale = []
    for name, text in (("commands.md", commands_page()), ("ctr.md", ctr_page())):
        path = TOP / "docs" / name
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text() != text:
                stale.append(f"docs/{name}")
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if stale:
        raise SystemExit(f"{', '.join(stale)}: not what the command line is: `make reference` makes them again")


if __name__ == "__main__":
    main()
