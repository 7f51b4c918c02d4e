"""The library of the constellation: one interface per noun, and what every service needs to serve or call it."""

__version__ = "0.1.0"
