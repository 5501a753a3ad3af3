"""A block of export lines -> an Arrow table of the fixed schema, with every odd line accounted for.

Two ways lead to the same rows. The quick one takes lines of exactly the shape Mixpanel writes,
`{"event":"NAME","properties":{...}}`, cuts them by position and lets DuckDB look up a few properties. Any line
that is not provably plain goes the careful one: through Python, alone.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mixpanel_source.raw_json import as_text, first_values, is_number, members, repaired
from mixpanel_source.windows import Window

SCHEMA = pa.schema(
    [
        ("event_name", pa.string()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("event_date", pa.date32()),
        ("distinct_id", pa.string()),
        ("insert_id", pa.string()),
        ("event_id", pa.string()),
        ("device_id", pa.string()),
        ("user_id", pa.string()),
        ("processed_at", pa.timestamp("us", "UTC")),
        ("properties", pa.string()),
        ("extra", pa.string()),
    ]
)
"""The columns of `events`, always all of them in this order: dlt locks a file's schema at its first table."""

MS_PER_DAY = 86_400_000
_MS_FROM = 100_000_000_000
"""A `time` above this is milliseconds, below it seconds: 1e11 s is the year 5138, 1e11 ms is 1973."""
_EPOCH = date(1970, 1, 1)
_USABLE_MS = range(-62_135_596_800_000, 253_402_300_800_000)
"""Years 1 to 9999: what Python, Arrow and DuckDB can all hold."""

_BEFORE_NAME = b'{"event":"'
_AFTER_NAME = b'","properties":{'

_EVENT_ID = """md5(concat(
    time_key, ':', strlen(event_name), ':', event_name, ':',
    coalesce(strlen(distinct_id)::varchar, '-'), ':', distinct_id,
    case when coalesce(insert_id, '') = '' then ':p:' || properties else ':i:' || insert_id end))"""
"""Lengths stand before the names, so that no two different events spell the same text."""

_PROPERTIES = (
    "['$.time', '$.distinct_id', '$.\"$insert_id\"', '$.mp_processing_time_ms', '$.\"$device_id\"', '$.\"$user_id\"']"
)

_REWRITTEN = r"'^(-?[0-9]+([.][0-9]+([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)$|-?0$|[\[{])'"


def _rewritten(column: str) -> str:
    """SQL: whether DuckDB may have written this value anew, as it does with numbers (1.50 -> 1.5, -0 -> 0) and lists.

    Few have to be matched: those that start like one of them and, as a number, are no longer than a double is. What
    follows a bracket there is ASCII.
    """
    return f"""case when {column} between '-' and ':' and strlen({column}) <= 25
        or {column} between '[' and '[~' or {column} between '{{' and '{{~'
        then regexp_matches({column}, {_REWRITTEN}) else false end"""


# A plain time has 13 digits: milliseconds from 2001 to 2286. DuckDB's cast takes spaces, signs and exponents too.
_PLAIN_SQL = f"""
select event_name, ms, distinct_id, insert_id, device_id, user_id, processed_ms, {_EVENT_ID} as event_id,
    coalesce(
        ms::varchar = time_key and ms between $first_ms and $last_ms and ms >= 1000000000000
        and (processed_text is null or processed_ms::varchar = processed_text
            and processed_ms between 1000000000000 and 9999999999999)
        and not {_rewritten("distinct_id")} and not {_rewritten("insert_id")}
        and not {_rewritten("device_id")} and not {_rewritten("user_id")}, false) as plain
from (
    select event_name, properties, found[1] as time_key, try_cast(found[1] as bigint) as ms,
        found[2] as distinct_id, found[3] as insert_id, found[4] as processed_text,
        try_cast(found[4] as bigint) as processed_ms, found[5] as device_id, found[6] as user_id
    from (select event_name, properties, json_extract_string(properties, {_PROPERTIES}) as found from block))
"""

_CAREFUL_SQL = f"""
select *, {_EVENT_ID} as event_id, json_valid(properties) and coalesce(json_valid(extra), true) as valid from rows
"""


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """A line that could not be read as it is, with its place in the window's export.

    `loaded` tells whether it became a row all the same, repaired.
    """

    line_number: int
    reason: str
    raw: bytes
    loaded: bool


REJECTED_SCHEMA = pa.schema(
    [("line_number", pa.int64()), ("reason", pa.string()), ("loaded", pa.bool_()), ("raw", pa.binary())]
)


def rejected_table(lines: Sequence[RejectedLine]) -> pa.Table:
    columns = [[getattr(line, name) for line in lines] for name in REJECTED_SCHEMA.names]
    return pa.table(columns, schema=REJECTED_SCHEMA)


@dataclass
class ParsedBlock:
    """The rows of one block and what was odd about it.

    `strays` counts the rows whose `time` does not say which day of the window they belong to.
    """

    rows: pa.Table
    lines: int
    rejected: list[RejectedLine] = field(default_factory=list)
    strays: int = 0


@dataclass(frozen=True)
class _CarefulRow:
    line_number: int
    event_name: str
    ms: int | None
    time_key: str
    distinct_id: str | None
    insert_id: str | None
    device_id: str | None
    user_id: str | None
    processed_ms: int | None
    properties: str
    extra: str | None
    stray: bool
    repair: str | None
    raw: bytes


def new_connection() -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory, to read JSON with."""
    return duckdb.connect(config={"threads": 1})


class EventParser:
    """Turns the blocks of one window's export into tables. Used by one thread at a time.

    `local_zone` is the project's zone where its exported `time` is wall clock (projects made before 2023),
    None where it is a true UTC epoch. Of a doubled hour the first is taken; a time in a missing hour counts
    from before the clocks changed (PEP 495, fold=0). `connection`, of `new_connection`, can serve many windows.
    """

    def __init__(
        self, window: Window, local_zone: ZoneInfo | None = None, connection: duckdb.DuckDBPyConnection | None = None
    ) -> None:
        self._window = window
        self._local_zone = local_zone
        self._first_ms = (window.first - _EPOCH).days * MS_PER_DAY
        self._last_ms = ((window.last - _EPOCH).days + 1) * MS_PER_DAY - 1
        self._offset_ms: dict[int, int] = {}
        self._is_own = connection is None
        self._duckdb = connection or new_connection()
        self._lines_read = 0

    def close(self) -> None:
        if self._is_own:
            self._duckdb.close()

    def parse(self, block: bytes) -> ParsedBlock:
        """The rows of `block`: whole lines, each with its newline. Blocks are given in the order of the export."""
        lines = _lines(block)
        shaped = _shaped(block, lines)
        head = self._look_up(shaped)
        if head is None:  # some line is not JSON; find out which
            shaped = shaped.where(self._valid(shaped))
            head = self._look_up(shaped)
            if head is None:
                raise AssertionError("DuckDB refuses JSON that it called valid")
        plain = head.column("plain").to_numpy()
        if not plain.all():
            head, shaped = head.filter(pa.array(plain)), shaped.where(plain)
        properties = shaped.properties.cast(pa.string())
        rows = self._table(head, properties, pa.nulls(len(head), pa.string()))
        parsed = ParsedBlock(rows, len(lines.starts))
        if len(shaped.numbers) < len(lines.starts):
            odd = np.setdiff1d(np.arange(len(lines.starts)), shaped.numbers, assume_unique=True)
            self._parse_carefully(block, lines, odd.tolist(), parsed)
        self._lines_read += len(lines.starts)
        return parsed

    def _look_up(self, shaped: _ShapedLines) -> pa.Table | None:
        """What DuckDB finds in the properties, line by line; None where those of some line are not JSON."""
        block = pa.table({"event_name": shaped.names, "properties": shaped.properties})
        self._duckdb.register("block", block)
        bounds = {"first_ms": self._first_ms, "last_ms": self._last_ms}
        try:
            return self._duckdb.execute(_PLAIN_SQL, bounds).to_arrow_table()
        # DuckDB quotes the start of the line in its message; cut inside a character, it reaches Python as the latter.
        except (duckdb.InvalidInputException, UnicodeDecodeError):
            return None
        finally:
            self._duckdb.unregister("block")

    def _valid(self, shaped: _ShapedLines) -> npt.NDArray[np.bool_]:
        self._duckdb.register("block", pa.table({"properties": shaped.properties}))
        try:
            table = self._duckdb.execute("select json_valid(properties) as valid from block").to_arrow_table()
        finally:
            self._duckdb.unregister("block")
        valid: npt.NDArray[np.bool_] = table.column("valid").to_numpy()
        return valid

    def _parse_carefully(self, block: bytes, lines: _Lines, numbers: Iterable[int], parsed: ParsedBlock) -> None:
        rows: list[_CarefulRow] = []
        for number in numbers:
            raw = block[lines.starts[number] : lines.ends[number]]
            line_number = self._lines_read + number + 1
            if not raw.strip():
                parsed.lines -= 1
                continue
            try:
                rows.append(_careful_row(raw, line_number, self._window))
            except ValueError as error:
                parsed.rejected.append(RejectedLine(line_number, sys.intern(str(error)), raw, loaded=False))
        if not rows:
            return
        names = [name for name in _CarefulRow.__dataclass_fields__ if name != "raw"]
        self._duckdb.register("rows", pa.table({name: _column(name, rows) for name in names}))
        try:
            table = self._duckdb.execute(_CAREFUL_SQL).to_arrow_table()
        finally:
            self._duckdb.unregister("rows")
        valid = table.column("valid").to_numpy()
        for row, accepted in zip(rows, valid, strict=True):
            if not accepted:
                reason = "DuckDB's JSON type refuses its properties"
                parsed.rejected.append(RejectedLine(row.line_number, reason, row.raw, loaded=False))
                continue
            parsed.strays += row.stray
            if row.repair:
                parsed.rejected.append(RejectedLine(row.line_number, row.repair, row.raw, loaded=True))
        head = table.filter(pa.array(valid))
        odd = self._table(head, head.column("properties"), head.column("extra"))
        parsed.rows = pa.concat_tables([parsed.rows, odd])

    def _table(self, head: pa.Table, properties: pa.Array, extra: pa.Array) -> pa.Table:
        ms = head.column("ms")
        columns = {
            "event_name": head.column("event_name"),
            "event_time": _timestamps(self._utc_ms(ms)),
            "event_date": self._dates(ms),
            "distinct_id": head.column("distinct_id"),
            "insert_id": head.column("insert_id"),
            "event_id": head.column("event_id"),
            "device_id": head.column("device_id"),
            "user_id": head.column("user_id"),
            "processed_at": _timestamps(head.column("processed_ms")),
            "properties": properties,
            "extra": extra,
        }
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _dates(self, ms: pa.ChunkedArray) -> pa.ChunkedArray:
        """The export day of each row: the day its `time` reads as, in both kinds of project."""
        if len(self._window) == 1:
            return pa.repeat(pa.scalar(self._window.first, pa.date32()), len(ms))
        inside = pc.and_(pc.greater_equal(ms, self._first_ms), pc.less_equal(ms, self._last_ms))
        days = pc.divide(pc.if_else(pc.fill_null(inside, False), ms, self._first_ms), MS_PER_DAY)
        return days.cast(pa.int32()).cast(pa.date32())

    def _utc_ms(self, ms: pa.ChunkedArray) -> pa.ChunkedArray:
        if self._local_zone is None or len(ms) == 0:
            return ms
        # Zones change at whole minutes, so one look-up a minute is enough.
        values = ms.fill_null(0).to_numpy()
        minutes, place = np.unique(values // 60_000, return_inverse=True)
        offsets = np.array([self._offset(int(minute), self._local_zone) for minute in minutes], np.int64)
        shifted = values - offsets[place]
        unusable = ms.is_null().to_numpy() | (shifted < _USABLE_MS.start) | (shifted >= _USABLE_MS.stop)
        return pa.chunked_array([pa.array(shifted, pa.int64(), mask=unusable)])

    def _offset(self, minute: int, zone: ZoneInfo) -> int:
        offset = self._offset_ms.get(minute)
        if offset is None:
            try:
                wall_clock = datetime(1970, 1, 1) + timedelta(minutes=minute)
                delta = wall_clock.replace(tzinfo=zone).utcoffset() or timedelta()
            except OverflowError:  # the first or last day that Python knows
                delta = timedelta()
            offset = self._offset_ms[minute] = delta // timedelta(milliseconds=1)
        return offset


@dataclass(frozen=True)
class _Lines:
    """Where each line of a block starts and ends (before its newline)."""

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


def _lines(block: bytes) -> _Lines:
    # Lines end at b"\n" only: str.splitlines() also cuts at U+2028, which a property may hold raw.
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 0x0A)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    return _Lines(starts, ends)


@dataclass
class _ShapedLines:
    """The lines of a block that have Mixpanel's own shape: their numbers, and where name and properties stand."""

    block: bytes
    numbers: npt.NDArray[np.int64]
    name_starts: npt.NDArray[np.int64]
    name_lengths: npt.NDArray[np.int64]
    properties_starts: npt.NDArray[np.int64]
    properties_lengths: npt.NDArray[np.int64]

    @functools.cached_property
    def names(self) -> pa.Array:
        return _slices(self.block, self.name_starts, self.name_lengths)

    @functools.cached_property
    def properties(self) -> pa.Array:
        return _slices(self.block, self.properties_starts, self.properties_lengths)

    def where(self, mask: npt.NDArray[np.bool_]) -> _ShapedLines:
        if mask.all():
            return self
        return _ShapedLines(
            self.block,
            self.numbers[mask],
            self.name_starts[mask],
            self.name_lengths[mask],
            self.properties_starts[mask],
            self.properties_lengths[mask],
        )


def _shaped(block: bytes, lines: _Lines) -> _ShapedLines:
    """The lines that read `{"event":"NAME","properties":{...}}` in UTF-8, with nothing to unescape in the name.

    That the properties are one JSON object is for DuckDB to prove; all around them is proven here.
    """
    offsets = np.append(lines.starts, len(block)).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block)]
    texts = pa.Array.from_buffers(pa.binary(), len(lines.starts), buffers)
    try:
        pa.Array.from_buffers(pa.string(), len(lines.starts), buffers).validate(full=True)
    except pa.ArrowInvalid:  # some line is not UTF-8
        utf8 = np.array([_is_utf8(block[start:end]) for start, end in zip(lines.starts, lines.ends, strict=True)])
    else:
        utf8 = np.ones(len(lines.starts), np.bool_)
    name_starts = lines.starts + len(_BEFORE_NAME)
    name_lengths = pc.find_substring(texts, _AFTER_NAME).to_numpy() - len(_BEFORE_NAME)
    properties_starts = name_starts + name_lengths + len(_AFTER_NAME) - 1
    properties_lengths = lines.ends - 1 - properties_starts
    bytes_ = np.frombuffer(block, np.uint8)
    mask = (
        utf8
        & pc.starts_with(texts, _BEFORE_NAME).to_numpy(zero_copy_only=False)
        & (name_lengths >= 0)
        & (properties_lengths >= len("{}"))
        & (bytes_[lines.ends - 1] == ord("}"))
        & (bytes_[np.maximum(lines.ends - 2, 0)] == ord("}"))
    )
    numbers = np.arange(len(lines.starts))
    shaped = _ShapedLines(block, numbers, name_starts, name_lengths, properties_starts, properties_lengths).where(mask)
    return shaped.where(_without_escapes(shaped.names))


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_escapes(names: pa.Array) -> npt.NDArray[np.bool_]:
    """Which names stand in the JSON text as they are: no quote, backslash or control character in them."""
    encoded = names.cast(pa.string()).dictionary_encode()
    simple = [not any(char in '"\\' or char < " " for char in name) for name in encoded.dictionary.to_pylist()]
    mask: npt.NDArray[np.bool_] = np.array(simple, np.bool_)[encoded.indices.to_numpy()]
    return mask


def _slices(block: bytes, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> pa.Array:
    """Parts of `block` as a string array that points into it: nothing is copied.

    A view is 16 bytes: the length, then the text itself where it has at most 12 bytes, else its first 4 bytes,
    the number of its buffer and the offset in it (Arrow columnar format: Variable-size Binary View Layout).
    """
    views = np.zeros(len(starts), np.dtype([("length", "<i4"), ("text", "u1", 12)]))
    views["length"] = lengths
    places = starts[:, None] + np.arange(12)
    text = np.frombuffer(block, np.uint8)[np.minimum(places, len(block) - 1)]
    text[np.arange(12) >= lengths[:, None]] = 0
    long = lengths > 12
    text[long, 4:8] = 0
    text[long, 8:12] = starts[long].astype("<i4").view("u1").reshape(-1, 4)
    views["text"] = text
    return pa.Array.from_buffers(pa.string_view(), len(starts), [None, pa.py_buffer(views), pa.py_buffer(block)])


def _careful_row(raw: bytes, line_number: int, window: Window) -> _CarefulRow:
    """One line of any shape as a row; raises ValueError with the reason where it is not an event."""
    repairs: list[str] = []
    try:
        line = raw.decode()
    except UnicodeDecodeError:
        line = raw.decode(errors="replace")
        repairs.append("bytes that are not UTF-8 replaced by U+FFFD")
    text = repaired(line)
    if text != line:
        repairs.append("lone surrogates replaced by U+FFFD, control characters escaped")
    try:
        pairs = members(text)
    except ValueError as error:
        raise ValueError(f"not a JSON object: {error}") from None
    top = first_values(pairs)
    event, properties = top.get("event"), top.get("properties")
    if event is None or not event.startswith('"'):
        raise ValueError("no `event` that is a string")
    if properties is None or not properties.startswith("{"):
        raise ValueError("no `properties` that is an object")
    if any(sum(name == once for name, _ in pairs) > 1 for once in ("event", "properties")):
        repairs.append("only the first of a repeated `event` or `properties` is used")
    found = first_values(members(properties))
    insert_id = as_text(found.get("$insert_id"))
    extra = ",".join(f"{_quoted(name)}:{value}" for name, value in pairs if name not in ("event", "properties"))
    ms = _time_ms(found.get("time"), window)
    inside = ms is not None and _EPOCH + timedelta(days=ms // MS_PER_DAY) in window
    # A row whose time does not say its day may come with several days that are asked for: the day is part of it.
    time_key = str(ms) if inside else f"{window.first}:{found.get('time', '')}"
    return _CarefulRow(
        line_number=line_number,
        event_name=as_text(event) or "",
        ms=ms,
        time_key=time_key,
        distinct_id=as_text(found.get("distinct_id")),
        insert_id=insert_id,
        device_id=as_text(found.get("$device_id")),
        user_id=as_text(found.get("$user_id")),
        processed_ms=_usable(_number(found.get("mp_processing_time_ms"))),
        properties=properties,
        extra=f"{{{extra}}}" if extra else None,
        stray=not inside,
        repair="; ".join(repairs) or None,
        raw=raw,
    )


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _number(value: str | None) -> Decimal | None:
    """A raw JSON value as a number, also where it is a string that spells one; None where it is neither."""
    text = as_text(value)
    if text is None or len(text) > 64 or not is_number(text):
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return None
    return number if abs(number) < 10**18 else None


def _usable(ms: Decimal | None) -> int | None:
    whole = None if ms is None else math.floor(ms)
    return whole if whole is not None and whole in _USABLE_MS else None


def _time_ms(value: str | None, window: Window) -> int | None:
    """`time` in milliseconds; None where there is none, or none that a clock can show.

    Seconds or milliseconds by size (Mixpanel docs: Export), unless only the other reading lies in the window.
    """
    number = _number(value)
    if number is None:
        return None
    as_ms, as_seconds = _usable(number), _usable(number * 1000)
    likely, other = (as_ms, as_seconds) if abs(number) > _MS_FROM else (as_seconds, as_ms)
    if other is not None and _EPOCH + timedelta(days=other // MS_PER_DAY) in window:
        return other if likely is None or _EPOCH + timedelta(days=likely // MS_PER_DAY) not in window else likely
    return likely


_CAREFUL_TYPES = {
    "line_number": pa.int64(),
    "ms": pa.int64(),
    "processed_ms": pa.int64(),
    "stray": pa.bool_(),
}


def _column(name: str, rows: list[_CarefulRow]) -> pa.Array:
    return pa.array([getattr(row, name) for row in rows], _CAREFUL_TYPES.get(name, pa.string()))


def _timestamps(ms: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.multiply(ms, 1000).cast(pa.timestamp("us", "UTC"))
