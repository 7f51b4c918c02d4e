"""containerd's filters: which objects a list call or a subscription is to give.

A filter is a comma-separated list of selectors that must all hold; of several filters one must.

    selector  := fieldpath [operator value]            without an operator: the field is there
    fieldpath := field ('.' field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="                    equal, not equal, matches the regular expression
    value     := quoted | anything up to a comma or space
    quoted    := "..." with Go's escapes               after ~= also /.../ and |...|

Regular expressions are RE2's, which takes linear time whatever the expression.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import re2  # type: ignore[import-untyped]

from carina.errors import InvalidArgument

T = TypeVar("T")

Adaptor = Callable[[tuple[str, ...]], str | None]
"""Gives the value of an object's field by its path; None where the object has no such field."""
Match = Callable[[T], bool]
Fields = Mapping[str, "str | Fields | None"]

MAX_LENGTH: Final = 64 * 1024
"""Characters of all filters of a call together."""
MAX_SELECTORS: Final = 1000
"""Selectors of a call, but for filters that compare one field with one value: those are looked up together."""
MAX_PATTERNS: Final = 64
"""Regular expressions of a call."""
MAX_PROGRAM: Final = 10_000
"""Instructions of the automata of all regular expressions of a call."""
_PATTERN_MEMORY: Final = 1 << 20

_SIMPLE_ESCAPES: Final = dict(zip("abfnrtv\\", "\a\b\f\n\r\t\v\\", strict=True))
_DIGITS: Final = {"x": (2, 16), "u": (4, 16), "U": (8, 16)}


class Operator(enum.Enum):
    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


class _Pattern(Protocol):
    @property
    def programsize(self) -> int: ...

    def search(self, text: str) -> object: ...


@dataclass(frozen=True, slots=True)
class Selector:
    path: tuple[str, ...]
    operator: Operator = Operator.PRESENT
    value: str = ""
    pattern: _Pattern | None = None

    def holds(self, adaptor: Adaptor) -> bool:
        found = adaptor(self.path)
        if self.operator is Operator.PRESENT:
            return found is not None
        if self.operator is Operator.EQUAL:
            return found is not None and found == self.value
        if self.operator is Operator.NOT_EQUAL:  # an absent field counts as empty here and for a match
            return (found or "") != self.value
        return self.pattern is not None and self.pattern.search(found or "") is not None


def compile(filters: Sequence[str]) -> Callable[[Adaptor], bool]:
    """A predicate on adaptors; without filters it always holds.

    Raises:
        InvalidArgument: a filter is not valid, and the sentence names the position; or there are too many.
    """
    if sum(len(text) for text in filters) > MAX_LENGTH:
        raise InvalidArgument(f"filters are longer than {MAX_LENGTH} characters together")
    alternatives = [parse(text) for text in filters]
    if not alternatives or any(not selectors for selectors in alternatives):
        return lambda adaptor: True
    wanted: dict[tuple[str, ...], set[str]] = {}
    rest = []
    for selectors in alternatives:
        if len(selectors) == 1 and selectors[0].operator is Operator.EQUAL:
            wanted.setdefault(selectors[0].path, set()).add(selectors[0].value)
        else:
            rest.append(selectors)
    _check_number([one for selectors in rest for one in selectors])

    def holds(adaptor: Adaptor) -> bool:
        return any(adaptor(path) in values for path, values in wanted.items()) or any(
            all(one.holds(adaptor) for one in selectors) for selectors in rest
        )

    return holds


def _check_number(selectors: Sequence[Selector]) -> None:
    """Every object of a list is held against them."""
    if len(selectors) > MAX_SELECTORS:
        raise InvalidArgument(f"filters have {len(selectors)} selectors, more than {MAX_SELECTORS}")
    patterns = [one.pattern for one in selectors if one.pattern is not None]
    if len(patterns) > MAX_PATTERNS:
        raise InvalidArgument(f"filters have {len(patterns)} regular expressions, more than {MAX_PATTERNS}")
    program = sum(pattern.programsize for pattern in patterns)
    if program > MAX_PROGRAM:
        raise InvalidArgument(f"the regular expressions of the filters are too large: {program} of {MAX_PROGRAM} steps")


def matcher(filters: Sequence[str], adaptor_of: Callable[[T], Adaptor]) -> Match[T]:
    """A predicate on objects, given how to read their fields. Raises as `compile` does."""
    if not filters:
        return lambda item: True
    holds = compile(filters)
    return lambda item: holds(adaptor_of(item))


def exact(filters: Sequence[str], field: str) -> list[str] | None:
    """The values of which a field must have one for anything to match; None where the filters leave it open.

    A store looks these up instead of reading everything. Raises as `compile` does.
    """
    values = set()
    for text in filters:
        wanted = [one.value for one in parse(text) if one.path == (field,) and one.operator is Operator.EQUAL]
        if not wanted:
            return None
        values.add(wanted[0])
    return sorted(values) if filters else None


def adaptor(fields: Fields) -> Adaptor:
    """Read fields from nested maps; below a map of labels, the rest of the path joined with dots is the label."""

    def field(path: tuple[str, ...]) -> str | None:
        value = fields.get(path[0]) if path else None
        if value is None or isinstance(value, str):
            return value if len(path) == 1 else None
        found = value.get(".".join(path[1:]))
        return found if isinstance(found, str) else None

    return field


def parse(text: str) -> list[Selector]:
    """The selectors of one filter; none for the empty filter. Raises InvalidArgument."""
    return _Parser(text).selectors() if text else []


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> list[Selector]:
        if "\0" in self._text:
            raise self._error(self._text.index("\0"), "unexpected zero byte")
        result = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._error(self._at, f"unexpected {self._text[self._at]!r}")
            self._at += 1
            result.append(self._selector())
        return result

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._text.startswith(".", self._at):
            self._at += 1
            path.append(self._field())
        if self._at >= len(self._text) or self._text[self._at] == ",":
            return Selector(tuple(path))
        operator = self._operator()
        start = self._at
        value = self._value(any_quotes=operator is Operator.MATCHES)
        pattern = self._regular_expression(value, start) if operator is Operator.MATCHES else None
        return Selector(tuple(path), operator, value, pattern)

    def _field(self) -> str:
        self._skip_space()
        if self._text[self._at : self._at + 1] in {'"', "/", "|"}:
            return self._quoted(any_quotes=False)
        match = re.compile(r"[A-Za-z0-9_]+").match(self._text, self._at)
        if match is None:
            raise self._error(self._at, "expected a field name, quoted where it is not of letters, digits and _")
        self._at = match.end()
        return match[0]

    def _operator(self) -> Operator:
        self._skip_space()
        match = re.compile(r"[=!~]+").match(self._text, self._at)
        if match is None or match[0] not in {"==", "!=", "~="}:
            raise self._error(self._at, "expected one of the operators ==, != and ~=")
        self._at = match.end()
        return Operator(match[0])

    def _value(self, *, any_quotes: bool) -> str:
        self._skip_space()
        first = self._text[self._at : self._at + 1]
        if first in {'"', "/", "|"}:
            return self._quoted(any_quotes=any_quotes)
        match = re.compile(r"[^\s,\0.=!~][^\s,\0]*").match(self._text, self._at)
        if match is None:
            raise self._error(self._at, "expected a value, quoted where it begins with one of . = ! ~")
        self._at = match.end()
        return match[0]

    def _quoted(self, *, any_quotes: bool) -> str:
        start, quote = self._at, self._text[self._at]
        self._at += 1
        result = []
        while True:
            character = self._text[self._at : self._at + 1]
            if character in {"", "\n"}:
                raise self._error(start, "the quoted text has no end")
            self._at += 1
            if character == quote:
                break
            result.append(self._escape(start, quote) if character == "\\" else character)
        if quote != '"' and not any_quotes:
            raise self._error(start, f"{quote} quotes regular expressions only")
        return "".join(result)

    def _escape(self, start: int, quote: str) -> str:
        character = self._text[self._at : self._at + 1]
        self._at += 1
        if character == quote or character in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES.get(character, character)
        length, base = _DIGITS.get(character, (3, 8))
        begin = self._at if base == 16 else self._at - 1
        digits = self._text[begin : begin + length]
        if len(digits) != length or not re.fullmatch(r"[0-7]+" if base == 8 else r"[0-9a-fA-F]+", digits):
            raise self._error(start, f"\\{character} is no escape sequence here")
        self._at = begin + length
        code = int(digits, base)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self._error(start, f"\\{character}{digits} is no character")
        return chr(code)

    def _regular_expression(self, value: str, start: int) -> _Pattern:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _PATTERN_MEMORY
        options.never_capture = True  # thousands of groups would each be looked for
        try:
            pattern: _Pattern = re2.compile(value, options)
        except re2.error as error:
            reason = error.args[0] if error.args else ""
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise self._error(start, f"{value!r} is no regular expression: {reason}") from None
        return pattern

    def _skip_space(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1

    def _error(self, position: int, reason: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self._text[:200]!r} is not valid at position {position}: {reason}")
