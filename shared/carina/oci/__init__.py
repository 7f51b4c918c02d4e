"""The OCI runtime specification: what `config.json` of a bundle says."""
