"""Rows -> JSON, JSON lines, CSV or a table, on stdout. Imports little: `mpload sql` starts as fast as DuckDB does."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TABLE_ROWS = 1000
"""Rows that a table shows at most: its widths have to be known before its first line."""

_PIPED_TABLE_WIDTH = 160
_BETWEEN_COLUMNS = 3
_FOLDED_WIDTH = 25
"""No narrower is a column folded: a moment takes as much."""

Encoder = Callable[[Any], str]

_string = json.JSONEncoder(ensure_ascii=False).encode


class NobodyReadsError(Exception):
    """Whoever read stdout, `head` for one, has read enough."""


class Format(StrEnum):
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TABLE = "table"


def default_format() -> Format:
    return Format.TABLE if sys.stdout.isatty() else Format.JSON


def write_rows(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], format_: Format, types: Sequence[Any] | None = None
) -> bool:
    """Write all `rows`, as they come; `types` are DuckDB's. False where a table left some out."""
    columns = distinct(columns)
    encoders = [json_encoder(type_) for type_ in types] if types is not None else [json_text] * len(columns)
    if format_ is Format.TABLE:
        return _write_table(columns, rows, encoders)
    if format_ is Format.CSV:
        _write(_csv_lines(columns, rows, encoders))
    elif format_ is Format.JSONL:
        _write(f"{line}\n" for line in _json_lines(columns, rows, encoders))
    else:
        _write(_json_array(_json_lines(columns, rows, encoders)))
    return True


def write_records(records: Sequence[Mapping[str, Any]], format_: Format) -> None:
    """Rows that all have the keys of the first one."""
    columns = list(records[0]) if records else []
    write_rows(columns, [list(record.values()) for record in records], format_)


def write_record(record: Mapping[str, Any], format_: Format) -> None:
    """One thing: a JSON object, a CSV row, or a table of its names and values."""
    if format_ in (Format.JSON, Format.JSONL):
        _write([json_text(record), "\n"])
    elif format_ is Format.CSV:
        write_records([record], format_)
    else:
        _write_table(["", ""], list(record.items()), [json_text, json_text], header=False)


def write_value(value: Any, type_: Any) -> None:
    """A value without quotes; NULL is an empty line."""
    _write([cell_text(value, json_encoder(type_)), "\n"])


def write_text(text: str) -> None:
    _write([text])


def distinct(names: Sequence[str]) -> list[str]:
    """`names` with a number after each that was there before: `a`, `a_2`."""
    taken = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        new, number = name, 2
        while new in seen or (new != name and new in taken):
            new, number = f"{name}_{number}", number + 1
        seen.add(new)
        result.append(new)
    return result


# --- values


def json_text(value: Any) -> str:
    """Any value as JSON: every digit of a number, moments as ISO 8601, bytes as base64, what is no number as null."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "null"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if is_dataclass(value) and not isinstance(value, type):
        return json_text({field.name: getattr(value, field.name) for field in fields(value)})
    return _string(_text(value))


def json_encoder(type_: Any) -> Encoder:
    """How values of one of DuckDB's types become JSON. JSON inside it is passed on digit for digit."""
    name = str(type_)
    if name == "JSON":
        return _json_fragment
    if name == "BIGNUM":  # comes as text
        return lambda value: "null" if value is None else str(value)
    if name == "FLOAT":
        return lambda value: "null" if value is None else _float32_text(value, "null")
    if not ("JSON" in name or "FLOAT" in name or "BIGNUM" in name):
        return json_text
    if type_.id in ("list", "array"):
        item = json_encoder(type_.children[0][1])
        return lambda value: "null" if value is None else "[" + ", ".join(map(item, value)) + "]"
    if type_.id == "struct":
        encoders = {key: json_encoder(child) for key, child in type_.children}
        return lambda value: "null" if value is None else _object((key, encoders[key], value[key]) for key in value)
    if type_.id == "map":
        item = json_encoder(type_.children[1][1])
        return lambda value: "null" if value is None else _object((key, item, value[key]) for key in value)
    return json_text


def _object(items: Iterable[tuple[Any, Encoder, Any]]) -> str:
    return "{" + ", ".join(f"{_key(key)}: {encode(value)}" for key, encode, value in items) + "}"


def _key(key: Any) -> str:
    return _string(key if isinstance(key, str) else cell_text(key))


def _json_fragment(text: str | None) -> str:
    """JSON text as it is; as a string where it is not JSON after all."""
    if text is None:
        return "null"
    if not is_json(text):
        return _string(text)
    # In valid JSON a line can only end between two values.
    return text.replace("\r", " ").replace("\n", " ") if "\n" in text or "\r" in text else text


def is_json(text: str) -> bool:
    try:
        _CHECKER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


# Numbers are not read: Python takes no integers of more than 4300 digits.
_CHECKER = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse)


def _float32_text(value: float, otherwise: str) -> str:
    """The shortest text that is this 32-bit float: 0.1, not 0.10000000149011612."""
    if not math.isfinite(value):
        return otherwise
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if struct.unpack("f", struct.pack("f", float(text)))[0] == value:
            break
    return repr(float(text))


def cell_text(value: Any, encode: Encoder = json_text) -> str:
    """A value as a cell of CSV or a table; NULL is empty. `encode` is for what only its type can tell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return encode(value) if math.isfinite(value) else repr(value)
    if isinstance(value, (bool, int, Decimal, Mapping, list, tuple)) or is_dataclass(value):
        return encode(value)
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _interval(value)
    if isinstance(value, (bytes, bytearray)):
        from base64 import b64encode

        return b64encode(value).decode("ascii")
    return str(value)


def _interval(length: timedelta) -> str:
    """As DuckDB reads it back; Python's own text of it, `-1 day, 23:59:59`, it does not."""
    sign, length = ("-", -length) if length < timedelta() else ("", length)
    clock = timedelta(seconds=length.seconds, microseconds=length.microseconds)
    days = f"{sign}{length.days} days " if length.days else ""
    return f"{days}{sign}{str(clock).zfill(8) if clock.microseconds == 0 else str(clock).zfill(15)}"


# --- forms


def _json_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]], encoders: Sequence[Encoder]) -> Iterator[str]:
    keys = [f"{_string(column)}: " for column in columns]
    for row in rows:
        values = zip(keys, encoders, row, strict=True)
        yield "{" + ", ".join([key + encode(value) for key, encode, value in values]) + "}"


def _json_array(lines: Iterable[str]) -> Iterator[str]:
    before = "["
    for line in lines:
        yield before + line
        before = ",\n "
    yield "[]\n" if before == "[" else "]\n"


def _csv_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]], encoders: Sequence[Encoder]) -> Iterator[str]:
    """RFC 4180: lines end with CRLF. NULL is an empty field, an empty text is ""; of one column, NULL is "", too."""
    if not columns:
        return
    yield ",".join(map(_csv_field, columns)) + "\r\n"
    for row in rows:
        cells = zip(row, encoders, strict=True)
        line = ",".join(["" if v is None else _csv_field(cell_text(v, encode)) for v, encode in cells])
        yield (line or '""') + "\r\n"  # an empty line is no row to many readers


# Also what readers that guess, as DuckDB's does, take for a separator, a quote or a comment.
_QUOTED = re.compile(r"""[,"\r\n;|\t'#\\]|^ | $|^$""")


def _csv_field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _write_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], encoders: Sequence[Encoder], header: bool = True
) -> bool:
    """Numbers to the right, long text folded; a list for each row where the columns do not fit side by side."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    rows = iter(rows)
    shown = list(islice(rows, TABLE_ROWS))
    complete = next(rows, None) is None
    cells = [[_visible(cell_text(*cell)) for cell in zip(row, encoders, strict=True)] for row in shown]
    titles = [_visible(column) for column in columns]
    width = None if sys.stdout.isatty() else _PIPED_TABLE_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False, emoji=False, markup=False)
    widest = [
        max(cell_len(line) for text in column for line in text.splitlines() or [""])
        for column in zip(titles, *cells, strict=True)
    ]
    least = sum(min(width, _FOLDED_WIDTH) + _BETWEEN_COLUMNS for width in widest)
    if header and cells and least > console.width:
        tables = [_name_value_table(zip(titles, row, strict=True), max(map(cell_len, titles))) for row in cells]
        parts: list[RenderableType] = []
        for number, table in enumerate(tables, 1):
            parts += [Text(f"row {number}", style="bold"), table]
    elif header:
        parts = [_wide_table(titles, cells, widest, [_is_numeric(row[n] for row in shown) for n in range(len(titles))])]
    else:
        parts = [_name_value_table(cells, widest[0])]
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    _write(f"{line.rstrip()}\n" for line in capture.get().splitlines())
    return complete


def _wide_table(
    titles: Sequence[str], cells: Sequence[Sequence[str]], widest: Sequence[int], numeric: Sequence[bool]
) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, width, right in zip(titles, widest, numeric, strict=True):
        least = min(width, _FOLDED_WIDTH)
        table.add_column(Text(title), justify="right" if right else "left", overflow="fold", min_width=least)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _name_value_table(pairs: Iterable[Sequence[str]], name_width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=min(name_width, _FOLDED_WIDTH), overflow="fold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    return table


def _is_numeric(values: Iterable[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, (int, float, Decimal)) and not isinstance(v, bool) for v in known)


def _visible(text: str) -> str:
    """Without what would steer a terminal, and tabs, whose width is not known."""
    if text.isprintable():
        return text
    text = text.expandtabs()
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


def _write(pieces: Iterable[str]) -> None:
    """In pieces large enough that the cost of a write does not show."""
    pieces = iter(pieces)
    while block := "".join(islice(pieces, 512)):
        try:
            sys.stdout.write(block)
            sys.stdout.flush()
        except BrokenPipeError:
            # Typer would take it for an error.
            raise NobodyReadsError from None
