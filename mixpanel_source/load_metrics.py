"""What a load did and spent: counted while it runs, as whoever is told of its progress."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mixpanel_source.client import RequestStats
from mixpanel_source.progress import LoadProgress, Stage
from mixpanel_source.windows import Window


@dataclass(frozen=True)
class LoadMetrics:
    """The figures of one load; its columns in `load_runs` have these names."""

    rows: int = 0
    days: int = 0
    """Export days replaced, and days of reports."""
    received_bytes: int = 0
    """Of answers, as they were sent: compressed."""
    property_bytes: int = 0
    """Of the properties of the events, as `bytes` of `event_days`."""
    requests: int = 0
    requests_by_api: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    waits: int = 0
    waited_s: float = 0.0
    download_s: float = 0.0
    """From sending a request to its last byte; where several are under way at once, the sum of theirs."""
    convert_s: float = 0.0
    """Of events: from bodies to Parquet."""
    write_s: float = 0.0
    """dlt's and DuckDB's, into the database."""
    typed_s: float = 0.0
    """Typed tables."""
    load_ids: tuple[str, ...] = ()
    """The load packages it wrote: `_dlt_load_id` of their rows."""


class RunMetrics:
    """Counts what it passes on to `told`. `requests` is for the clients of the load. Used by several threads."""

    def __init__(self, told: LoadProgress) -> None:
        self.requests = RequestStats()
        self.planned = told.planned
        self.received = told.received
        self.profiles = told.profiles
        self.writing = told.writing
        self.waiting = told.waiting
        self.interrupted = told.interrupted
        self._told = told
        self._lock = threading.Lock()
        self._seconds: Counter[Stage] = Counter()
        self._property_bytes = 0
        self._load_ids: list[str] = []

    def loaded(self, window: Window, rows: int, size: int) -> None:
        with self._lock:
            self._property_bytes += size
        self._told.loaded(window, rows, size)

    def spent(self, stage: Stage, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds  # type: ignore[assignment]  # a Counter of seconds
        self._told.spent(stage, seconds)

    def written(self, table: str, load_ids: Sequence[str]) -> None:
        with self._lock:
            self._load_ids += load_ids
        self._told.written(table, load_ids)

    def metrics(self, rows: int, days: int) -> LoadMetrics:
        """The figures so far."""
        asked = self.requests
        with self._lock:
            seconds = {stage: round(self._seconds.get(stage, 0.0), 3) for stage in ("convert", "write", "typed")}
            return LoadMetrics(
                rows=rows,
                days=days,
                received_bytes=asked.received_bytes,
                property_bytes=self._property_bytes,
                requests=asked.requests,
                requests_by_api=dict(sorted(asked.by_api.items())),
                retries=asked.retries,
                waits=asked.waits,
                waited_s=round(asked.waited_s, 3),
                download_s=round(asked.seconds, 3),
                convert_s=seconds["convert"],
                write_s=seconds["write"],
                typed_s=seconds["typed"],
                load_ids=tuple(self._load_ids),
            )
