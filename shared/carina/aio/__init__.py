"""Running on an event loop: the life of a daemon, locks, threads and cancellation."""
