"""Mixpanel's rule for duplicates, over the tables of one window.

Same event, distinct_id, time and `$insert_id` is one event, and the copy processed last stays; rows without
`$insert_id` are never merged (Mixpanel docs: Event deduplication). Identical rows without one are told apart by
their number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_KEY = np.dtype([("high", "u8"), ("low", "u8")])
_NEVER_PROCESSED = np.iinfo(np.int64).min


@dataclass
class Duplicates:
    """Sees every table of a window once, in order, and then says what is to change in each.

    25 bytes a row are held: the event_id's 16, when Mixpanel processed the row, and whether it has an `$insert_id`.
    Resolving takes another 8 or 9.
    """

    _keys: list[npt.NDArray[np.void]] = field(default_factory=list)
    _processed: list[npt.NDArray[np.int64]] = field(default_factory=list)
    _without_insert_id: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def see(self, table: pa.Table) -> None:
        ids = table.column("event_id").combine_chunks()
        self._keys.append(_keys(ids))
        processed = table.column("processed_at").cast(pa.int64()).fill_null(_NEVER_PROCESSED)
        self._processed.append(processed.to_numpy())
        absent = pc.equal(table.column("insert_id").fill_null(""), "")
        self._without_insert_id.append(absent.to_numpy())

    def resolve(self) -> Resolution:
        """Which rows go, and which take another event_id. Rows are numbered from 0 over all tables seen."""
        if not self._keys:
            return Resolution(np.empty(0, np.int64), {})
        copies: dict[bytes, list[_Copy]] = {}
        for copy in self._suspects():
            copies.setdefault(copy.key, []).append(copy)
        dropped: list[int] = []
        renamed: dict[int, str] = {}
        for key, rows in copies.items():
            if len(rows) == 1:
                continue
            if rows[0].is_numbered:
                for number, copy in enumerate(rows[1:], start=2):
                    renamed[copy.row] = _numbered_id(key.hex(), number)
            else:
                stays = max(rows, key=lambda copy: (copy.processed, -copy.row))
                dropped.extend(copy.row for copy in rows if copy is not stays)
        return Resolution(np.array(sorted(dropped), np.int64), renamed)

    def _suspects(self) -> Iterator[_Copy]:
        """The rows that share the first half of their key with others: few, and in the export's order."""
        high = np.concatenate([keys["high"] for keys in self._keys])
        high.sort()
        repeated = np.unique(high[1:][high[1:] == high[:-1]])
        if not len(repeated):
            return
        first_row = 0
        for keys, processed, numbered in zip(self._keys, self._processed, self._without_insert_id, strict=True):
            place = np.searchsorted(repeated[:-1], keys["high"])
            for row in np.flatnonzero(repeated[place] == keys["high"]).tolist():
                yield _Copy(first_row + row, keys[row].tobytes(), processed[row], numbered[row])
            first_row += len(keys)


class _Copy(NamedTuple):
    row: int
    key: bytes
    processed: int
    is_numbered: bool


@dataclass(frozen=True)
class Resolution:
    """`dropped`: the rows that are duplicates, ascending; `renamed`: the event_ids of rows that are not the first."""

    dropped: npt.NDArray[np.int64]
    renamed: dict[int, str]

    def apply(self, table: pa.Table, first_row: int) -> tuple[pa.Table, pa.Table]:
        """`table`, whose first row has the number `first_row`, as it is to be loaded, and what it loses."""
        renamed = {row - first_row: id_ for row, id_ in self.renamed.items() if 0 <= row - first_row < len(table)}
        if renamed:
            ids = table.column("event_id").to_pylist()
            for row, id_ in renamed.items():
                ids[row] = id_
            place = table.schema.get_field_index("event_id")
            table = table.set_column(place, table.schema.field(place), pa.array(ids, pa.string()))
        start, end = np.searchsorted(self.dropped, [first_row, first_row + len(table)])
        if start == end:
            return table, table.slice(0, 0)
        gone = (self.dropped[start:end] - first_row).tolist()
        # Slices between the few that go: nothing is copied.
        kept = [table.slice(before + 1, row - before - 1) for before, row in pairwise([-1, *gone, len(table)])]
        return pa.concat_tables(kept), table.take(pa.array(gone))


def _numbered_id(event_id: str, number: int) -> str:
    return hashlib.md5(f"{event_id}:{number}".encode(), usedforsecurity=False).hexdigest()


def _keys(ids: pa.StringArray) -> npt.NDArray[np.void]:
    """The 16 bytes that each hexadecimal event_id spells."""
    offset = ids.offset * 32
    text = ids.buffers()[2][offset : offset + 32 * len(ids)].to_pybytes() if len(ids) else b""
    return np.frombuffer(bytes.fromhex(text.decode()), _KEY)
