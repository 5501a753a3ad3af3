"""Mixpanel's rule for duplicates, and event_ids that are unique and stay the same."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_source.parsing.duplicates import Duplicates
from mixpanel_source.parsing.events import EventParser
from mixpanel_source.parsing.held import HeldTables
from mixpanel_source.windows import Window

DAY = Window.of(date(2024, 3, 5))
T = 1709600000000

Row = dict[str, Any]

_parser = EventParser(DAY)


def settle(blocks: Sequence[Sequence[str]], in_memory_bytes: int = 1 << 30) -> tuple[list[Row], list[Row]]:
    """The rows of an export's blocks that are to be loaded, and those that are duplicates of them."""
    duplicates = Duplicates()
    with HeldTables(None, in_memory_bytes) as held:
        for block in blocks:
            table = _parser.parse(b"".join(line.encode() + b"\n" for line in block)).rows
            duplicates.see(table)
            held.add(table)
        resolution = duplicates.resolve()
        kept: list[Row] = []
        lost: list[Row] = []
        first_row = 0
        for table in held:
            stays, goes = resolution.apply(table, first_row)
            kept += stays.to_pylist()
            lost += goes.to_pylist()
            first_row += len(table)
    return kept, lost


def table_of(*ids: str) -> pa.Table:
    """Rows with these event_ids that Mixpanel processed at the same time."""
    moments = pa.array([T] * len(ids), pa.timestamp("us", "UTC"))
    texts = {"event_id": pa.array(ids, pa.string()), "insert_id": pa.array(["i"] * len(ids), pa.string())}
    return pa.table({**texts, "processed_at": moments})


def line(
    insert_id: str | None = '"i"', n: int = 0, *, processed: int | str | None = None, event: str = "E",
    distinct_id: str | None = '"u"', time: int | str = T,
) -> str:  # fmt: skip
    members = [f'"time":{time}', f'"n":{n}']
    members += [f'"$insert_id":{insert_id}'] if insert_id is not None else []
    members += [f'"distinct_id":{distinct_id}'] if distinct_id is not None else []
    members += [f'"mp_processing_time_ms":{processed}'] if processed is not None else []
    return f'{{"event":"{event}","properties":{{{",".join(members)}}}}}'


def careful(text: str) -> str:
    """The same line in a shape that takes the parser's other way."""
    return text.replace(":", ": ", 1)


def numbers(rows: Sequence[Row]) -> list[int]:
    """Which `n` the rows hold."""
    return sorted(int(row["properties"].split('"n":')[1].split(",")[0].rstrip("}")) for row in rows)


def ids(rows: Sequence[Row]) -> set[str]:
    found = {row["event_id"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 3])
def test_the_copy_processed_last_stays(reverse: bool, cut: int) -> None:
    lines = [line(n=1, processed=1709600001000), line(n=2, processed=1709600003000), line(n=3, processed=1709600002000)]
    lines = lines[::-1] if reverse else lines
    kept, lost = settle([lines[at : at + cut] for at in range(0, 3, cut)])
    assert numbers(kept) == [2]
    assert numbers(lost) == [1, 3]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_copy_without_a_processing_time_is_the_first_to_go(reverse: bool) -> None:
    lines = [line(n=1), line(n=2, processed=0), line(n=3, processed='"never"')]
    kept, lost = settle([lines[::-1] if reverse else lines])
    assert numbers(kept) == [2]
    assert numbers(lost) == [1, 3]


def test_of_copies_processed_at_once_one_stays() -> None:
    for processed in (1709600001000, None):
        kept, lost = settle([[line(n=n, processed=processed) for n in range(4)]])
        assert len(kept) == 1
        assert len(lost) == 3
        assert sorted(numbers(kept) + numbers(lost)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "other",
    [
        line(event="e"),
        line(distinct_id='"U"'),
        line(distinct_id='""'),
        line(distinct_id=None),
        line(distinct_id='"null"'),
        line(time=T + 1),
        line('"I"'),
        line('"i "'),
        line('"i\\u0000"'),
    ],
)
def test_events_that_differ_in_any_part_of_the_key_are_two(other: str) -> None:
    kept, lost = settle([[line(), other], [careful(other)]])
    assert len(ids(kept)) == 2
    assert len(lost) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Parts of the key that would spell the same text if one only stood behind the other.
        (line(event="E:1", distinct_id='"u"'), line(event="E", distinct_id='"1:u"')),
        (line(event="E", distinct_id='"u:i:x"'), line('"x:i:i"', event="E", distinct_id='"u"')),
        (line(event="E:-", distinct_id=None), line(event="E", distinct_id='"-"')),
        (line(event="E", distinct_id='"-"'), line(event="E", distinct_id=None)),
    ],
)
def test_no_two_keys_are_taken_for_one(one: str, other: str) -> None:
    kept, _ = settle([[one, other]])
    assert len(ids(kept)) == 2


def test_the_same_time_in_seconds_and_in_milliseconds_is_one_time() -> None:
    kept, _ = settle([[line(time=T), line(time=T // 1000), line(time=f'"{T}"'), line(time=f"{T // 1000}.000")]])
    assert len(kept) == 1


def test_an_insert_id_may_be_a_number() -> None:
    kept, lost = settle([[line("17", 1), line("17", 2), line("1.50", 3), line("1.5", 4), line("-0", 5), line("0", 6)]])
    assert sorted(row["insert_id"] for row in kept) == ["-0", "0", "1.5", "1.50", "17"]
    assert len(lost) == 1


@pytest.mark.parametrize("insert_id", [None, "null", '""'])
def test_events_without_an_insert_id_are_never_merged(insert_id: str | None) -> None:
    same = line(insert_id, 1, processed=1)
    kept, lost = settle([[same, line(insert_id, 2), same], [same]])
    assert numbers(kept) == [1, 1, 1, 2]
    assert lost == []
    assert len(ids(kept)) == 4
    assert {row["insert_id"] for row in kept} == {"" if insert_id == '""' else None}


def test_identical_events_without_an_insert_id_are_numbered_alike_each_time() -> None:
    same, other = line(None, 1), line(None, 2)
    once = ids(settle([[same]])[0])
    twice = ids(settle([[same, other, same]])[0])
    thrice = ids(settle([[other], [same, same], [same]])[0])
    assert once < twice < thrice
    assert len(thrice) == 4
    (first,) = once
    assert twice - once > {hashlib.md5(f"{first}:2".encode()).hexdigest()}


def test_an_event_without_a_usable_time_is_still_one_event() -> None:
    kept, lost = settle([[line(n=1, time='"x"'), line(n=2, time='"x"'), line(n=3, time='"y"'), line(n=4, time="null")]])
    assert len(ids(kept)) == 3
    assert len(lost) == 1


def test_nothing_at_all_is_settled_too() -> None:
    assert settle([]) == ([], [])
    assert settle([[], []]) == ([], [])


# --- against brute force

ROWS = st.builds(
    line,
    insert_id=st.sampled_from([None, '""', "null", '"i"', '"j"', "7", '"7"']),
    n=st.integers(0, 2),
    processed=st.sampled_from([None, 1709600001000, 1709600002000]),
    event=st.sampled_from(["E", "F"]),
    distinct_id=st.sampled_from([None, '""', '"u"']),
    time=st.sampled_from([T, T + 1]),
)


def brute_force(rows: Sequence[Row]) -> Counter[tuple[Any, ...]]:
    """How many rows stay of each key; the key holds what is known of the one that stays."""
    copies: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    result: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        key = (row["event_name"], row["distinct_id"], row["event_time"], row["insert_id"])
        if row["insert_id"] in (None, ""):
            result[(*key, row["processed_at"], row["properties"])] += 1
        else:
            copies[key].append(row)
    for key, group in copies.items():
        latest = max((row["processed_at"] for row in group if row["processed_at"]), default=None)
        result[(*key, latest)] += 1
    return result


def summary(rows: Sequence[Row]) -> Counter[tuple[Any, ...]]:
    return Counter(
        (row["event_name"], row["distinct_id"], row["event_time"], row["insert_id"], row["processed_at"])
        + ((row["properties"],) if row["insert_id"] in (None, "") else ())
        for row in rows
    )


@settings(max_examples=50)
@given(
    st.lists(ROWS, max_size=12), st.randoms(use_true_random=False), st.lists(st.booleans(), min_size=12, max_size=12)
)
def test_any_rows_in_any_order_and_any_blocks_settle_alike(
    lines: list[str], rng: random.Random, other_way: list[bool]
) -> None:
    parsed = _parser.parse(b"".join(text.encode() + b"\n" for text in lines)).rows.to_pylist()
    kept, lost = settle([lines])
    assert summary(kept) == brute_force(parsed)
    assert len(kept) + len(lost) == len(lines)
    shuffled = [careful(text) if other else text for text, other in zip(lines, other_way, strict=False)]
    rng.shuffle(shuffled)
    blocks: list[list[str]] = [[]]
    for text in shuffled:
        if rng.random() < 0.4:
            blocks.append([])
        blocks[-1].append(text)
    again, _ = settle(blocks, rng.choice([0, 500, 1 << 30]))
    assert summary(again) == summary(kept)
    assert ids(again) == ids(kept)


# --- windows that do not fit in memory


@pytest.mark.parametrize("in_memory_bytes", [0, 1, 2_000, 40_000, 1 << 30])
def test_a_window_held_on_disk_settles_like_one_in_memory(in_memory_bytes: int, tmp_path: Path) -> None:
    blocks = [
        [line(f'"i{n % 300}"', n, processed=T + n) for n in range(start, start + 50)] for start in range(0, 900, 50)
    ]
    kept, lost = settle(blocks, in_memory_bytes)
    assert numbers(kept) == list(range(600, 900))
    assert numbers(lost) == list(range(600))


def test_held_tables_come_back_in_order_and_leave_no_file(tmp_path: Path) -> None:
    tables = [_parser.parse((line(n=n) + "\n").encode()).rows for n in range(5)]
    with HeldTables(tmp_path, in_memory_bytes=2 * tables[0].nbytes) as held:
        for table in tables:
            held.add(table)
        assert [numbers(table.to_pylist()) for table in held] == [[0], [1], [2], [3], [4]]
    assert list(tmp_path.iterdir()) == []


def test_a_last_block_without_rows_changes_nothing() -> None:
    kept, lost = settle([[line(n=1, processed=1), line(n=2, processed=2)], []])
    assert len(kept) == len(lost) == 1


A, B, C = "a" * 16, "b" * 16, "c" * 16


def test_an_export_without_a_row_has_no_duplicates() -> None:
    nothing = Duplicates()
    assert nothing.resolve().dropped.tolist() == []
    nothing.see(table_of())
    assert nothing.resolve().dropped.tolist() == []


def test_ids_that_are_half_alike_are_two_and_of_copies_processed_together_the_first_stays() -> None:
    duplicates = Duplicates()
    duplicates.see(table_of(A + B, A + C, B + A, C + C))
    # A part of a table has its ids in the middle of a buffer.
    duplicates.see(table_of(A + A, C + C, B + A, B + B, A + A).slice(1, 2))
    assert duplicates.resolve().dropped.tolist() == [4, 5]
