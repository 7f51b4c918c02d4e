"""snapshotd: one snapshotter per process, on a directory of its own."""
