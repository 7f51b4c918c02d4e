"""What asyncio lacks: keyed locks, bounded threads, deferred cancellation, the shape of a daemon."""
