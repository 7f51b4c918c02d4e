"""A mount as snapshotters return it: an instruction, not an act (mount(2))."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One call of mount(2). Several in a row are made one over the other."""

    type: str
    """File system type, or `bind`."""
    source: str
    target: str = ""
    """Sub-path of the mount point; empty for the mount point itself."""
    options: tuple[str, ...] = ()
    """As in fstab(5): flags and file system options."""
