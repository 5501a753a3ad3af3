"""How far a load is, on a terminal's stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from math import ceil

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mixpanel_source.cli.messages import WAIT_WORTH_A_LINE_S, logs_json_to_stderr, note
from mixpanel_source.cli.words import counted, length, requests_in_words, time_in_words
from mixpanel_source.planner import Forecast, seconds_to_ask
from mixpanel_source.progress import Stage
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.windows import Window


class _Countdown:
    """Shows what is left of a wait, each time it is shown."""

    def __init__(self, seconds: float, why: str) -> None:
        self._until = time.monotonic() + seconds
        self._why = why

    def __str__(self) -> str:
        return f"{timedelta(seconds=ceil(self.left_s))}, {self._why}"

    @property
    def left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())


class LoadDisplay:
    """Silent where `quiet`, or where stderr is not a terminal; long waits are told there, too, unless `quiet`.

    `ledger` is the one that the load will wait for, if it may wait.
    """

    def __init__(self, quiet: bool) -> None:
        self.ledger: RequestLedger | None = None
        quiet = quiet or logs_json_to_stderr()  # which tells of waits by itself
        console = Console(stderr=True)
        self._quiet = quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=15),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._events: TaskID | None = None
        self._profiles: TaskID | None = None
        self._wait: tuple[TaskID, _Countdown] | None = None
        self._lock = threading.Lock()
        self._is_writing = False
        self._read = "0"
        self._rows = self._bytes = self._all_days = 0
        self._days: set[date] = set()

    @contextmanager
    def shown(self) -> Iterator[LoadDisplay]:
        with self._progress:
            yield self

    def planned(self, forecast: Forecast) -> None:
        self._all_days = forecast.days + forecast.days_here
        self._tell_of_waits(forecast)
        self._events = self._progress.add_task("events", total=self._all_days, state="")
        self._show_events()

    def received(self, compressed_bytes: int) -> None:
        self._bytes = max(self._bytes, compressed_bytes)  # several threads tell of it
        self._end_wait()
        self._show_events()

    def loaded(self, window: Window, rows: int, size: int) -> None:
        self._rows += rows
        self._days.update(window.days)
        self._is_writing = False
        if self._wait is not None and self._wait[1].left_s == 0:
            self._end_wait()
        self._show_events()

    def profiles(self, read: int, total: int | None) -> None:
        if self._profiles is None:
            self._is_writing = False
            self._show_events()
            self._profiles = self._progress.add_task("profiles", total=total, state="")
        self._end_wait()
        of_all = "" if total is None else f" of {total:,}"
        self._read = f"{read:,}"
        self._progress.update(self._profiles, completed=read, total=total, state=f"{self._read}{of_all}")

    def writing(self) -> None:
        if self._profiles is None:
            self._is_writing = True
            self._show_events()
        else:
            self._progress.update(self._profiles, state=f"{self._read} read, writing")

    def waiting(self, seconds: float, why: str) -> None:
        if seconds < WAIT_WORTH_A_LINE_S or self._quiet:
            return
        if self._progress.disable:
            note(f"waiting {length(seconds)}: {why}")
        else:
            self._end_wait()
            countdown = _Countdown(seconds, why)
            self._wait = (self._progress.add_task("waiting", total=None, state=countdown), countdown)

    def interrupted(self) -> None:
        note("finishing what is being written; Ctrl-C once more stops at once")

    def spent(self, stage: Stage, seconds: float) -> None: ...

    def written(self, table: str, load_ids: Sequence[str]) -> None: ...

    def _tell_of_waits(self, forecast: Forecast) -> None:
        """Before a load that the request limit will, or may, hold up."""
        if self.ledger is None or self._quiet:
            return
        spent = self.ledger.spent("export")
        free = spent.allowed - spent.used
        if forecast.requests_at_most <= free:
            return
        note(
            f"{counted(forecast.days, 'day')}: {requests_in_words(forecast.requests, forecast.requests_at_most)},"
            f" {time_in_words(*(seconds_to_ask(n, spent) for n in (forecast.requests, forecast.requests_at_most)))}"
            f" at {spent.allowed} an hour ({free} {'is' if free == 1 else 'are'} free now)"
        )

    def _end_wait(self) -> None:
        with self._lock:
            wait, self._wait = self._wait, None
        if wait is not None:
            self._progress.remove_task(wait[0])

    def _show_events(self) -> None:
        if self._events is not None:
            received = decimal(self._bytes)
            state = f"day {len(self._days):,} of {self._all_days:,}, {self._rows:,} rows, {received}"
            writing = ", writing" if self._is_writing else ""
            self._progress.update(self._events, completed=len(self._days), state=state + writing)
