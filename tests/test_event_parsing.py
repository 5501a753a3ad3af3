"""Export lines -> rows: every odd line accounted for, the quick way and the careful one alike."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odd_json import ODD_NAMES, Number, Object, lax_texts, numbers, objects, read, strings, values, without_surrogates

from mixpanel_source.parsing.events import SCHEMA, EventParser, ParsedBlock
from mixpanel_source.windows import Window

DAY = date(2024, 3, 5)
WINDOW = Window.of(DAY)
T = 1709600000000
"""2024-03-05T00:53:20Z in milliseconds."""
AT_T = datetime(2024, 3, 5, 0, 53, 20, tzinfo=UTC)

Row = dict[str, Any]


def parse(*lines: bytes, window: Window = WINDOW, zone: str | None = None) -> ParsedBlock:
    parser = EventParser(window, None if zone is None else ZoneInfo(zone))
    try:
        return parser.parse(b"".join(line + b"\n" for line in lines))
    finally:
        parser.close()


def rows(parsed: ParsedBlock) -> list[Row]:
    assert parsed.rows.schema.equals(SCHEMA)
    found: list[Row] = parsed.rows.to_pylist()
    return found


@functools.cache
def shared_parser(window: Window, zone: str | None) -> EventParser:
    return EventParser(window, None if zone is None else ZoneInfo(zone))


def only_row(line: bytes | str, window: Window = WINDOW, zone: str | None = None) -> Row:
    parsed = shared_parser(window, zone).parse((line.encode() if isinstance(line, str) else line) + b"\n")
    assert [rejected.reason for rejected in parsed.rejected if not rejected.loaded] == []
    (row,) = rows(parsed)
    return row


def event(properties: str, name: str = '"E"') -> str:
    """A line in Mixpanel's own shape, its parts given as JSON text."""
    return f'{{"event":{name},"properties":{properties}}}'


def carefully(line: str) -> str:
    """The same line in another shape, which only the careful way takes."""
    return line.replace('{"event":', '{"event": ', 1)


def both_ways(line: str, **how: Any) -> Row:
    """The row of a line, which the careful way reads like the quick one."""
    row = only_row(line, **how)
    assert only_row(carefully(line), **how) == row
    return row


# --- the columns


def test_an_event_fills_every_column() -> None:
    properties = (
        '{"time":1709600000123,"distinct_id":"u-17","$insert_id":"a1B2-c3","$device_id":"d-9","$user_id":"u-17",'
        '"mp_processing_time_ms":1709600002311,"amount":12.50,"items":[{"sku":"X", "n":2}]}'
    )
    row = both_ways(event(properties, '"Order Placed"'))
    assert row == {
        "event_name": "Order Placed",
        "event_time": datetime(2024, 3, 5, 0, 53, 20, 123000, tzinfo=UTC),
        "event_date": DAY,
        "distinct_id": "u-17",
        "insert_id": "a1B2-c3",
        "event_id": hashlib.md5(b"1709600000123:12:Order Placed:4:u-17:i:a1B2-c3").hexdigest(),
        "device_id": "d-9",
        "user_id": "u-17",
        "processed_at": datetime(2024, 3, 5, 0, 53, 22, 311000, tzinfo=UTC),
        "properties": properties,
        "extra": None,
    }


def test_an_event_with_nothing_fills_what_is_left() -> None:
    row = both_ways(event("{}", '""'))
    assert row == {
        "event_name": "",
        "event_time": None,
        "event_date": DAY,
        "distinct_id": None,
        "insert_id": None,
        "event_id": hashlib.md5(b"2024-03-05::0::-::p:{}").hexdigest(),
        "device_id": None,
        "user_id": None,
        "processed_at": None,
        "properties": "{}",
        "extra": None,
    }


def test_an_event_without_insert_id_is_known_by_all_its_properties() -> None:
    properties = f'{{"time":{T},"distinct_id":"é","n":1}}'
    row = both_ways(event(properties, '"日"'))
    assert row["insert_id"] is None
    assert row["event_id"] == hashlib.md5(f"{T}:3:日:2:é:p:{properties}".encode()).hexdigest()
    with_empty = f'{{"time":{T},"$insert_id":"","n":1}}'
    row = both_ways(event(with_empty))
    assert row["insert_id"] == ""
    assert row["event_id"] == hashlib.md5(f"{T}:1:E:-::p:{with_empty}".encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ('"two  words "', "two  words "),
        ('"$identify"', "$identify"),
        ('"a.b.c"', "a.b.c"),
        ('"😀 日本 é"', "😀 日本 é"),
        ('"it\'s 100%"', "it's 100%"),
        ('"say \\"hi\\""', 'say "hi"'),
        ('"back\\\\slash"', "back\\slash"),
        ('"tab\\tline\\n"', "tab\tline\n"),
        ('"nul\\u0000"', "nul\0"),
        ('"\\u00e9\\ud83d\\ude00"', "é😀"),
        ('"\\",\\"properties\\":{"', '","properties":{'),
        ('"x\\",\\"properties\\":{\\"time\\":1}}"', 'x","properties":{"time":1}}'),
        ('"\u2028\u2029\u0085"', "\u2028\u2029\u0085"),
        ('"' + "n" * 100_000 + '"', "n" * 100_000),
        ('"twelve chars"', "twelve chars"),
        ('"thirteen char"', "thirteen char"),
    ],
)
def test_an_event_may_have_any_name(name: str, expected: str) -> None:
    row = both_ways(event(f'{{"time":{T}}}', name))
    assert row["event_name"] == expected
    assert row["event_time"] == AT_T


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('""', ""),
        ('"x"', "x"),
        ("null", None),
        ('"null"', "null"),
        ("true", "true"),
        ("0", "0"),
        ("-0", "-0"),
        ('"-0"', "-0"),
        ("-0.0", "-0.0"),
        ("17", "17"),
        ("1.50", "1.50"),
        ('"1.50"', "1.50"),
        ("1e3", "1e3"),
        ("1E+3", "1E+3"),
        ("1e400", "1e400"),
        ("9007199254740993", "9007199254740993"),
        ("18446744073709551616", "18446744073709551616"),
        ("-9223372036854775809", "-9223372036854775809"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("[1, 2.0]", "[1, 2.0]"),
        ('{"a": 1.50}', '{"a": 1.50}'),
        ('"[1, 2.0]"', "[1, 2.0]"),
        ('"\\u0000a\\u0000"', "\0a\0"),
        ('"\\ud83d\\ude00"', "😀"),
        ('" "', " "),
        ('"' + "i" * 300_000 + '"', "i" * 300_000),
    ],
)
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("distinct_id", "distinct_id"),
        ("$insert_id", "insert_id"),
        ("$device_id", "device_id"),
        ("$user_id", "user_id"),
    ],
)
def test_an_id_is_kept_as_it_was_exported(name: str, column: str, value: str, expected: str | None) -> None:
    properties = f'{{"time":{T},"{name}":{value}}}'
    row = both_ways(event(properties))
    assert row[column] == expected
    assert row["properties"] == properties


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1709600000000", AT_T),
        ("1709600000123", AT_T + timedelta(milliseconds=123)),
        ('"1709600000123"', AT_T + timedelta(milliseconds=123)),
        ("1709600000", AT_T),
        ('"1709600000"', AT_T),
        ("1709600000.25", AT_T + timedelta(milliseconds=250)),
        ("1709600000.0019", AT_T + timedelta(milliseconds=1)),
        ("1709600000123.9", AT_T + timedelta(milliseconds=123)),
        ("1.7096e9", AT_T),
        ("1.7096E+12", AT_T),
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("-0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("-1", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("-0.5", datetime(1969, 12, 31, 23, 59, 59, 500000, tzinfo=UTC)),
        ("-8640000000000", datetime(1696, 3, 17, tzinfo=UTC)),
        ("-86400000000000", None),
        ("4102444800", datetime(2100, 1, 1, tzinfo=UTC)),
        ("4102444800000", datetime(2100, 1, 1, tzinfo=UTC)),
        ("99999999999", datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        ("100000000001", datetime(1973, 3, 3, 9, 46, 40, 1000, tzinfo=UTC)),
        ("253402300799999", datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
        ("253402300800000", None),
        ("9223372036854775807", None),
        ("123456789012345678901234567890", None),
        ("1e400", None),
        ("-1e400", None),
        ("true", None),
        ("null", None),
        ('""', None),
        ('"2024-03-05T00:53:20Z"', None),
        ('"NaN"', None),
        ('"Infinity"', None),
        ('"1_709_600_000"', None),
        ('"\uff11\uff17\uff10\uff19\uff16\uff10\uff10\uff10\uff10\uff10"', None),
        ('"+1709600000"', None),
        ('"+1709600000000"', None),
        ('" 1709600000"', None),
        ('"1709600000000 "', None),
        ('"01709600000000"', None),
        ('"1709600000."', None),
        ('".5"', None),
        ('"1.7096e9"', AT_T),
        ('"0x65E66D00"', None),
        ('"1e99999999999999999999"', None),
        ('"\\u0000"', None),
        ("[1709600000]", None),
        ('{"a":1709600000}', None),
        ("[]", None),
        ("{}", None),
    ],
)
def test_a_time_is_read_in_seconds_or_milliseconds_or_left_out(value: str, expected: datetime | None) -> None:
    properties = f'{{"time":{value},"n":1}}'
    row = both_ways(event(properties))
    assert row["event_time"] == expected
    assert row["event_date"] == DAY
    assert row["properties"] == properties


def test_a_time_that_is_missing_is_none() -> None:
    assert both_ways(event('{"n":1}'))["event_time"] is None


def test_what_json_does_not_know_as_a_number_is_kept_all_the_same() -> None:
    for value in ("NaN", "Infinity", "-Infinity", "nan", "-nAn", "inf", "-INF", "infinity"):
        row = both_ways(event(f'{{"time":{value},"distinct_id":{value}}}'))
        assert (row["event_time"], row["distinct_id"]) == (None, value)


def test_a_small_time_is_in_the_unit_that_lies_in_the_window() -> None:
    # 1971: its milliseconds look like the seconds of the year 3059.
    window = Window.of(date(1971, 1, 2))
    row = both_ways(event('{"time":31622400000}'), window=window)
    assert row["event_time"] == datetime(1971, 1, 2, tzinfo=UTC)
    row = both_ways(event('{"time":31622400}'), window=window)
    assert row["event_time"] == datetime(1971, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1709600002311", AT_T + timedelta(milliseconds=2311)),
        ('"1709600002311"', AT_T + timedelta(milliseconds=2311)),
        ("1709600002311.9", AT_T + timedelta(milliseconds=2311)),
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("1709600002", datetime(1970, 1, 20, 18, 53, 20, 2000, tzinfo=UTC)),
        ("99999999999999999", None),
        ("9223372036854775807", None),
        ("9223372036854775808", None),
        ("-9223372036854775808", None),
        ("null", None),
        ("true", None),
        ('"soon"', None),
        ("{}", None),
    ],
)
def test_the_processing_time_is_milliseconds_or_left_out(value: str, expected: datetime | None) -> None:
    row = both_ways(event(f'{{"time":{T},"mp_processing_time_ms":{value}}}'))
    assert row["processed_at"] == expected


@pytest.mark.parametrize(
    "properties",
    [
        '{"time":%d,"event":"x","properties":{"time":1},"time_":2,"_dlt_id":"i","_dlt_load_id":"l","extra":0}',
        '{"time":%d,"Plan":1,"plan":2,"$plan":3,"PLAN":4,"":5," ":6,"a.b":7,"a":{"b":8}}',
        '{"time":%d,"one":1,"one":"1","one":null,"one":[1],"one":{"one":1}}',
        '{"time":%d,"n":123456789012345678901234567890,"m":-0.0,"e":1e400,"f":1.10}',
        '{"time":%d,"nul":"\\u0000","u":"\u2028\u2029\u0085","s":"\\ud83d\\ude00","b":"\\\\ud800","d":"\u007f"}',
        '{"time":%d,"quote":"\\"","back":"\\\\","slash":"\\/","\\"key\\"":1,"\\\\":2,"\\ud83d\\ude00":3}',
        '{"time":%d,"deep":' + "[" * 60 + "]" * 60 + "}",
        '{"time":%d,"empty":"","null":null,"list":[],"object":{},"true":true}',
        '{"time":%d,"long":"' + "x" * 1_000_000 + '"}',
        '{"time":%d,"looks":"{\\"event\\":\\"E\\",\\"properties\\":{}}","ends":"}}"}',
        '{ "time" : %d , "spaced" : [ 1 , 2 ] }',
        '{"time":%d,"a":[1,],"b":{"c":"d" , },}',
        '{"time":%d,"$user_id":nan,"a":[NaN,-inf,infinity,INF,],"b":-NaN}',
        '{"time":%d,"deep":' + "[" * 1_500 + "]" * 1_500 + "}",
        '{"time":%d,"$insert_id":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"time":%d,"deep":' + '{"a":[' * 5_000 + "nan" + ",],}" * 5_000 + "}",
    ],
)
def test_properties_are_kept_byte_for_byte(properties: str) -> None:
    properties = properties.replace("%d", str(T))
    row = both_ways(event(properties))
    assert row["properties"] == properties
    assert row["event_time"] == AT_T
    assert json_column(properties) == properties


@pytest.mark.parametrize("depth", [10, 990, 20_000])
def test_a_deep_line_that_needs_a_repair_is_repaired(depth: int) -> None:
    properties = f'{{"time":{T},"a":' + "[" * depth + '"\\ud800"' + "]" * depth + "}"
    row = both_ways(event(properties))
    assert row["properties"] == properties.replace("\\ud800", "\\ufffd")
    cut = event(properties)[:-2].encode()
    (rejected,) = parse(cut).rejected
    assert (rejected.raw, rejected.loaded) == (cut, False)


def test_of_a_repeated_property_the_first_counts() -> None:
    row = both_ways(
        event(f'{{"time":{T},"time":1,"distinct_id":"a","distinct_id":"b","$insert_id":null,"$insert_id":"x"}}')
    )
    assert (row["event_time"], row["distinct_id"], row["insert_id"]) == (AT_T, "a", None)


def test_a_property_spelled_with_escapes_is_the_same_property() -> None:
    row = both_ways(event(f'{{"ti\\u006de":{T},"distinct\\u005fid":"a"}}'))
    assert (row["event_time"], row["distinct_id"]) == (AT_T, "a")


# --- other shapes


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ('{"event":"E","properties":{"time":%d},"labels":["a"],"dataset":"$mixpanel"}',
         '{"labels":["a"],"dataset":"$mixpanel"}'),
        ('{"sampling_factor":1.0,"event":"E","properties":{"time":%d}}', '{"sampling_factor":1.0}'),
        ('{"x":{"a" : 1},"properties":{"time":%d},"y":null,"event":"E","x":2}', '{"x":{"a" : 1},"y":null,"x":2}'),
        ('{"properties":{"time":%d},"event":"E"}', None),
        ('  {"event" :\t"E",\r"properties": {"time":%d}}  \r', None),
        ('{"\\u0065vent":"E","properties":{"time":%d},"\\"q\\"":1}', '{"\\"q\\"":1}'),
    ],
)  # fmt: skip
def test_lines_of_another_shape_keep_their_other_keys_in_extra(line: str, extra: str | None) -> None:
    row = only_row(line % T)
    assert (row["event_name"], row["event_time"], row["extra"]) == ("E", AT_T, extra)
    assert row["event_id"] == only_row(event(f'{{"time":{T}}}'))["event_id"]


@pytest.mark.parametrize("line", [
    '{"event":"A","event":"B","properties":{"time":%d}}',
    '{"event":"A","properties":{"time":%d},"properties":{"n":2}}',
])  # fmt: skip
def test_a_repeated_event_or_properties_is_not_dropped_in_silence(line: str) -> None:
    raw = (line % T).encode()
    parsed = parse(raw)
    (row,) = rows(parsed)
    assert (row["event_name"], row["properties"]) == ("A", f'{{"time":{T}}}')
    assert [(rejected.raw, rejected.loaded) for rejected in parsed.rejected] == [(raw, True)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"99", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b"}", "not a JSON object"),
        (b'{"event":"E","properties":{"time":17', "not a JSON object"),
        (b'96000000},"x":1}', "not a JSON object"),
        (b'{"event":"E","properties":{"time":1}', "not a JSON object"),
        (b'{"event":"E","properties":{"time":1}}}', "not a JSON object"),
        (b'{"event":"E","properties":{"time":1}}{"event":"E","properties":{"time":1}}', "not a JSON object"),
        (b'{"event":"E","properties":{"a":01}}', "not a JSON object"),
        (b'{"event":"E","properties":{"a":"\\x"}}', "not a JSON object"),
        (b"{'event':'E','properties':{}}", "not a JSON object"),
        (b"\xff\xfe\xfd", "not a JSON object"),
        (b'{"event":"E"}', "no `properties` that is an object"),
        (b'{"event":"E","properties":null}', "no `properties` that is an object"),
        (b'{"event":"E","properties":"{}"}', "no `properties` that is an object"),
        (b'{"event":"E","properties":[]}', "no `properties` that is an object"),
        (b'{"properties":{}}', "no `event` that is a string"),
        (b'{"event":null,"properties":{}}', "no `event` that is a string"),
        (b'{"event":7,"properties":{}}', "no `event` that is a string"),
        (b'{"event":["E"],"properties":{}}', "no `event` that is a string"),
        (b'{"error":"oops"}', "no `event` that is a string"),
        (b"{}", "no `event` that is a string"),
    ],
)
def test_a_line_that_is_no_event_is_kept_aside_with_its_place_and_reason(line: bytes, reason: str) -> None:
    good = event(f'{{"time":{T}}}').encode()
    parsed = parse(good, line, good)
    assert len(rows(parsed)) == 2
    assert parsed.lines == 3
    (rejected,) = parsed.rejected
    assert reason in rejected.reason
    assert (rejected.line_number, rejected.raw, rejected.loaded) == (2, line, False)


@pytest.mark.parametrize("blank", [b"", b" ", b"\t\r", b"  \x0b "])
def test_a_blank_line_is_no_line(blank: bytes) -> None:
    good = event(f'{{"time":{T}}}').encode()
    parsed = parse(blank, good, blank)
    assert (len(rows(parsed)), parsed.lines, parsed.rejected) == (1, 1, [])


@pytest.mark.parametrize(
    ("line", "name", "properties"),
    [
        (b'{"event":"E","properties":{"time":%d,"s":"a\\ud800b"}}', "E", '{"time":%d,"s":"a\\ufffdb"}'),
        (b'{"event":"E","properties":{"time":%d,"\\udc00":"\\\\ud800"}}', "E", '{"time":%d,"\\ufffd":"\\\\ud800"}'),
        (b'{"event":"E\\ud83d","properties":{"time":%d}}', "E\ufffd", '{"time":%d}'),
        (b'{"event":"E","properties":{"time":%d,"s":"\rb\tc\x00"}}', "E", '{"time":%d,"s":"\\u000db\\u0009c\\u0000"}'),
        (b'{"event":"E\x01","properties":{"time":%d}}', "E\x01", '{"time":%d}'),
        (b'{"event":"E","properties":{"time":%d,"id\xef\xbf\xff\xfe":1}}', "E", '{"time":%d,"id\ufffd\ufffd\ufffd":1}'),
        (b'{"event":"E\xff","properties":{"time":%d}}', "E\ufffd", '{"time":%d}'),
        (b'{"event":"E","properties":{"time":%d,"s":"\xed\xa0\x80"}}', "E", '{"time":%d,"s":"\ufffd\ufffd\ufffd"}'),
    ],
)  # fmt: skip
def test_what_duckdb_refuses_is_loaded_repaired_and_the_line_kept(line: bytes, name: str, properties: str) -> None:
    raw = line % T
    for given_line in (raw, raw.replace(b'{"event":', b'{"event" :', 1)):
        parsed = parse(given_line)
        (row,) = rows(parsed)
        assert row["event_name"] == name
        assert row["event_time"] == AT_T
        assert row["properties"] == properties % T
        assert json_column(row["properties"]) == row["properties"]
        (rejected,) = parsed.rejected
        assert (rejected.line_number, rejected.raw, rejected.loaded) == (1, given_line, True)
        assert "replaced" in rejected.reason
        assert parsed.lines == 1


def test_one_bad_line_does_not_change_what_its_neighbours_become() -> None:
    good = [event(f'{{"time":{T + n},"n":{n},"distinct_id":"u{n}"}}').encode() for n in range(50)]
    expected = rows(parse(*good))
    bad = [
        b'{"event":"E","properties":{"a":"\xff"',
        b"99",
        b'{"event":"E","properties":{]}}',
        b'{"event":"E","properties":{}}}',
    ]
    parsed = parse(*[line for n, one in enumerate(good) for line in (one, bad[n % 4])])
    assert by_id(rows(parsed)) == by_id(expected)
    assert [rejected.line_number for rejected in parsed.rejected] == list(range(2, 101, 2))


# --- blocks


def mixed_lines() -> list[bytes]:
    """Lines for either way, and lines for none."""
    return [
        line
        for n in range(20)
        for line in (
            event(f'{{"time":{T + n},"distinct_id":"u{n}","$insert_id":"i{n}","s":"\u2028{n}"}}').encode(),
            event(f'{{"time":{T + n},"distinct_id":{n}.50}}', f'"E{n}"').encode(),
            carefully(event(f'{{"time":{T // 1000 + n},"x":"\\ud800{n}"}}')).encode(),
            b"",
            b"%d" % n,
        )
    ]


@pytest.mark.parametrize("lines_per_block", [1, 2, 3, 7, 50, 1000])
def test_blocks_of_any_size_give_the_same_rows_and_line_numbers(lines_per_block: int) -> None:
    lines = mixed_lines()
    whole = parse(*lines)
    parser = EventParser(Window.of(DAY))
    blocks = [lines[at : at + lines_per_block] for at in range(0, len(lines), lines_per_block)]
    parts = [parser.parse(b"".join(line + b"\n" for line in block)) for block in blocks]
    parser.close()
    assert by_id([row for part in parts for row in rows(part)]) == by_id(rows(whole))
    assert sum(part.lines for part in parts) == whole.lines == 80
    rejected = sorted((one for part in parts for one in part.rejected), key=lambda one: one.line_number)
    assert rejected == sorted(whole.rejected, key=lambda one: one.line_number)
    assert [one.line_number for one in rejected] == [n for five in range(20) for n in (5 * five + 3, 5 * five + 5)]
    assert all(lines[one.line_number - 1] == one.raw for one in rejected)


def test_a_block_of_blank_or_broken_lines_only_gives_an_empty_table() -> None:
    assert rows(parse(b"")) == []
    assert rows(parse(b"x", b"")) == []


# --- windows of several days


def test_in_a_window_of_days_each_row_belongs_to_the_day_of_its_time() -> None:
    window = Window(date(2024, 3, 4), date(2024, 3, 6))
    first = 1709510400000
    times = [first, first + 86_399_999, first + 86_400_000, first + 3 * 86_400_000 - 1]
    parsed = parse(*[event(f'{{"time":{time}}}').encode() for time in times], window=window)
    assert [row["event_date"].day for row in rows(parsed)] == [4, 4, 5, 6]
    assert parsed.strays == 0


@pytest.mark.parametrize("time", ["1709510399999", "1709769600000", "null", '"x"', "true", "1e400", "4102444800"])
def test_a_row_whose_time_does_not_say_its_day_is_counted(time: str) -> None:
    window = Window(date(2024, 3, 4), date(2024, 3, 6))
    parsed = parse(event(f'{{"time":{time}}}').encode(), event(f'{{"time":{T}}}').encode(), window=window)
    assert parsed.strays == 1


# --- projects made before 2023


@pytest.mark.parametrize(
    ("zone", "wall_clock", "expected"),
    [
        ("America/New_York", "2013-03-10T01:59:59.999", "2013-03-10T06:59:59.999"),
        # 02:00 to 03:00 did not exist: counted on from before the clocks changed.
        ("America/New_York", "2013-03-10T02:00:00", "2013-03-10T07:00:00"),
        ("America/New_York", "2013-03-10T02:59:59", "2013-03-10T07:59:59"),
        ("America/New_York", "2013-03-10T03:00:00", "2013-03-10T07:00:00"),
        ("America/New_York", "2013-11-03T00:59:59", "2013-11-03T04:59:59"),
        # 01:00 to 02:00 came twice: the first of them.
        ("America/New_York", "2013-11-03T01:00:00", "2013-11-03T05:00:00"),
        ("America/New_York", "2013-11-03T01:59:59.999", "2013-11-03T05:59:59.999"),
        ("America/New_York", "2013-11-03T02:00:00", "2013-11-03T07:00:00"),
        ("Asia/Kolkata", "2013-03-10T00:00:00", "2013-03-09T18:30:00"),
        ("Asia/Kathmandu", "2013-03-10T00:00:00", "2013-03-09T18:15:00"),
        ("Australia/Lord_Howe", "2013-04-07T01:30:00", "2013-04-06T14:30:00"),
        ("Australia/Lord_Howe", "2013-04-07T02:00:00", "2013-04-06T15:30:00"),
        ("Pacific/Kiritimati", "2013-03-10T00:00:00", "2013-03-09T10:00:00"),
        # The clocks of St. John's changed at 00:01 until 2011.
        ("America/St_Johns", "2010-11-06T23:00:30", "2010-11-07T01:30:30"),
        ("America/St_Johns", "2010-11-06T23:01:00", "2010-11-07T01:31:00"),
        ("America/St_Johns", "2010-11-07T00:00:59", "2010-11-07T02:30:59"),
        ("America/St_Johns", "2010-11-07T00:01:00", "2010-11-07T03:31:00"),
        ("America/St_Johns", "2010-03-14T00:00:59", "2010-03-14T03:30:59"),
        ("America/St_Johns", "2010-03-14T00:01:00", "2010-03-14T03:31:00"),
        ("America/St_Johns", "2010-03-14T01:01:00", "2010-03-14T03:31:00"),
        ("UTC", "2013-03-10T02:30:00", "2013-03-10T02:30:00"),
    ],
)
def test_wall_clock_becomes_the_instant_and_stays_on_its_day(zone: str, wall_clock: str, expected: str) -> None:
    shown = datetime.fromisoformat(wall_clock).replace(tzinfo=UTC)
    ms = (shown - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    for window in (Window.of(shown.date()), Window(shown.date() - timedelta(days=1), shown.date())):
        row = both_ways(event(f'{{"time":{ms},"mp_processing_time_ms":{T}}}'), window=window, zone=zone)
        assert row["event_time"] == datetime.fromisoformat(expected).replace(tzinfo=UTC)
        assert row["event_date"] == shown.date()
        assert row["processed_at"] == AT_T  # true UTC in either kind of project


@pytest.mark.parametrize("time", ["-62135596800000", "253402300799999", "null", "1e400"])
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_wall_clock_at_the_ends_of_time_is_no_error(time: str, zone: str) -> None:
    row = both_ways(event(f'{{"time":{time}}}'), zone=zone)
    assert row["properties"] == f'{{"time":{time}}}'


# --- any line at all, against a reader of our own

ID_NAMES = ("distinct_id", "$insert_id", "$device_id", "$user_id")
ID_COLUMNS = {"distinct_id": "distinct_id", "insert_id": "$insert_id", "device_id": "$device_id", "user_id": "$user_id"}
BOUND_MS = (-62_135_596_800_000, 253_402_300_799_999)

times = (
    st.sampled_from([str(T), str(T // 1000), f'"{T}"', f'"{T // 1000}"', "null", "true", '"x"', "-1", "4102444800"])
    | st.integers(1709596800000, 1709683199999).map(str)
    | st.integers(1709596800, 1709683199).map(str)
    | st.decimals(1709596800, 1709683199, places=4).map(str)
    | numbers
)


def lines_of(*, broken: bool) -> st.SearchStrategy[str]:
    value = values(broken=broken)
    ids = numbers | strings(broken=broken) | value
    known = st.tuples(
        st.sampled_from(['"time"', *(f'"{name}"' for name in ID_NAMES), '"mp_processing_time_ms"']),
        ids | times,
    )
    member = (
        st.tuples(st.just('"time"'), times)
        | known
        | st.tuples(st.sampled_from(ODD_NAMES) | strings(broken=broken), value)
    )
    properties = st.lists(member, max_size=7).map(lambda found: "{" + ",".join(f"{n}:{v}" for n, v in found) + "}")
    return st.builds(event, properties | objects(value, broken=broken), strings(broken=broken))


def expected_row(line: str) -> Row:
    """What a line of Mixpanel's shape has to become, by the contract."""
    whole = without_surrogates(read(line))
    top = dict(reversed(whole))
    properties = top["properties"]
    first = dict(reversed(properties))
    return {
        "event_name": top["event"],
        "event_time": expected_time(first.get("time")),
        "event_date": DAY,
        **{column: expected_text(first.get(name)) for column, name in ID_COLUMNS.items()},
        "processed_at": as_moment(as_number(first.get("mp_processing_time_ms"))),
        "properties": properties,
        "extra": None,
    }


def expected_text(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return None if value is None else str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value  # lists and objects: compared as values


JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def as_number(value: Any) -> Decimal | None:
    if not isinstance(value, str) or len(value) > 64 or not JSON_NUMBER.fullmatch(value):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number) < 10**18 else None


def as_moment(ms: Decimal | None) -> datetime | None:
    if ms is None:
        return None
    whole = int(ms.to_integral_value("ROUND_FLOOR"))
    if not BOUND_MS[0] <= whole <= BOUND_MS[1]:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=whole)


def expected_time(value: Any) -> datetime | None:
    number = as_number(value)
    if number is None:
        return None
    in_ms, in_seconds = as_moment(number), as_moment(number * 1000)
    likely, other = (in_ms, in_seconds) if abs(number) > 100_000_000_000 else (in_seconds, in_ms)
    if other is not None and other.date() == DAY and (likely is None or likely.date() != DAY):
        return other
    return likely


def check(line: str, row: Row) -> None:
    expected = expected_row(line)
    found = {name: value for name, value in row.items() if name != "event_id"}
    found["properties"] = read(found["properties"])
    for column in ID_COLUMNS:
        if isinstance(expected[column], list | tuple) and found[column] is not None:
            found[column] = without_surrogates(read(found[column]))
    assert found == expected
    assert len(row["event_id"]) == 32


@pytest.fixture(scope="module")
def parser() -> Iterator[EventParser]:
    made = EventParser(Window.of(DAY))
    yield made
    made.close()


@settings(max_examples=50)
@given(st.lists(lines_of(broken=True), min_size=1, max_size=4))
def test_any_line_becomes_what_the_contract_says_either_way(parser: EventParser, lines: list[str]) -> None:
    assume(all("\n" not in line for line in lines))
    quick = parser.parse(b"".join(line.encode() + b"\n" for line in lines))
    careful = parser.parse(b"".join(carefully(line).encode() + b"\n" for line in lines))
    assert by_id(rows(quick)) == by_id(rows(careful))
    assert len(rows(quick)) == len(lines) == quick.lines
    assert [one.loaded for one in quick.rejected] == [True] * len(quick.rejected)
    for row in rows(quick):
        assert json_column(row["properties"]) == row["properties"]
    for line in lines:
        (row,) = rows(parser.parse(line.encode() + b"\n"))
        check(line, row)


@pytest.mark.long
@settings(max_examples=200)
@given(lax_texts("{"), lax_texts("["))
def test_what_is_nearly_json_is_taken_or_refused_alike_either_way(
    parser: EventParser, properties: str, value: str
) -> None:
    for text in (properties, f'{{"time":{T},"distinct_id":{value}}}', f'{{"time":{T},"a":{value}'):
        quick, careful = (parser.parse(line.encode() + b"\n") for line in (event(text), carefully(event(text))))
        assert rows(quick) == rows(careful)
        assert [one.loaded for one in quick.rejected] == [one.loaded for one in careful.rejected]


@settings(max_examples=50)
@given(lines_of(broken=False))
def test_a_good_line_is_kept_byte_for_byte_and_needs_no_repair(parser: EventParser, line: str) -> None:
    parsed = parser.parse(line.encode() + b"\n")
    (row,) = rows(parsed)
    check(line, row)
    if "\r" not in line and "\t" not in line:
        assert parsed.rejected == []
    assert line.endswith('"properties":' + row["properties"] + "}")


@settings(max_examples=50)
@given(st.binary(max_size=40) | lines_of(broken=True).map(str.encode), st.data())
def test_no_bytes_at_all_are_lost_or_make_an_error(parser: EventParser, base: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(base)))
    junk = data.draw(st.binary(max_size=3))
    line = (base[:at] + junk + base[at + data.draw(st.integers(0, 2)) :]).replace(b"\n", b"")
    good = event(f'{{"time":{T},"good":1}}').encode()
    parsed = parser.parse(line + b"\n" + good + b"\n")
    blank = not line.strip()
    unread = [one for one in parsed.rejected if not one.loaded]
    assert len(rows(parsed)) + len(unread) == parsed.lines == (1 if blank else 2)
    assert all(one.raw == line for one in parsed.rejected)
    for row in rows(parsed):
        assert json_column(row["properties"]) == row["properties"]
        assert row["extra"] is None or json_column(row["extra"]) == row["extra"]


def by_id(found: Sequence[Row]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row.values()) for row in found)


_duckdb = duckdb.connect(config={"threads": 1})


def json_column(text: str) -> str:
    """`text` after a stay in a column of DuckDB's JSON type."""
    table = pa.table({"text": pa.array([text])})
    (found,) = _duckdb.from_arrow(table).project("cast(text as json)::varchar").fetchall()
    return str(found[0])


def test_the_reader_tells_a_number_from_a_text() -> None:
    assert type(read("1.0")) is Number
    assert read('{"a":1,"a":"1"}') == Object([("a", Number("1")), ("a", "1")])
    assert json.loads('{"a":1,"a":"1"}') == {"a": "1"}


def test_mixpanels_own_lines_go_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plain line went the careful way")

    monkeypatch.setattr(EventParser, "_parse_carefully", refuse)
    plain = (
        b'{"event":"Order Placed","properties":{"time":1709251200123,"distinct_id":"u-17","$insert_id":"98e7-1.5",'
        b'"$device_id":"12e5f","$user_id":"7","mp_processing_time_ms":1709251201000,"plan":null,"Plan":{"a":[1.50]}}}\n'
        b'{"event":"\xc3\x9cber","properties":{"time":1709251200000}}\n'
    )
    parser = EventParser(Window.of(date(2024, 3, 1)))
    assert len(parser.parse(plain).rows) == 2
    parser.close()
