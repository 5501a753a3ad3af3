"""What the local Mixpanel holds: events by export day, and profiles."""

from __future__ import annotations

import gzip
import json
import re
import struct
import threading
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from .lines import compact_lines, day_of, dump, restated, time_ms

CACHE_BYTES = 256_000_000
"""Bodies of days kept ready, counted before gzip."""

_READ_BYTES = 1_000_000
_DAY_FILE = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl(\.gz)?")
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


class Block:
    """Whole lines, each with its newline; their gzip form is worked out once, when it is first asked for."""

    def __init__(self, plain: bytes = b"", ready_gzip: bytes | None = None) -> None:
        self.ready_gzip = ready_gzip
        if ready_gzip is None:
            self.plain = plain
        self._deflated: bytes | None = None

    @cached_property
    def plain(self) -> bytes:
        return gzip.decompress(self.ready_gzip or b"")

    def lines(self) -> list[bytes]:
        """Without their newlines."""
        lines = self.plain.split(b"\n")
        return lines if lines[-1] else lines[:-1]

    def deflated(self, level: int) -> bytes:
        """A piece of a deflate stream that others can follow."""
        if self._deflated is None:
            deflater = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
            self._deflated = deflater.compress(self.plain) + deflater.flush(zlib.Z_SYNC_FLUSH)
        return self._deflated


def gzipped(blocks: Iterable[Block], level: int) -> list[bytes]:
    """The blocks as one gzip stream of one member, put together from what each has ready.

    Blocks that came as gzip are passed on as they are, as members of their own.
    """
    parts: list[bytes] = []
    crc = size = 0
    inside = False
    for block in blocks:
        if block.ready_gzip is not None:
            if inside:
                parts.append(_gzip_end(crc, size))
            parts.append(block.ready_gzip)
            inside = False
        else:
            if not inside:
                parts.append(_GZIP_HEADER)
                crc = size = 0
            parts.append(block.deflated(level))
            crc = zlib.crc32(block.plain, crc)
            size += len(block.plain)
            inside = True
    if inside:
        parts.append(_gzip_end(crc, size))
    return parts


def _gzip_end(crc: int, size: int) -> bytes:
    # An empty last block of fixed codes ends the deflate stream; then the check sum and the size (RFC 1951, 1952).
    return b"\x03\x00" + struct.pack("<II", crc, size & 0xFFFFFFFF)


class LocalTime:
    """The zone rule of projects created before 2023: exported `time` is the wall clock read as if it were UTC.

    Mixpanel docs: Export Methods; Managing Projects. In a newer project nothing is moved.
    """

    def __init__(self, timezone: str, legacy: bool) -> None:
        self.zone = ZoneInfo(timezone)
        self.legacy = legacy
        self._offset_ms = lru_cache(100_000)(self._look_up_offset_ms)

    def shift_ms(self, true_ms: int) -> int:
        """What has to be added to a true time to get the exported one."""
        # No zone has changed its offset within a quarter of an hour of the clock.
        return self._offset_ms(true_ms // 900_000) if self.legacy else 0

    def today(self, now: datetime) -> date:
        """The day by which to_date is judged."""
        return now.astimezone(self.zone if self.legacy else UTC).date()

    def wall_ms(self, served_ms: int) -> int:
        """An exported time as the project's wall clock, read as if it were UTC: what reports count by."""
        return served_ms if self.legacy else served_ms + self._offset_ms(served_ms // 900_000)

    def served_ms(self, now: datetime) -> int:
        """This moment as an exported time."""
        true_ms = int(now.timestamp() * 1000)
        return true_ms + self.shift_ms(true_ms)

    def _look_up_offset_ms(self, quarter: int) -> int:
        try:
            offset = datetime.fromtimestamp(quarter * 900, self.zone).utcoffset()
        except (OverflowError, ValueError, OSError):
            return 0
        return round(offset.total_seconds() * 1000) if offset else 0


class EventStore:
    """Events by export day: lazily from files, and from what is set or added by hand.

    Files and added events hold true UTC times. A file named for a day (`2024-01-01.jsonl.gz`) is read when that day is
    asked for, and its name is trusted; the lines of any other file are placed by their own times when the store is
    built.
    """

    def __init__(self, folder: Path | None, local_time: LocalTime) -> None:
        self._time = local_time
        self._lock = threading.RLock()
        self._files: dict[date, list[Path]] = defaultdict(list)
        self._added: dict[date, list[bytes]] = defaultdict(list)
        self._set: dict[date, tuple[Block, bool]] = {}
        self._cache: OrderedDict[tuple[date, bool], Block] = OrderedDict()
        self._cached_bytes = 0
        for path in _jsonl_files(folder / "events") if folder is not None else []:
            named = _DAY_FILE.fullmatch(path.name)
            if named:
                self._files[date.fromisoformat(named[1])].append(path)
            else:
                self._place(_file_lines(path), str(path))

    def set_day(self, day: str, block: Block, rewrite_time: bool) -> None:
        """Replace an export day."""
        with self._lock:
            export_day = date.fromisoformat(day)
            self._set[export_day] = (block, rewrite_time)
            self._added.pop(export_day, None)
            self._forget(export_day)

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Put events on the export days of their own times; raises ValueError for one without a time."""
        self._place((dump(event) for event in events), "added events")

    def days(self, from_day: date, to_day: date) -> list[date]:
        """The export days in this range that may hold events."""
        with self._lock:
            known = {*self._files, *self._added, *self._set}
            if self._time.legacy:
                # A local day takes its events from up to three UTC days.
                known |= {day + timedelta(days=step) for day in self._files for step in (-1, 1)}
        return sorted(day for day in known if from_day <= day <= to_day)

    def is_ready(self, day: date, in_ms: bool) -> bool:
        """Whether the day's block is at hand, and small enough to be compressed without a thought."""
        with self._lock:
            block = self._cache.get((day, in_ms))
            return block is not None and _size(block) <= _READ_BYTES

    def block(self, day: date, in_ms: bool) -> Block:
        """The lines of an export day, as they are served."""
        with self._lock:
            block = self._cache.get((day, in_ms))
            if block is None:
                block = self._build(day, in_ms)
                self._remember((day, in_ms), block)
            else:
                self._cache.move_to_end((day, in_ms))
            return block

    def _build(self, day: date, in_ms: bool) -> Block:
        added = [restated(line, in_ms, self._time.shift_ms) for line in self._added.get(day, [])]
        if day in self._set:
            block, rewrite_time = self._set[day]
            if not added and not (rewrite_time and in_ms):
                return block
            lines = block.lines()
            if rewrite_time and in_ms:
                lines = [restated(line, in_ms, lambda _: 0) for line in lines]
        elif self._time.legacy:
            lines = list(self._local_day(day, in_ms))
        else:
            lines = [restated(line, in_ms, self._time.shift_ms) for line in self._from_files(day)]
        lines += added
        return Block(b"".join(line + b"\n" for line in lines))

    def _local_day(self, day: date, in_ms: bool) -> Iterator[bytes]:
        for step in (-1, 0, 1):
            utc_day = day + timedelta(days=step)
            for line in self._from_files(utc_day):
                if (self._export_day(line) or utc_day) == day:
                    yield restated(line, in_ms, self._time.shift_ms)

    def _from_files(self, utc_day: date) -> Iterator[bytes]:
        for path in self._files.get(utc_day, []):
            yield from _file_lines(path)

    def _export_day(self, line: bytes) -> date | None:
        true_ms = time_ms(line)
        return None if true_ms is None else day_of(true_ms + self._time.shift_ms(true_ms))

    def _place(self, lines: Iterable[bytes], origin: str) -> None:
        with self._lock:
            for number, line in enumerate(lines, 1):
                day = self._export_day(line)
                if day is None:
                    raise ValueError(f"{origin}, line {number}: no whole number in properties.time to place it by")
                self._added[day].append(line)
                self._forget(day)

    def _remember(self, key: tuple[date, bool], block: Block) -> None:
        self._cache[key] = block
        self._cached_bytes += _size(block)
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= _size(oldest)

    def _forget(self, day: date) -> None:
        for in_ms in (False, True):
            block = self._cache.pop((day, in_ms), None)
            if block is not None:
                self._cached_bytes -= _size(block)


def _size(block: Block) -> int:
    return len(block.plain if block.ready_gzip is None else block.ready_gzip)


class Profiles:
    """Profiles of users (group id None) and of groups."""

    def __init__(self, folder: Path | None) -> None:
        self._rows: dict[str | None, list[bytes]] = {}
        if folder is not None:
            for name in ("profiles.jsonl", "profiles.jsonl.gz"):
                if (folder / name).exists():
                    self._rows[None] = list(_file_lines(folder / name))
            for path in _jsonl_files(folder / "groups"):
                self._rows[path.name.split(".jsonl")[0]] = list(_file_lines(path))

    def replace(self, profiles: Sequence[Mapping[str, Any] | bytes], data_group_id: str | None = None) -> None:
        """Replace the profiles of users, or of a group; bytes are served as they are."""
        self._rows[data_group_id] = [row if isinstance(row, bytes) else dump(row) for row in profiles]

    def rows(
        self,
        data_group_id: str | None,
        keep: Callable[[str, Mapping[str, Any]], bool] | None,
        output_properties: Sequence[str] | None,
    ) -> list[bytes]:
        """Profiles for which keep(distinct_id, properties) holds; with output_properties, only those keys.

        A row that cannot be read is served only when nothing has to be read in it.
        """
        if keep is None and output_properties is None:
            return self._rows.get(data_group_id, [])
        kept = []
        for row, distinct_id, properties in self._read(data_group_id):
            if keep is not None and not keep(distinct_id, properties):
                continue
            if output_properties is None:
                kept.append(row)
            else:
                wanted = {key: properties[key] for key in output_properties if key in properties}
                kept.append(dump({"$distinct_id": distinct_id, "$properties": wanted}))
        return kept

    def by_id(self, data_group_id: str | None = None) -> dict[str, dict[str, Any]]:
        """The properties of each distinct_id that has a profile."""
        return {distinct_id: properties for _, distinct_id, properties in self._read(data_group_id)}

    def _read(self, data_group_id: str | None) -> Iterator[tuple[bytes, str, dict[str, Any]]]:
        for row in self._rows.get(data_group_id, []):
            try:
                profile = json.loads(row)
                yield row, str(profile["$distinct_id"]), dict(profile.get("$properties") or {})
            except (ValueError, TypeError, KeyError):
                continue


def _jsonl_files(folder: Path) -> list[Path]:
    """In the order of their names, also in folders below."""
    return sorted(path for path in folder.rglob("*") if path.name.endswith((".jsonl", ".jsonl.gz")))


def _file_lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain or gzip file, compact."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from compact_lines(iter(lambda: b"".join(file.readlines(_READ_BYTES)), b""))
