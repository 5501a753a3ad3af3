"""How far a load is, on a terminal's stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mixpanel_source.cli.messages import note
from mixpanel_source.windows import Window

_WAIT_WORTH_A_LINE_S = 5.0


class LoadDisplay:
    """Silent where `quiet`, or where stderr is not a terminal; a long wait is told there, too, unless `quiet`."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self._quiet = quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._events: TaskID | None = None
        self._profiles: TaskID | None = None
        self._rows = self._bytes = self._body_bytes = self._days = self._all_days = 0

    @contextmanager
    def shown(self) -> Iterator[LoadDisplay]:
        with self._progress:
            yield self

    def planned(self, windows: Sequence[Window]) -> None:
        self._all_days = sum(map(len, windows))
        self._events = self._progress.add_task("events", total=self._all_days, state="")
        self._show_events()

    def received(self, compressed_bytes: int) -> None:
        if compressed_bytes < self._body_bytes:  # another body has begun
            self._bytes += self._body_bytes
        self._body_bytes = compressed_bytes
        self._show_events()

    def loaded(self, window: Window, rows: int, size: int) -> None:
        self._rows += rows
        self._days += len(window)
        self._show_events()

    def profiles(self, read: int, total: int | None) -> None:
        if self._profiles is None:
            self._profiles = self._progress.add_task("profiles", total=total, state="")
        of_all = "" if total is None else f" of {total:,}"
        self._progress.update(self._profiles, completed=read, total=total, state=f"{read:,}{of_all}")

    def waiting(self, seconds: float, why: str) -> None:
        if seconds < _WAIT_WORTH_A_LINE_S or self._quiet:
            return
        length = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
        text = f"waiting {length}: {why}"
        if self._progress.disable:
            note(text)
        else:
            self._progress.console.print(text, markup=False, highlight=False)

    def _show_events(self) -> None:
        if self._events is not None:
            received = decimal(self._bytes + self._body_bytes)
            state = f"day {self._days:,} of {self._all_days:,}, {self._rows:,} rows, {received}"
            self._progress.update(self._events, completed=self._days, state=state)
