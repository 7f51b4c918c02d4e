"""Kinds of values on the command line."""

import re
from typing import Any, Final

import click

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s|us|ns))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|ns)")


class Duration(click.ParamType[float]):
    """A duration as Go writes it (`1h30m`, `500ms`), in seconds; a bare number counts `unit` seconds each."""

    name = "duration"

    def __init__(self, *, unit: float = 1.0) -> None:
        self._unit = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        if _DURATION.fullmatch(text):
            return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1e9:
            raise click.BadParameter(f"{text!r} is not a duration: expected one such as 90s, 10m or 1h30m", ctx, param)
        return number * self._unit
