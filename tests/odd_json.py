"""Hypothesis strategies for JSON text as it may come, odd in every way that is still JSON, and a reader to judge by."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st


class Number(str):
    """A number by its text, so that no digit is lost and `1` is not `1.0`."""


class Object(tuple[tuple[str, Any], ...]):
    """An object with its members in order, repeated names included."""


def read(text: str) -> Any:
    """JSON value by value: objects as `Object`, numbers as `Number`. Raises ValueError."""
    return json.loads(text, strict=False, object_pairs_hook=Object, parse_int=Number, parse_float=Number)


_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(value: Any) -> Any:
    """`value` with U+FFFD for every half of a pair, in names too."""
    if isinstance(value, Object):
        return Object((without_surrogates(name), without_surrogates(item)) for name, item in value)
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    return _SURROGATE.sub("\ufffd", value) if type(value) is str else value


ODD_NUMBERS = (
    "0", "-0", "-0.0", "0.0", "1", "-1", "1.50", "1e3", "1E+3", "1e-3", "1e400", "-1e400", "5e-324", "0.1",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809",
    "123456789012345678901234567890", "12345678901234567890.0123456789", "99999999999999999", "1709600000000",
)  # fmt: skip

STRING_PIECES = (
    "\\u0000", "\\n", "\\t", "\\/", '\\"', "\\\\", "\\u00e9", "\\u2028", "\\ud83d\\ude00", "\\uD83D\\uDE00",
    "\\\\ud800", "\\\\\\\\udc00", "\u2028", "\u2029", "\u0085", "\u007f", "\ufffd", "\U0001f600", "\u65e5", "'",
    "{", "}", "[", ",", ":", "$", ".", "%", '\\",\\"properties\\":{', "null", "1e5",
)  # fmt: skip
BROKEN_PIECES = ("\\ud800", "\\udc00", "\\uD83D", "\\ude00\\ud83d", "\\ud800\\\\", "\r", "\t", "\x00", "\x1f")
"""Of JSON by its grammar, or nearly: halves of surrogate pairs, raw control characters."""

_PLAIN_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='"\\'), max_size=8)

numbers = st.sampled_from(ODD_NUMBERS) | st.from_regex(
    r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,12})?([eE][-+]?[0-9]{1,3})?", fullmatch=True
)


def strings(*, broken: bool) -> st.SearchStrategy[str]:
    """The text of a JSON string, quotes included."""
    pieces = STRING_PIECES + BROKEN_PIECES if broken else STRING_PIECES
    return st.lists(_PLAIN_TEXT | st.sampled_from(pieces), max_size=4).map(lambda found: '"' + "".join(found) + '"')


ODD_NAMES = (
    '"event"', '"time_"', '"_dlt_id"', '"properties"', '"extra"', '"Plan"', '"plan"', '"$plan"', '"PLAN"', '""', '" "',
    '"two words"', '"a.b"', '"a..b"', '"$"', '"\\""', '"\\\\"', '"\U0001f600"', '"ti\\u006De"', '"Time"', '"$.time"',
)  # fmt: skip

blanks = st.sampled_from(["", "", "", " ", "  ", "\t", "\r"])


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str], *, broken: bool, max_size: int = 4) -> str:
    names = st.sampled_from(ODD_NAMES) | strings(broken=broken)
    members = draw(st.lists(st.tuples(names, blanks, values, blanks), max_size=max_size))
    return "{" + ",".join(f"{name}{one}:{two}{value}" for name, one, value, two in members) + "}"


def values(*, broken: bool) -> st.SearchStrategy[str]:
    """The text of any JSON value."""
    return st.recursive(
        st.sampled_from(["null", "true", "false"]) | numbers | strings(broken=broken),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]") | objects(inner, broken=broken)
        ),
        max_leaves=6,
    )


LAX = (
    "NaN", "nan", "-nan", "Infinity", "-INFINITY", "inf", "-Inf", "0", "-0.5e3", "true", "null", '"\\u00e9"', '""',
    "x",
)  # fmt: skip
MARKS = (
    "{", "}", "[", "]", ",", ":", " ", '"', "\\", "-", "+", "1", "e5", ".", '"a":', "n", "\u0131nf", "\x01", "\x0b",
)  # fmt: skip

lax_values = st.recursive(
    st.sampled_from(LAX),
    lambda inner: (
        st.builds("[{}{}]".format, st.lists(inner, max_size=3).map(",".join), st.sampled_from(["", "", ",", " , "]))
        | st.builds('{{"a" : {}{}}}'.format, inner, st.sampled_from(["", "", ",", ",,"]))
    ),
    max_leaves=6,
)


@st.composite
def lax_texts(draw: st.DrawFn, opened: str) -> str:
    """An object or an array that DuckDB takes for JSON, or is one mark away from that."""
    text = draw(lax_values.map('{{"a":{}}}'.format if opened == "{" else "[{}]".format))
    at = draw(st.integers(1, len(text) - 1))
    mark = draw(st.sampled_from(["", *MARKS]))
    return text[:at] + mark + text[at + draw(st.integers(0, 1)) * len(mark) :]
