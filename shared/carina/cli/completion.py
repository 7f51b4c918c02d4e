"""completion: what makes a shell complete the words of this command."""

import os
import shlex
from typing import Any, Final

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

SHELLS: Final = ("bash", "zsh", "fish")
_BASH: Final = """\
# Completion of %(prog_name)s for bash 4.4 and later: eval "$(%(prog_name)s completion bash)"
%(complete_func)s() {
    local kind value prefix=
    COMPREPLY=()
    # To bash a colon ends a word; what comes before the last one is on the line already.
    [[ $COMP_WORDBREAKS == *:* ]] && prefix=1
    while IFS=, read -r kind value; do
        case $kind in
            cut) [[ $prefix ]] && prefix=$value ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) [[ ${prefix:-1} != 1 ]] && value=${value#"$prefix"}
                   COMPREPLY+=("$value") ;;
        esac
    done < <(%(complete_var)s=bash_complete CARINA_LINE="${COMP_LINE:0:COMP_POINT}" "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """click's, with the line as it was typed: bash splits references at their colons."""

    name = "bash"
    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """The script itself needs nothing to be checked."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("CARINA_LINE", "")
        words = _split(line)
        incomplete = "" if not line or line[-1].isspace() or not words else words.pop()
        self._cut = incomplete.rpartition(":")[0]
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"

    def complete(self) -> str:
        found = super().complete()
        return f"cut,{self._cut}:\n{found}\n" if self._cut else f"{found}\n"


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()  # in the midst of a quoted word


def register() -> None:
    """Have click use our script for bash."""
    add_completion_class(_Bash)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete this command's words.

    bash: eval "$(carina completion bash)" in ~/.bashrc. zsh: the same in ~/.zshrc, after compinit.
    fish: carina completion fish > ~/.config/fish/completions/carina.fish
    """
    register()
    kind: Any = get_completion_class(shell)
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "carina", "_CARINA_COMPLETE").source())
