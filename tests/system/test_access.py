"""Tenants: users who see and touch one namespace of a constellation, and nothing else of it."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from carina import context
from carina.api.containerd.services.transfer.v1 import TransferRequest, TransferStub
from carina.api.containerd.types.transfer import ImageStore, OciRegistry, RegistryResolver
from carina.api.google.protobuf import Any as WireAny
from carina.client import Client
from carina.digest import Digest
from carina.errors import CarinaError, NotFound, PermissionDenied
from carina.rpc.codec import encode
from carina.transfer import Access, Store
from support.constellation import Constellation, Result

TENANT, GUEST, STRANGER, GROUP = 64001, 64002, 64003, 64010
LISTED = 64011
"""A supplementary group."""
SECRET = b"what the others keep to themselves"


@pytest.fixture(scope="module")
def carina() -> Iterator[Constellation]:
    config = "[access.sockets.tenant]\npath = {path}\nnamespace = 'tenant'\nusers = [{tenant}]\ngroups = [{group}]\n"
    config += "[access.namespaces.guest]\nusers = [{guest}]\n"
    running = Constellation()
    path = f'"{running.state}/tenant.sock"'
    running.config.write_text(config.format(path=path, tenant=TENANT, group=LISTED, guest=GUEST))
    running.directory.chmod(0o755)
    with running:
        yield running


def _as(uid: int, *command: str, groups: str = "", stdin: bytes = b"") -> Result:
    """Run a command as a user of no name."""
    who = ["setpriv", f"--reuid={uid}", f"--regid={GROUP}", f"--groups={groups}" if groups else "--clear-groups"]
    done = subprocess.run([*who, *command], input=stdin, capture_output=True, timeout=60, check=False, cwd="/")
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def _ctr(
    carina: Constellation, uid: int, *arguments: str, namespace: str = "tenant", own: bool = True, groups: str = ""
) -> Result:
    socket = carina.state / "tenant.sock" if own else carina.socket
    # `ctr` tries again for ten seconds where its connections are closed.
    command = ("ctr", "--connect-timeout", "4s", "--address", str(socket), "--namespace", namespace, *arguments)
    return _as(uid, *command, groups=groups)


def _log(carina: Constellation) -> str:
    return carina.log.read_text()


def test_a_tenant_sees_its_namespace_alone(carina: Constellation) -> None:
    """It makes, lists and removes what is its own; the same calls about any other namespace are refused and logged."""
    carina.ctr("namespaces", "create", "hidden")
    made = _as(
        TENANT,
        "ctr",
        "-a",
        str(carina.state / "tenant.sock"),
        "-n",
        "tenant",
        "content",
        "ingest",
        "mine",
        stdin=b"mine",
    )
    assert made.status == 0, made
    digest = Digest.of(b"mine")
    assert _ctr(carina, TENANT, "content", "get", digest).output == "mine"
    assert _ctr(carina, TENANT, "namespaces", "ls", "-q").output.split() == ["tenant"]
    assert "hidden" in carina.ctr("namespaces", "ls", "-q").output
    for namespace in ("hidden", "default", "guest"):
        refused = _ctr(carina, TENANT, "content", "ls", namespace=namespace)
        assert "this connection is for namespace tenant only" in refused.error
    line = next(line for line in _log(carina).splitlines() if "refused:" in line and "'hidden'" in line)
    for told in (
        f"uid={TENANT}",
        f"gid={GROUP}",
        "pid=",
        "method='/containerd.services.content.v1.Content/List'",
        "reason=",
    ):
        assert told in line
    assert _ctr(carina, TENANT, "namespaces", "create", "more").status != 0
    assert _ctr(carina, TENANT, "content", "rm", digest).status == 0


def test_a_tenant_can_not_read_anothers_content_by_its_digest(carina: Constellation) -> None:
    """Nor be given it for naming the digest when it writes; and what only the tenant has is not given to others."""
    digest = Digest.of(SECRET)
    carina.ctr("content", "ingest", "secret", stdin=SECRET)
    carina.ctr("content", "label", digest, "containerd.io/gc.root=x")
    assert "not found" in _ctr(carina, TENANT, "content", "get", digest).error

    async def claims(address: str, namespace: str, wanted: Digest, size: int) -> bool:
        async with Client(address) as client:
            with context.within(namespace=namespace):
                async with await client.content.writer("claim", total=size, expected=wanted) as writer:
                    given = writer.status.offset == size
                await client.content.abort("claim")
                return given

    theirs = b"what the tenant keeps"
    with _root(carina) as address:
        assert asyncio.run(claims(carina.address, "another", digest, len(SECRET)))  # policy: shared
        assert not asyncio.run(claims(address, "tenant", digest, len(SECRET)))
        asyncio.run(_keep(address, theirs))
        assert not asyncio.run(claims(carina.address, "another", Digest.of(theirs), len(theirs)))


@contextlib.contextmanager
def _root(carina: Constellation) -> Iterator[str]:
    """The tenant's socket, which root may use for the tenant's namespace."""
    yield f"unix://{carina.state}/tenant.sock"


async def _keep(address: str, data: bytes) -> None:
    async with Client(address) as client:
        with context.within(namespace="tenant"):
            async with await client.content.writer("kept", total=len(data)) as writer:
                await writer.write(data)
                await writer.commit(labels={"containerd.io/gc.root": "x"})


def test_whoever_is_not_listed_gets_nothing(carina: Constellation) -> None:
    """A stranger's connections are closed on either socket, and logged; one of the group is let in by that alone."""
    for own in (True, False):
        assert _ctr(carina, STRANGER, "version", own=own).status != 0
    assert f"uid={STRANGER}" in _log(carina)
    assert "no right to this socket" in _log(carina)
    assert _ctr(carina, STRANGER, "content", "ls", groups=str(LISTED)).status == 0
    assert _ctr(carina, TENANT, "content", "ls", own=False).status != 0
    for path in (carina.root, carina.state / "metadatad.sock", carina.state / "contentd.sock"):
        assert _as(STRANGER, "cat", str(path)).status != 0
        assert not os.access(path, os.W_OK) or _as(STRANGER, "test", "-w", str(path)).status != 0


def test_a_namespace_is_opened_to_a_user_on_the_gateways_socket(carina: Constellation) -> None:
    """The guest has its namespace there; root and its calls are as before."""
    assert _ctr(carina, GUEST, "content", "ls", namespace="guest", own=False).status == 0
    assert "guest only" in _ctr(carina, GUEST, "content", "ls", namespace="tenant", own=False).error
    assert _ctr(carina, GUEST, "content", "ls", namespace="guest").status != 0
    assert carina.ctr("content", "ls").status == 0
    assert _ctr(carina, GUEST, "version", namespace="guest", own=False).status == 0


def test_what_root_would_do_for_a_tenant_is_refused(carina: Constellation) -> None:
    """Tasks, execs, mounts, runtimes, host directories, other namespaces' events: nothing that becomes root's."""
    refused = (
        "/containerd.services.tasks.v1.Tasks/Create",
        "/containerd.services.tasks.v1.Tasks/Exec",
        "/containerd.services.diff.v1.Diff/Apply",
        "/containerd.services.diff.v1.Diff/Diff",
        "/containerd.services.introspection.v1.Introspection/PluginInfo",
        "/containerd.services.events.v1.Events/Forward",
        "/containerd.services.namespaces.v1.Namespaces/Delete",
        "/containerd.services.snapshots.v1.Snapshots/Cleanup",
        "/containerd.services.sandbox.v1.Controller/Create",
        "/containerd.services.mounts.v1.Mounts/Activate",
        "/carina.plugins.v1.Plugins/Add",
        "/carina.swap.v1.Swap/Swap",
        "/carina.backup.v1.Backup/Read",
        "/carina.events.v1.Log/Read",
        "/carina.content.v1.Lane/OpenBlob",
        "/carina.gc.v1.GC/Plan",
    )

    async def call() -> list[str]:
        from grpclib.const import Cardinality

        from carina.api.google.protobuf import Empty

        answers = []
        async with Client(f"unix://{carina.state}/tenant.sock") as client:
            with context.within(namespace="tenant"):
                for path in refused:
                    try:
                        stream = client.channel.request(path, Cardinality.UNARY_UNARY, Empty, Empty)
                        async with stream:
                            await stream.send_message(Empty(), end=True)
                            await stream.recv_message()
                        answers.append(f"{path}: answered")
                    except PermissionDenied:
                        continue
                    except CarinaError as error:
                        answers.append(f"{path}: {error}")
                with pytest.raises(PermissionDenied, match="directory of registry settings"):
                    await client.transfer.fetch("localhost:1/x:1", Store(name="x"), access=Access(host_dir="/etc"))
                await _disguised(client)
                with pytest.raises(NotFound):
                    await client.content.info(Digest.of(b"absent"))
        return answers

    assert asyncio.run(call()) == []


async def _disguised(client: Client) -> None:
    """A registry under a name that only looks like another type's is a registry all the same."""
    registry = OciRegistry(reference="localhost:1/x:1", resolver=RegistryResolver(host_dir="/etc"))
    into = WireAny(type_url="containerd.types.transfer.ImageStore", value=encode(ImageStore(name="x")))
    for disguise in ("other.OCIRegistry", "x/OCIRegistry", "type.googleapis.com/containerd.types.transfer.OCIRegistry"):
        source = WireAny(type_url=disguise, value=encode(registry))
        with pytest.raises(PermissionDenied, match="directory of registry settings"):
            await TransferStub(client.channel).transfer(TransferRequest(source=source, destination=into))


def test_a_tenants_events_are_its_own(carina: Constellation) -> None:
    """Whatever filter it sends, and however clever, only what happened in its namespace arrives."""

    async def listen() -> list[str]:
        namespaces = []
        async with Client(f"unix://{carina.state}/tenant.sock") as tenant, Client(carina.address) as admin:

            async def take(filters: list[str]) -> None:
                async for event in tenant.events.subscribe(filters):
                    namespaces.append(event.namespace)
                    if len(namespaces) >= 3:
                        return

            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                tasks.create_task(take(["namespace==hidden", 'topic~="create"']))
                await asyncio.sleep(0.5)
                for number in range(3):
                    for client, namespace in ((admin, "hidden"), (tenant, "tenant")):
                        with context.within(namespace=namespace):
                            data = f"{namespace}{number}".encode()
                            async with await client.content.writer(f"event-{number}", total=len(data)) as writer:
                                await writer.write(data)
                                await writer.commit()
        return namespaces

    assert asyncio.run(listen()) == ["tenant"] * 3
