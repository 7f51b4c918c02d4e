"""Make the generated pages of `docs/`, or with --check say whether they are current.

    documents.py [--check]
    documents.py --recorded DIRECTORY    first take over what suites recorded (see `make compatibility`)

configuration.md is made from deploy/config.toml, which the tests hold equal to what the services read.
compatibility.md is made from tests/compatibility.json, which says of each method what answers it (the tests compare
that with a running constellation) and which tests call it (recorded while they ran).
"""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.methods import methods  # noqa: E402 - the path is set above

DOCS = ROOT / "docs"
TABLE = ROOT / "tests" / "compatibility.json"
ASKED = "test_every_method.py"
"""Asks each method whether it is built: that is no test of what it does."""
_SETTING = re.compile(r"#([a-z_]+) = (.*)")
_EXAMPLE = re.compile(r" *(?:[a-z_]+ = |\[)")
_TERM = re.compile(r"  ([a-z_]+) {2,}(.*)")
_SECTION = re.compile(r"(?:# )?\[([^\]]+)\]")
CONFIGURATION = """\
# Configuration

Generated from [deploy/config.toml](../deploy/config.toml) by `make documents`.
The tests hold that file equal to what the services read."""
COMPATIBILITY = """\
# Compatibility with containerd

Generated from tests: a running constellation is asked each method of containerd 2.3's API,
and suites record the methods that they call (`make compatibility`).
Of {all} methods {built} are built, and {rest} answer UNIMPLEMENTED; {called} are called by the recorded suites.

What unmodified clients call besides, in [test_ctr.py](../tests/system/test_ctr.py),
[test_dockerd.py](../tests/system/test_dockerd.py) and others of [tests/system](../tests/system), is not recorded.
The last column names suites that call the method of Debian's containerd 1.6 as well, with the same expectations;
what differs there is listed in each suite.
That a method is built does not say that every field of its request is: see [Known weaknesses](weaknesses.md)."""


@dataclass
class Section:
    name: str
    text: list[str] = field(default_factory=list)
    settings: list[tuple[str, str, str]] = field(default_factory=list)
    """Key, default, meaning."""


def sections(text: str) -> list[Section]:
    """The sections of the file of defaults: comments belong to the setting or the section that follows them."""
    found = [Section("")]
    comment: list[str] = []
    for line in text.splitlines():
        if setting := _SETTING.fullmatch(line):
            found[-1].settings.append((setting[1], setting[2], _meaning(found[-1], comment)))
            comment = []
        elif line.startswith("[") and (section := _SECTION.fullmatch(line)):
            found.append(Section(section[1], comment))
            comment = []
        elif line.startswith("# ") or line == "#":
            comment.append(line[2:])
        elif not line.strip() and comment:
            # A comment by itself: what it shows as an example may be a section of its own.
            example = next((one for one in map(str.strip, comment) if one.startswith("[proxy_plugins.")), "")
            if example or found[-1].settings or found[-1].name:
                found.append(Section("proxy_plugins.NAME" if example else ""))
            found[-1].text += ["", *comment]
            comment = []
    found[-1].text += comment
    return found


def _meaning(section: Section, comment: list[str]) -> str:
    """What is said of a setting. What comes before an example is about another one, which has no default."""
    shown = [at for at, line in enumerate(comment) if _EXAMPLE.match(line) and line.startswith("  ")]
    if shown:
        section.text += ["", *comment[: shown[-1] + 1]]
        comment = comment[shown[-1] + 1 :]
    return " ".join(one.strip() for one in comment).strip()


def prose(lines: list[str]) -> str:
    """Comments as Markdown: what is indented is an example."""
    out: list[str] = []
    fenced = False
    for line in lines:
        example = _EXAMPLE.match(line) or (fenced and line.startswith(" " * 8))
        if bool(example) != fenced:
            out += ["", "```toml"] if example else ["```"]
            fenced = bool(example)
        if not fenced and (term := _TERM.fullmatch(line)):
            line = f"- `{term[1]}`: {term[2]}"
        out.append(line.strip() if fenced else re.sub("^ {4,}", "  ", line))
    if fenced:
        out.append("```")
    text = "\n".join(out).strip()
    return re.sub(r"\n{3,}", "\n\n", text)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def configuration() -> str:
    out = [CONFIGURATION]
    for section in sections((ROOT / "deploy" / "config.toml").read_text()):
        out += ["", f"## `[{section.name}]`"] if section.name else []
        if text := prose(section.text):
            out += ["", text]
        if section.settings:
            out += ["", "| setting | default | |", "|---|---|---|"]
            out += [f"| `{key}` | `{cell(default)}` | {cell(meaning)} |" for key, default, meaning in section.settings]
    return "\n".join(out) + "\n"


def compatibility() -> str:
    table = json.loads(TABLE.read_text())
    known = {method.path for method in methods()}
    if known != set(table):
        sys.exit(f"documents: not in step with proto/, run `make compatibility`: {sorted(known ^ set(table))}")
    for path, entry in table.items():
        for file in (*entry["carina"], *entry["containerd"]):
            if not (ROOT / file).exists():
                sys.exit(f"documents: {path} is said to be tested by {file}, which is not there; `make compatibility`")
    built = sum(entry["answer"] == "built" for entry in table.values())
    called = sum(bool(entry["carina"]) for entry in table.values())
    out = [COMPATIBILITY.format(all=len(table), built=built, rest=len(table) - built, called=called)]
    service = ""
    for path, entry in table.items():
        name = path[1 : path.rfind("/")]
        if name != service:
            service = name
            out += ["", f"## {name}", "", "| method | | tested by | on containerd |", "|---|---|---|---|"]
        ours = ", ".join(map(link, entry["carina"]))
        theirs = ", ".join(map(link, entry["containerd"]))
        out.append(f"| {path.rpartition('/')[2]} | {entry['answer']} | {ours} | {theirs} |")
    return "\n".join(out) + "\n"


def link(file: str) -> str:
    return f"[{file.removeprefix('tests/')}](../{file})"


def take_over(directory: Path) -> None:
    """Make the table of what was recorded."""
    answers = json.loads((directory / "answers.json").read_text())
    table = {}
    recorded: dict[str, set[str]] = {}
    for file in directory.glob("[0-9]*.json"):
        for path, where in json.loads(file.read_text()).items():
            recorded.setdefault(path, set()).update(one for one in where if not one.endswith(ASKED))
    for method in methods():
        where = sorted(one.split(" ", 1)[1] for one in recorded.get(method.path, ()) if one.startswith("carina "))
        there = sorted(one.split(" ", 1)[1] for one in recorded.get(method.path, ()) if one.startswith("containerd "))
        table[method.path] = {"answer": answers[method.path], "carina": where, "containerd": there}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


def main() -> None:
    if "--recorded" in sys.argv[1:]:
        take_over(Path(sys.argv[sys.argv.index("--recorded") + 1]))
    stale = []
    for name, text in (("configuration.md", configuration()), ("compatibility.md", compatibility())):
        path = DOCS / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"documents: not current, run `make documents`: {', '.join(stale)}")
    print("documents: docs/configuration.md and docs/compatibility.md are current")


if __name__ == "__main__":
    main()
