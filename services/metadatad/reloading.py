"""What a configuration that was read again changes of the back ends, as plain functions."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from carina.backends import Backend
from carina.config import SECTIONS, Config, ProxyPlugin, daemon, validate_plugin
from carina.errors import FailedPrecondition, InvalidArgument
from metadatad import backendrows, swaprows

_BACK_ENDS: Final = ("content", "snapshots.")
_SERVICES: Final = {"snapshots": "each snapshotd"}
_FIELDS: Final = ("address", "namespace", "snapshotter", "lease", "platform", "exports", "capabilities")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    added: Sequence[Backend]
    changed: Sequence[Backend]
    removed: Sequence[Backend]
    adopted: Sequence[Backend]
    """Added live before, and in the configuration now."""
    said: Sequence[str]
    """The same in words."""
    moved: Sequence[str] = ()
    """Services of the back ends that are to go to another address."""
    later: Sequence[str]
    """What has to wait until a service is started again."""


def backend_of(plugin: ProxyPlugin) -> Backend:
    return Backend(
        type=plugin.type,
        name=plugin.name,
        address=plugin.address,
        namespace=plugin.namespace,
        snapshotter=plugin.snapshotter,
        lease=plugin.lease,
        platform=plugin.platform,
        exports=plugin.exports,
        capabilities=plugin.capabilities,
        configured=True,
    )


def plugin_of(backend: Backend) -> ProxyPlugin:
    return ProxyPlugin(
        name=backend.name,
        type=backend.type,
        address=backend.address,
        namespace=backend.namespace,
        snapshotter=backend.snapshotter,
        lease=backend.lease,
        platform=backend.platform,
        exports=dict(backend.exports),
        capabilities=tuple(backend.capabilities),
    )


def configured(config: Config) -> Iterator[Backend]:
    """Every back end that the configuration names.

    Raises:
        InvalidArgument: one that can't be.
    """
    for service, address in config.services.items():
        kind, _, name = service.partition(".")
        if kind == "content":
            yield Backend(type="content", name="content", address=address, own=True, configured=True)
        elif kind == "snapshots":
            yield Backend(type="snapshot", name=name, address=address, own=True, configured=True)
    before: list[ProxyPlugin] = []
    for plugin in config.proxy_plugins.values():
        validate_plugin(plugin, config.services, before)
        before.append(plugin)
        yield backend_of(plugin)


def _arrived(new: Config, plugins: Mapping[str, ProxyPlugin], live: Sequence[Backend]) -> tuple[list[str], list[str]]:
    """The names of plugins that are new, and of those that were added live with the same words. Raises as `change`."""
    added_live = {backend.name: plugin_of(backend) for backend in live}
    added, adopted = [], []
    for name, plugin in plugins.items():
        if plugin == added_live.get(name):
            adopted.append(name)
            continue
        try:
            validate_plugin(plugin, new.services, added_live.values())
        except InvalidArgument as error:
            raise InvalidArgument(f"{new.path}: proxy_plugins.{name}: {error}") from error
        if name in added_live:
            raise InvalidArgument(
                f"{new.path}: proxy_plugins.{name}: another plugin of this name was added live: "
                f"`carina plugin rm {name}` comes first"
            )
        added.append(name)
    return added, adopted


def change(old: Config, new: Config, *, live: Sequence[Backend], content: str) -> Change:
    """From one configuration to another, beside the back ends that were added live. `content` holds the content.

    Raises:
        InvalidArgument: a new plugin contradicts one that was added live.
    """
    before, after = old.proxy_plugins, new.proxy_plugins
    moved = [
        service
        for service, address in new.services.items()
        if service.startswith(_BACK_ENDS) and old.services.get(service, address) != address
    ]
    if content:
        moved = [service for service in moved if service != "content"]
    later = list(_later(old, new, moved))
    if content in before and before[content] != after.get(content):
        later.append(f"proxy_plugins.{content} holds the content: metadatad takes it over when it is started again")
        before = {name: plugin for name, plugin in before.items() if name != content}
        after = {name: plugin for name, plugin in after.items() if name != content}
    added, adopted = _arrived(new, {name: after[name] for name in after.keys() - before.keys()}, live)
    both = before.keys() & after.keys()
    retyped = {name for name in both if before[name].type != after[name].type}
    changed = sorted(name for name in both - retyped if before[name] != after[name])
    removed = sorted({*(before.keys() - after.keys()), *retyped})
    added = sorted({*added, *retyped})
    said = [f"proxy_plugins.{name} is new: {after[name].type} at {after[name].address}" for name in added]
    said += [f"proxy_plugins.{name} was added live, and is in the configuration now" for name in sorted(adopted)]
    said += [f"proxy_plugins.{name} has changed: {_differing(before[name], after[name])}" for name in changed]
    said += [f"proxy_plugins.{name} is gone" for name in removed]
    return Change(
        added=[backend_of(after[name]) for name in added],
        changed=[backend_of(after[name]) for name in (*changed, *sorted(adopted))],
        removed=[replace(backend_of(before[name]), configured=True) for name in removed],
        adopted=[backend_of(after[name]) for name in sorted(adopted)],
        said=said,
        moved=moved,
        later=later,
    )


def record(connection: sqlite3.Connection, change: Change) -> None:
    """Prove that nothing needs what is removed, and forget it.

    Raises:
        FailedPrecondition: records refer to one of them.
    """
    for backend in change.removed:
        needed = backendrows.dependents(connection, backend.type, backend.name)
        if needed:
            raise FailedPrecondition(f"proxy_plugins.{backend.name} can't go, it is needed: {needed}")
    for backend in (*change.removed, *change.changed):
        swaprows.forget(connection, backend.type, backend.name)
    for backend in (*change.removed, *change.adopted):
        if backend in change.adopted:
            connection.execute("DELETE FROM backends WHERE name = ?", (backend.name,))
        else:
            backendrows.delete(connection, backend.type, backend.name)


def _differing(old: ProxyPlugin, new: ProxyPlugin) -> str:
    fields = [field for field in _FIELDS if getattr(old, field) != getattr(new, field)]
    return ", ".join(f"{field} is {_shown(getattr(new, field))}" for field in fields)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value or "not set"
    if isinstance(value, dict):
        return ",".join(f"{key}={text}" for key, text in value.items()) or "not set"
    return ",".join(value) if isinstance(value, tuple) and value else "not set"


def _later(old: Config, new: Config, moved: Sequence[str]) -> Iterator[str]:
    for section in SECTIONS:
        if old.section(section) != new.section(section):
            service = _SERVICES.get(section) or daemon(section)
            yield f"[{section}] has changed: {service} takes it over when it is started again"
    if old.access != new.access:
        yield "[access] has changed: metadatad and gatewayd take it over when they are started again"
    kept = [{key: at for key, at in config.services.items() if key not in moved} for config in (old, new)]
    if kept[0] != kept[1] or (old.external ^ new.external) - {*moved}:
        yield "[services] has changed: it is taken over when everything is started again"
