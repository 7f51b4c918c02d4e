"""contentd: the only process that touches the directory of blobs and ingests."""
