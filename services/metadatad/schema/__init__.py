"""Numbered migrations of the metadata database, applied by `carina.sqlite`."""
