"""The smart client: every service behind its interface, and the work that is composed from them."""

from carina.client.client import Client as Client
