"""`carina up`: every service of a configuration under one supervisor, forked from a parent that has loaded the code.

The supervisor is a plain program without threads or event loop, so that forking it is safe at any time:
a service starts in milliseconds and shares the code's memory with the others.
Services and containers outlive a killed supervisor; the next one replaces them.
"""
