"""What the command line says of a registry: how to speak to it, and who asks."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from carina.transfer import Access, Credentials, CredentialSource

_OPTIONS: Final = (
    click.option("-k", "--skip-verify", is_flag=True, help="Take whatever certificate the registry shows."),
    click.option("--plain-http", is_flag=True, help="Speak http to the registry."),
    click.option("-u", "--user", metavar="NAME[:PASSWORD]", help="Who asks; without a password one is asked for."),
    click.option("--refresh", default="", metavar="TOKEN", help="Refresh token for the registry's token server."),
    click.option("--hosts-dir", default="", type=click.Path(), help="Directory of REGISTRY/hosts.toml."),
    click.option(
        "--tlscacert", default="", type=click.Path(), help="File of the authority of the registry's certificate."
    ),
    click.option("--tlscert", default="", type=click.Path(), help="File of our certificate."),
    click.option("--tlskey", default="", type=click.Path(), help="File of its key."),
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Registry:
    """How to get at the registry of one transfer."""

    skip_verify: bool
    plain_http: bool
    user: str | None
    refresh: str
    hosts_dir: str
    tlscacert: str
    tlscert: str
    tlskey: str

    @contextlib.contextmanager
    def access(self, reference: str) -> Iterator["Access"]:
        """For the time of the block: what is said of certificates is in files that end with it.

        Raises:
            click.UsageError: options contradict each other.
        """
        from carina.transfer import Access

        special = self.skip_verify or self.tlscacert or self.tlscert or self.tlskey
        if special and (self.plain_http or self.hosts_dir):
            raise click.UsageError("--skip-verify and --tls... go with neither --plain-http nor --hosts-dir")
        if bool(self.tlscert) != bool(self.tlskey):
            raise click.UsageError("--tlscert and --tlskey go together")
        credentials = self._credentials()
        with contextlib.ExitStack() as stack:
            directory = os.path.abspath(self.hosts_dir) if self.hosts_dir else ""
            if special:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="carina-hosts-"))
                self._describe(Path(directory), reference.partition("/")[0])
            yield Access(plain_http=self.plain_http, host_dir=directory, credentials=credentials)

    def _describe(self, directory: Path, host: str) -> None:
        """Write a hosts.toml for the one registry."""
        import json

        server = "registry-1.docker.io" if host == "docker.io" else host
        lines = [f"server = {json.dumps('https://' + server)}", f"[host.{json.dumps('https://' + server)}]"]
        lines.append('capabilities = ["pull", "resolve", "push"]')
        if self.skip_verify:
            lines.append("skip_verify = true")
        if self.tlscacert:
            lines.append(f"ca = {json.dumps(os.path.abspath(self.tlscacert))}")
        if self.tlscert:
            lines.append(f"client = [{json.dumps([os.path.abspath(self.tlscert), os.path.abspath(self.tlskey)])}]")
        place = directory / host
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text("\n".join(lines) + "\n")

    def _credentials(self) -> "CredentialSource | None":
        """Of the options, or else of Docker's configuration."""
        from carina.transfer import Credentials
        from carina.transfer.dockerconfig import DockerConfig

        if self.refresh:
            return _always(Credentials(secret=self.refresh))
        if not self.user:
            docker = DockerConfig.read(DockerConfig.default_path(os.environ))
            return docker.credentials if docker else None
        name, colon, password = self.user.partition(":")
        if not colon:
            password = click.prompt("Password", hide_input=True, err=True)
        return _always(Credentials(username=name, secret=password))


def _always(known: "Credentials") -> "CredentialSource":
    async def answer(host: str, challenges: list[str]) -> "Credentials | None":
        return known

    return answer


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how to speak to a registry, given to the command together as `registry`."""

    @functools.wraps(command)
    def with_registry(*args: Any, **given: Any) -> Any:
        fields = {name: given.pop(name) for name in Registry.__dataclass_fields__}
        return command(*args, registry=Registry(**fields), **given)

    for option in reversed(_OPTIONS):
        with_registry = option(with_registry)
    return with_registry
