"""What the command line says of a registry: how to speak to it, and who asks."""

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from carina.transfer import Access, Credentials


def access(*, plain_http: bool, user: str | None) -> "Access":
    """`user` is NAME or NAME:PASSWORD; the password is asked for on the terminal where it is not given.

    Without a user, Docker's configuration says who asks.
    """
    from carina.transfer import Access, Credentials
    from carina.transfer.dockerconfig import DockerConfig

    if not user:
        docker = DockerConfig.read(DockerConfig.default_path(os.environ))
        return Access(plain_http=plain_http, credentials=docker.credentials if docker else None)
    name, colon, password = user.partition(":")
    if not colon:
        password = click.prompt("Password", hide_input=True, err=True)
    known = Credentials(username=name, secret=password)

    async def answer(host: str, challenges: list[str]) -> "Credentials | None":
        return known

    return Access(plain_http=plain_http, credentials=answer)
