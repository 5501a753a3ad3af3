"""JSON taken apart with every byte kept, and repaired no further than DuckDB asks for."""

from __future__ import annotations

import json
import sys

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_json import Object, lax_texts, objects, read, values, without_surrogates

from mixpanel_source.raw_json import as_text, elements, first_values, members, repaired

_duckdb = duckdb.connect(config={"threads": 1})

ANY_VALUE = values(broken=True)
GOOD_VALUE = values(broken=False)


def test_members_keep_order_repeats_and_the_text_of_each_value() -> None:
    text = ' { "a" : 1.50 ,"b":{"x":[1 , 2]},\t"a":"\\u0041","":null,"\\u0062":-0,"c":1e400}\n'
    assert members(text) == [
        ("a", "1.50"),
        ("b", '{"x":[1 , 2]}'),
        ("a", '"\\u0041"'),
        ("", "null"),
        ("b", "-0"),
        ("c", "1e400"),
    ]
    assert first_values(members(text)) == {
        "a": "1.50", "b": '{"x":[1 , 2]}', "": "null", "c": "1e400",
    }  # fmt: skip


def test_elements_keep_order_and_the_text_of_each_value() -> None:
    assert elements(' [1.50, {"a":1} ,[ ],"]", null ] ') == ["1.50", '{"a":1}', "[ ]", '"]"', "null"]
    assert elements("[]") == []
    assert elements(" [ ] ") == []
    assert members(" { } ") == []


def test_a_whole_number_of_any_length_is_kept() -> None:
    digits = "7" * (sys.get_int_max_str_digits() + 1)
    assert members('{"n":' + digits + "}") == [("n", digits)]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1", '"x"', "[]", "null", "{", "{}x", '{"a"}', '{"a":}', '{"a":1', '{"a":1,', '{a:1}', '{,}',
        "{'a':1}", '{"a":1}{"a":1}', '{"a":1 "b":2}', '{,"a":1}', '{"a":01}', '{"a":.5}', '{"a":"x}', '{"a":"\\x"}',
        '{"a":"\\u12"}', "\ufeff{}", '{"a":1}\x0b', '{"a":1,,}', '{"a":[1,,]}', '{"a":nanx}', '{"a":+nan}',
    ],
)  # fmt: skip
def test_what_is_not_one_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|Unterminated|Invalid|Expecting|character"):
        members(text)


@pytest.mark.parametrize("text", ["", "{}", "1", "[", "[1", "[1,", "[,]", "[,1]", "[1 2]", "[1]]", "[1]x"])
def test_what_is_not_one_array_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|Expecting"):
        elements(text)


@pytest.mark.parametrize("depth", [60, 990, 1_010, 200_000])
def test_nesting_may_be_deep(depth: int) -> None:
    for value in ("[" * depth + "]" * depth, '{"":[' * depth + "nan" + ",],}" * depth):
        assert members('{"a":' + value + ',"b":1}') == [("a", value), ("b", "1")]
        assert elements("[" + value + ",2]") == [value, "2"]
        with pytest.raises(ValueError, match="expected"):
            members('{"a":' + value[:-1] + "}")


@settings(max_examples=500)
@given((lax_texts("{") | lax_texts("[")).map(repaired))
def test_what_is_json_to_duckdb_is_json_here_and_nothing_else(text: str) -> None:
    start = text.lstrip(" \t\r\n")[:1]
    read_text = {"{": members, "[": elements}.get(start)
    if read_text is None:
        return
    (valid,) = _duckdb.execute("select json_valid(?)", [text]).fetchone() or ()
    try:
        read_text(text)
    except ValueError:
        assert not valid
    else:
        assert valid


@given(objects(ANY_VALUE, broken=True, max_size=6))
def test_members_agree_with_the_json_module(text: str) -> None:
    found = members(text)
    assert Object((name, read(value)) for name, value in found) == read(text)
    at = 0
    for _, value in found:
        at = text.index(value, at) + len(value)


@given(st.lists(ANY_VALUE, max_size=5))
def test_elements_agree_with_the_json_module(items: list[str]) -> None:
    assert elements("[" + " , ".join(items) + "]") == items


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("null", None),
        ('""', ""),
        ('"null"', "null"),
        ('"a\\u0041\\n"', "aA\n"),
        ("true", "true"),
        ("1.50", "1.50"),
        ("-0", "-0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_a_value_as_text(value: str | None, expected: str | None) -> None:
    assert as_text(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"\\ud800"', '"\\ufffd"'),
        ('"\\uDFFF"', '"\\ufffd"'),
        ('"x\\ud83dy\\ude00z"', '"x\\ufffdy\\ufffdz"'),
        ('"\\ude00\\ud83d"', '"\\ufffd\\ufffd"'),
        ('"\\ud83d\\ud83d\\ude00\\ude00"', '"\\ufffd\\ud83d\\ude00\\ufffd"'),
        ('"\\ud83d\\n\\ude00"', '"\\ufffd\\n\\ufffd"'),
        ('{"\\ud800":["\\udc00"]}', '{"\\ufffd":["\\ufffd"]}'),
        ('"\\\\\\ud800"', '"\\\\\\ufffd"'),
        ('"a\rb\tc\x00d\x1f"', '"a\\u000db\\u0009c\\u0000d\\u001f"'),
    ],
)
def test_halves_of_pairs_and_raw_control_characters_are_replaced(text: str, expected: str) -> None:
    assert repaired(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '"\\\\ud800"',
        '"\\\\\\\\udc00"',
        '"\\ud83d\\ude00"',
        '"\\uD83D\\uDE00"',
        '"\\u0000\\u001f\\ufffd"',
        '"\u2028\u2029\u0085\u007f"',
        '{\t"a" :\r[ 1 ]\n}',
        "1e400",
        '"\\"\\\\"',
    ],
)
def test_what_duckdb_takes_is_left_alone(text: str) -> None:
    assert repaired(text) == text


@given(ANY_VALUE)
def test_a_repaired_value_is_one_duckdb_takes_and_otherwise_the_same(text: str) -> None:
    fixed = repaired(text)
    assert read(fixed) == without_surrogates(read(text))
    assert repaired(fixed) == fixed
    assert duckdb_json(fixed) == fixed


@given(GOOD_VALUE)
def test_a_good_value_is_not_changed_by_a_byte(text: str) -> None:
    assert repaired(text) == text
    assert duckdb_json(text) == text


def duckdb_json(text: str) -> str:
    """`text` after a stay in a JSON column."""
    rows = _duckdb.execute("select cast(? as json)::varchar", [text]).fetchall()
    return str(rows[0][0])


def test_an_escape_that_is_none_is_left_alone() -> None:
    assert repaired('["\\\x01","\\x","a\x01"]') == '["\\\x01","\\x","a\\u0001"]'


def test_a_string_of_a_million_characters_is_repaired_like_a_short_one() -> None:
    text = json.dumps("x" * 1_000_000)
    assert repaired(text) == text
    assert repaired(text[:-1] + '\\ud800"') == text[:-1] + '\\ufffd"'
