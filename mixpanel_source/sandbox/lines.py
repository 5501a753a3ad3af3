"""The text of an event line: made compact, and its time restated, with every other byte left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from json import JSONDecoder

MS_FROM = 100_000_000_000
"""A time above this is in milliseconds: in seconds it would lie in the year 5138."""

DAY_MS = 86_400_000

_EPOCH = date(1970, 1, 1)
# A string never holds a raw newline: so a stray quote in a broken line cannot swallow the lines after it.
_STRINGS = re.compile(rb'("[^"\\\n]*(?:\\.[^"\\\n]*)*")')
_USUAL_TIME = re.compile(rb'\{"event":"[^"\\]*","properties":\{"time":(-?[0-9]{1,18})(?=[,}])')
_INTEGER = re.compile(r"-?[0-9]{1,18}(?![0-9.eE])")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = JSONDecoder(strict=False)


def compact(text: bytes) -> bytes:
    """JSON lines without the white space around their tokens; newlines stay, as does everything inside strings."""
    parts = _STRINGS.split(text)
    parts[::2] = [between.translate(None, b" \t\r") for between in parts[::2]]
    return b"".join(parts)


def compact_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of blocks of whole lines, each compact and without its newline; empty lines are left out."""
    for block in blocks:
        yield from (line for line in compact(block).split(b"\n") if line)


def dump(value: object) -> bytes:
    """JSON as Mixpanel writes it: compact, and plain UTF-8 unless a lone surrogate forbids that."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def time_ms(line: bytes) -> int | None:
    """properties.time in milliseconds, whichever unit it is given in; None if the line holds no whole number there."""
    place = _time_place(line)
    return None if place is None else _as_ms(int(line[place[0] : place[1]]))


def restated(line: bytes, in_ms: bool, shift_ms: Callable[[int], int]) -> bytes:
    """The line with properties.time in the unit asked for, moved by what shift_ms says for that time.

    A line in which no time is found, or one that is not a whole number, is left as it is.
    """
    place = _time_place(line)
    if place is None:
        return line
    start, end = place
    value = int(line[start:end])
    true_ms = _as_ms(value)
    served_ms = true_ms + shift_ms(true_ms)
    served = served_ms if in_ms else served_ms // 1000
    return line if served == value else b"%b%d%b" % (line[:start], served, line[end:])


def day_of(ms: int) -> date | None:
    """The UTC day of a time in milliseconds; None outside the years 1 to 9999."""
    try:
        return _EPOCH + timedelta(days=ms // DAY_MS)
    except OverflowError:
        return None


def _as_ms(value: int) -> int:
    return value if abs(value) > MS_FROM else value * 1000


def _time_place(line: bytes) -> tuple[int, int] | None:
    """Where the digits of properties.time stand."""
    usual = _USUAL_TIME.match(line)
    if usual is not None and line.count(b'"time":') == 1:
        return usual.span(1)
    # surrogateescape gives every byte that is not UTF-8 a character of its own, and gives it back on encoding.
    text = line.decode(errors="surrogateescape")
    try:
        properties = _value_place(text, 0, "properties")
        time = None if properties is None else _value_place(text, properties, "time")
    except (ValueError, IndexError, RecursionError):
        return None
    number = None if time is None else _INTEGER.match(text, time)
    if number is None:
        return None
    return _bytes_before(text, number.start()), _bytes_before(text, number.end())


def _value_place(text: str, start: int, wanted: str) -> int | None:
    """Where the value of a key begins in the object at `start`: of the last such key, the one that readers keep."""
    found = None
    at = _after_space(text, start)
    if text[at] != "{":
        return None
    at = _after_space(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, at)
        if text[at] != ":":
            raise ValueError("no colon")
        at = _after_space(text, at + 1)
        if key == wanted:
            found = at
        _, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, at)
        if text[at] == ",":
            at = _after_space(text, at + 1)
        elif text[at] != "}":
            raise ValueError("no comma")
    return found


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _bytes_before(text: str, at: int) -> int:
    return len(text[:at].encode(errors="surrogateescape"))
