"""snapshotd"""
