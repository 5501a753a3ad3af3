"""Exports under way at once: how many, and that none holds up another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import Sql
from export_lines import day_lines, days

from mixpanel_source import settings
from mixpanel_source.client import MixpanelClient
from mixpanel_source.errors import ServerError
from mixpanel_source.load import LoadResult, load
from mixpanel_source.progress import NoProgress
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox
from mixpanel_source.windows import DateRange, Window

WEEK = days("2024-03-01", 7)
LATE = 20.0
"""Seconds after which what should have happened did not."""


@pytest.fixture
def project(project: Project, sandbox: Sandbox) -> Project:
    """Each day is an export of its own."""
    for number, day in enumerate(WEEK):
        sandbox.set_day(day, day_lines(day, 3, first=10 * number))
    return replace(project, window_days=1)


class Gate:
    """What exports pass before they are asked for: counts them, and holds back those of some days."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self._inside = 0
        self.together: threading.Barrier | None = None
        """So many have to be there at once, after the first one."""
        self.held: dict[str, Callable[[], bool]] = {}
        """Until that is true."""
        self._seen = 0
        self._lock = threading.Lock()
        export = MixpanelClient.export

        def gated(client: MixpanelClient, window: Window, **options: Any) -> Any:
            with self._passing():
                until = time.monotonic() + LATE
                while not self.held.get(str(window), lambda: True)():
                    if time.monotonic() > until:
                        raise RuntimeError(f"{window} is held up")
                    time.sleep(0.02)
                return export(client, window, **options)

        monkeypatch.setattr(MixpanelClient, "export", gated)

    @contextmanager
    def _passing(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            self._seen += 1
            self.most = max(self.most, self._inside)
            is_first = self._seen == 1
        try:
            if self.together is not None and not is_first:
                self.together.wait(LATE)
            yield
        finally:
            with self._lock:
                self._inside -= 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def load_week(project: Project, database: Path, progress: NoProgress | None = None) -> LoadResult:
    asked = DateRange(date.fromisoformat(WEEK[0]), date.fromisoformat(WEEK[-1]))
    return load(project, database, ["events"], asked=asked, progress=progress)


def loaded(sql: Sql) -> set[str]:
    return {day for (day,) in sql("select day::varchar from event_days where complete")}


def test_so_many_exports_are_under_way_at_once(project: Project, database: Path, gate: Gate, sql: Sql) -> None:
    gate.together = threading.Barrier(3)
    assert load_week(replace(project, concurrent_exports=3), database).error is None
    assert gate.most == 3
    assert loaded(sql) == set(WEEK)


def test_none_is_begun_while_others_fill_the_disk(project: Project, database: Path, gate: Gate, sql: Sql) -> None:
    assert load_week(replace(project, max_spool_bytes=1), database).error is None
    assert gate.most == 1
    assert loaded(sql) == set(WEEK)


def test_one_that_takes_long_does_not_hold_up_those_that_are_here(
    project: Project, database: Path, gate: Gate, sql: Sql
) -> None:
    others: set[str] = set()

    class Told(NoProgress):
        def loaded(self, window: Window, rows: int, size: int) -> None:
            others.add(str(window))

    gate.held[WEEK[2]] = lambda: len(others) == len(WEEK) - 1
    assert load_week(project, database, Told()).error is None
    assert loaded(sql) == set(WEEK)


def test_an_error_is_raised_after_all_that_was_asked_for_is_loaded(
    project: Project, database: Path, gate: Gate, sandbox: Sandbox, sql: Sql
) -> None:
    seen_at: list[float] = []

    def has_long_failed() -> bool:
        if not seen_at and any(request.status == 500 for request in sandbox.requests):
            seen_at.append(time.monotonic())
        return bool(seen_at) and time.monotonic() > seen_at[0] + 1.0

    gate.held |= dict.fromkeys(WEEK[1:4], lambda: gate.most == 4)
    gate.held |= dict.fromkeys(WEEK[4:], has_long_failed)
    sandbox.faults.next("export", Fault.none(), Fault.http(500))
    result = load_week(replace(project, retries=0), database)
    assert isinstance(result.error, ServerError)
    asked = {request.params["from_date"] for request in sandbox.requests if request.status == 200}
    assert WEEK[4] in asked
    assert loaded(sql) == asked


@pytest.mark.long
def test_one_alone_waits_for_the_request_limit(
    project: Project, database: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An hour of 2 seconds and 3 requests, in which anything over a tenth of a second is a long wait.
    monkeypatch.setitem(settings.LIMITS, "export", ((3, 2.0),))
    monkeypatch.setattr("mixpanel_source.downloads.SHORT_WAIT_S", 0.1)
    rest = MixpanelClient._rest
    resting: list[str] = []
    most: list[int] = []

    def rested(self: MixpanelClient, seconds: float) -> None:
        resting.append("")
        most.append(len(resting))
        rest(self, seconds)
        resting.pop()

    monkeypatch.setattr(MixpanelClient, "_rest", rested)
    assert load_week(project, database).error is None
    assert max(most) == 1
    assert loaded(sql) == set(WEEK)
