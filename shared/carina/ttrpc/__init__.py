"""ttrpc: the protocol that shims speak, calls multiplexed over one unix socket.

A frame is a header of 10 bytes (length, stream, kind, flags) and a message of at most 4 MiB.
A client numbers its calls 1, 3, 5, ...; each has one request frame and one response frame with the same number.
Only unary calls are spoken here: that is all the Task and Events services have.
"""
