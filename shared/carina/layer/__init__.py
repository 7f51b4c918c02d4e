"""Layers: tar streams of changes, applied to a tree or made from two.

    compression.py  bytes of a blob to bytes of a tar stream, and back
    tar.py          tar stream to entries: a reader of our own, because Python's `tarfile` trusts what it reads
    apply.py        entries to a tree, through directory descriptors only
    compare.py      two trees to changes;  writer.py  changes to a tar stream
    upperdir.py     where the changes are, if an overlay's upper directory tells
    worker.py       the process that does either, confined to the tree;  broker.py  its trusted parent
    nursery.py      the process that workers are forked from;  workers.py  starts both
    process.py      layers by workers: what other packages call

Everything but `process` and `workers` runs in the worker and stays cheap to import.
"""

from typing import Final, NamedTuple

IMPLIED: Final = "carina.layer.implied-directories"
"""Annotation of what `apply` returns: the directories, as a list in JSON, that were made though no entry describes them
and nothing below told how.

Only where a layer is applied in overlay form without lower directories, to be put on its parent later:
`carina.layer.process.inherit` does then what could not be done before.
"""


class Limits(NamedTuple):
    """What one layer may cost. A limit of 0 is none."""

    bytes: int = 1 << 40
    """Bytes of the uncompressed stream."""
    entries: int = 20_000_000
    """Entries of the archive."""
    ratio: int = 500
    """Uncompressed bytes for each compressed one, once the layer is larger than `ratio_from`."""
    ratio_from: int = 8 << 30
    memory: int = 1 << 30
    """Bytes of memory that the process which applies it may take."""
