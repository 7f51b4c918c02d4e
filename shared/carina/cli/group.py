"""Groups of commands: ctr's other names for them, what was probably meant, and modules that are imported when used."""

import importlib
from collections.abc import Mapping
from typing import Any, Final

import click

SYNONYMS: Final = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}
"""What ctr calls these commands besides; they work in every group that has the command."""


class Group(click.Group):
    """A group whose commands have aliases."""

    def __init__(self, *args: Any, aliases: Mapping[str, str] | None = None, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.aliases = SYNONYMS | dict(aliases or {})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.commands.get(cmd_name) or self.commands.get(self.aliases.get(cmd_name, ""))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand:
            known = set(self.list_commands(ctx))
            known |= {name for name, to in self.aliases.items() if to in known}
            raise click.exceptions.NoSuchCommand(args[0], possibilities=sorted(known), ctx=ctx) from None


class LazyGroup(Group):
    """A group that imports a command when it is used: starting stays quick.

    Args:
        places: name -> `module:attribute`, in the order of the help.
        summaries: name -> the first sentence of its help, so that listing them imports none of them.
    """

    def __init__(self, *args: Any, places: Mapping[str, str], summaries: Mapping[str, str], **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.places, self.summaries = places, summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name if cmd_name in self.places else self.aliases.get(cmd_name, "")
        place = self.places.get(name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.summaries[name]) for name in self.places])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=self.summaries[name]) for name in self.places if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)
