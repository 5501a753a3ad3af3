"""JSON text taken apart without changing a byte of its values, and repaired where DuckDB's JSON type refuses it.

Read as DuckDB (1.5) reads it, so that no text is JSON to one of them only: a comma may stand behind the last item, and
`NaN`, `Infinity` and `inf` in any case, with a sign or without, are values; nesting may be as deep as it likes.
"""

from __future__ import annotations

import re
from json import JSONDecoder
from typing import Self

_BLANKS = r"[ \t\n\r]*+"
_match_blanks = re.compile(_BLANKS).match
_match_mark = {mark: re.compile(_BLANKS + re.escape(mark) + _BLANKS).match for mark in "{[:,"}
# Numbers are kept as their text: only the end of a value is wanted, and int() refuses over 4300 digits.
_decode = JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str).raw_decode

_CLOSING = {"[": "]", "{": "}"}
_NAME = r'"(?:[^"\\]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?"
_match_name = re.compile(_NAME).match
_match_start = re.compile(rf"(?P<opened>[\[{{])|{_NAME}|{_NUMBER}|true|false|null|-?(?ai:nan|inf(?:inity)?)").match

is_number = re.compile(_NUMBER).fullmatch
"""Whether a text is a number as JSON writes it."""

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_CONTROL = re.compile(r"\\.|(?P<control>[\x00-\x1f])", re.DOTALL)
_ESCAPE = re.compile(
    r"\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    r"|\\.",
    re.DOTALL,
)


class ExactFloat(float):
    """A number of JSON that still has its text, which may have more digits than a float holds."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


def members(text: str) -> list[tuple[str, str]]:
    """Name and raw value of each member of the JSON object `text`, in order, repeated names included.

    Raises ValueError where `text` is not one JSON object.
    """
    found: list[tuple[str, str]] = []
    at = _after(text, 0, "{")
    while not text.startswith("}", at):
        if not text.startswith('"', at):
            raise ValueError(f"a name expected at character {at + 1}")
        name, at = _decode(text, at)
        at = _after(text, at, ":")
        end = _end(text, at)
        found.append((name, text[at:end]))
        at = _next_item(text, end, "}")
    _expect_end(text, at + 1)
    return found


def elements(text: str) -> list[str]:
    """The raw values of the JSON array `text`. Raises ValueError where it is not one JSON array."""
    found: list[str] = []
    at = _after(text, 0, "[")
    while not text.startswith("]", at):
        end = _end(text, at)
        found.append(text[at:end])
        at = _next_item(text, end, "]")
    _expect_end(text, at + 1)
    return found


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
    if "\\u" in text:  # a backslash stands in strings only
        text = _ESCAPE.sub(lambda escape: "\\ufffd" if escape["lone"] else escape[0], text)
    if not text.isprintable():  # as no control character is
        text = _STRING.sub(lambda string: _CONTROL.sub(_escaped, string[0]), text)
    return text


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found['control']):04x}" if found["control"] else found[0]


def _end(text: str, at: int) -> int:
    """Where the value that starts at `at` ends. Raises ValueError where there is none."""
    try:
        return _decode(text, at)[1]
    except (ValueError, RecursionError):  # no JSON for Python; it may be for DuckDB
        pass
    closing: list[str] = []
    while True:
        start = _match_start(text, at)
        if start is None:
            raise ValueError(f"a value expected at character {at + 1}")
        at = start.end()
        if opened := start["opened"]:
            closing.append(_CLOSING[opened])
            at = _skip(text, at)
        else:
            at = _next_item(text, at, closing[-1]) if closing else at
        while closing and text.startswith(closing[-1], at):
            closing.pop()
            at = _next_item(text, at + 1, closing[-1]) if closing else at + 1
        if not closing:
            return at
        if closing[-1] == "}":
            name = _match_name(text, at)
            if name is None:
                raise ValueError(f"a name expected at character {at + 1}")
            at = _after(text, name.end(), ":")


def _next_item(text: str, at: int, closing: str) -> int:
    """Behind a value that ends at `at`: where the next one starts, or the `closing` mark is."""
    after = _skip(text, at)
    return after if text.startswith(closing, after) else _after(text, at, ",")


def _skip(text: str, at: int) -> int:
    blanks = _match_blanks(text, at)
    return blanks.end() if blanks else at


def _after(text: str, at: int, mark: str) -> int:
    found = _match_mark[mark](text, at)
    if found is None:
        raise ValueError(f"`{mark}` expected at character {_skip(text, at) + 1}")
    return found.end()


def _expect_end(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        raise ValueError(f"nothing more expected at character {at + 1}")
