"""config: configuration files shown, checked, and made from containerd's."""

import copy
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from carina import config as configuration
from carina.cli.group import Group
from carina.cli.located import check as check_services
from carina.cli.located import located
from carina.config import Config
from carina.errors import CarinaError, NotFound

PATH: Final = click.Path(path_type=Path)
_SETTING: Final = re.compile(r"#([A-Za-z_]+ = .*)")


@click.group(cls=Group)
def config() -> None:
    """Show, check and import configuration files."""


@config.command("default")
def default() -> None:
    """Print a file with every setting, its default, and what it is for."""
    click.echo(commented(), nl=False)


def commented() -> str:
    """The text of the default configuration.

    Raises:
        NotFound: this installation has none.
    """
    package = Path(configuration.__file__).parent
    for place in (package / "default.toml", package.parent.parent / "deploy" / "config.toml"):
        if place.is_file():
            return place.read_text()
    raise NotFound("this installation has no default configuration file: it was installed without deploy/config.toml")


@config.command("dump")
@click.argument("file", type=PATH, required=False)
def dump(file: Path | None) -> None:
    """Print what is in force: the settings of FILE (or of the usual file), and the defaults of all others."""
    import tomli_w

    loaded = configuration.load(file)
    click.echo(tomli_w.dumps(effective(loaded)), nl=False)


def effective(loaded: Config) -> dict[str, Any]:
    """Every setting as it is in force."""
    whole = defaults()
    services: dict[str, Any] = {}
    for service, address in loaded.services.items():
        at = services
        *tables, last = service.split(".", 1)
        for table in tables:
            at = at.setdefault(table, {})
        at[last] = {"address": address, "external": service in loaded.external}
    plugins = {name: _plugin(plugin) for name, plugin in loaded.proxy_plugins.items()}
    whole |= {"root": str(loaded.root), "state": str(loaded.state), "services": services, "proxy_plugins": plugins}
    for name, section in loaded.sections.items():
        whole[name] = _merged(whole.get(name, {}), section)
    kept = {name: whole["snapshots"].get(name, {"driver": name}) for name in loaded.snapshotters}
    whole["snapshots"] = kept
    return whole


def _plugin(plugin: configuration.ProxyPlugin) -> dict[str, Any]:
    keys = ("type", "address", "namespace", "snapshotter", "lease", "platform")
    found = {key: getattr(plugin, key) for key in keys if getattr(plugin, key)}
    return (
        found
        | ({"exports": dict(plugin.exports)} if plugin.exports else {})
        | ({"capabilities": list(plugin.capabilities)} if plugin.capabilities else {})
    )


def defaults() -> dict[str, Any]:
    """The settings that the commented file shows."""
    return tomllib.loads("\n".join(_SETTING.sub(r"\1", line) for line in commented().splitlines()))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(dict(base))
    for key, value in over.items():
        below = found.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        found[key] = _merged(below, value) if both and below is not None else value
    return found


@config.command("check")
@click.argument("file", type=PATH, required=False)
def check(file: Path | None) -> None:
    """Say whether every service could be started with FILE (or the usual file), and with what line it could not."""
    with located(file or configuration.DEFAULT_PATH):
        loaded = configuration.load(file)
        check_services(loaded)
    click.echo(
        f"{loaded.path}: ok" if loaded.path else f"there is no {configuration.DEFAULT_PATH}: defaults are in force"
    )


@config.command("import")
@click.argument("file", type=PATH)
@click.option("-o", "--output", "into", type=PATH, metavar="FILE", help="Write it there; to standard output without.")
@click.option("--places", is_flag=True, help="Take root, state and address as well: Carina in containerd's place.")
def import_(file: Path, into: Path | None, places: bool) -> None:
    """Make a configuration of containerd's config.toml (versions 2 to 4), and say what was taken and what was not.

    What was not taken has no counterpart here; standard error says why, key by key.
    """
    import tempfile

    import tomli_w

    from carina.cli import output
    from carina.cli.containerdconfig import read, translate

    made = translate(read(file), places=places)
    text = f"# Made of {file} by `carina config import`.\n\n{tomli_w.dumps(made.config)}"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as trial:
        trial.write(text)
        trial.flush()
        try:
            check_services(configuration.load(Path(trial.name)))
        except CarinaError as error:
            raise type(error)(str(error).replace(trial.name, f"{file}, imported")) from error
    for key, where in made.taken:
        click.echo(f"taken      {output.plain(key)} → {where}", err=True)
    for key, why in made.left:
        click.echo(f"not taken  {output.plain(key)}: {why}", err=True)
    if into is None:
        click.echo(text, nl=False)
        return
    write_new(into, text)


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, whole or not at all. Raises click.ClickException."""
    import os

    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    except FileExistsError as error:
        raise click.ClickException(f"{path} is there already: it is not overwritten") from error
    except OSError as error:
        raise click.ClickException(f"{path} can't be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
