"""JSON text taken apart without changing a byte of its values, and repaired where DuckDB's JSON type refuses it."""

from __future__ import annotations

import re
from json import JSONDecoder

_BLANKS = re.compile(r"[ \t\n\r]*")
# Numbers are kept as their text: only the end of a value is wanted, and int() refuses over 4300 digits.
_decode = JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str).raw_decode

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_ESCAPE_OR_CONTROL = re.compile(
    r"(?P<pair>\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    r"|(?P<escape>\\.)"
    r"|(?P<control>[\x00-\x1f])",
    re.DOTALL,
)


def members(text: str) -> list[tuple[str, str]]:
    """Name and raw value of each member of the JSON object `text`, in order, repeated names included.

    Raises ValueError where `text` is not one JSON object, RecursionError where it nests too deep.
    """
    found: list[tuple[str, str]] = []
    at = _after(text, 0, "{")
    if text.startswith("}", at):
        _expect_end(text, at + 1)
        return found
    while True:
        if not text.startswith('"', at):
            raise ValueError(f"a name expected at character {at + 1}")
        name, at = _decode(text, at)
        at = _after(text, at, ":")
        _, end = _decode(text, at)
        found.append((name, text[at:end]))
        at = _skip(text, end)
        if text.startswith("}", at):
            _expect_end(text, at + 1)
            return found
        at = _after(text, at, ",")


def elements(text: str) -> list[str]:
    """The raw values of the JSON array `text`. Raises ValueError where it is not one JSON array."""
    found: list[str] = []
    at = _after(text, 0, "[")
    if text.startswith("]", at):
        _expect_end(text, at + 1)
        return found
    while True:
        _, end = _decode(text, at)
        found.append(text[at:end])
        at = _skip(text, end)
        if text.startswith("]", at):
            _expect_end(text, at + 1)
            return found
        at = _after(text, at, ",")


def first_values(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The first value of each name: what DuckDB's JSON functions, too, read of a repeated name."""
    values: dict[str, str] = {}
    for name, value in pairs:
        values.setdefault(name, value)
    return values


def as_text(value: str | None) -> str | None:
    """A raw JSON value as text: a string without its quotes, null as None, anything else as it was written."""
    if value is None or value == "null":
        return None
    if value.startswith('"'):
        return str(_decode(value)[0])
    return value


def repaired(text: str) -> str:
    """`text` with what DuckDB's JSON type refuses inside strings replaced, and nothing else changed.

    A lone surrogate escape becomes `\\ufffd`; a raw control character becomes its `\\u00xx` escape.
    """
    return _STRING.sub(lambda string: _ESCAPE_OR_CONTROL.sub(_accepted, string[0]), text)


def _accepted(found: re.Match[str]) -> str:
    if found["lone"]:
        return "\\ufffd"
    if found["control"]:
        return f"\\u{ord(found['control']):04x}"
    return found[0]


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _after(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"`{mark}` expected at character {at + 1}")
    return _skip(text, at + 1)


def _expect_end(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        raise ValueError(f"nothing more expected at character {at + 1}")
