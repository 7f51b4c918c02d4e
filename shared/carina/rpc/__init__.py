"""gRPC between processes: serving, dialling, passing through, and the one codec and error table for all of it."""
