"""What orchestrators call, with another destination than a DuckDB file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pytest
from conftest import Clock
from export_lines import day_lines, days

from destinations.conftest import Place, contents
from mixpanel_source.orchestration import days_between, load_days, load_table, status_of, target_for, windows_to_load
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox


@pytest.mark.parametrize("kind", ["postgres", "sqlite", "ducklake-sqlite", "delta", "iceberg"])
def test_windows_are_loaded_once_as_planned(
    kind: str, make_place: Callable[[str], Place], sandbox: Sandbox, project: Project, clock: Clock
) -> None:
    place = make_place(kind)
    target = target_for(project, place.destination, "of_us")
    project = replace(project, max_window_events=10)
    month = days("2024-02-01", 11)
    for number, day in enumerate(month):
        sandbox.set_day(day, day_lines(day, 1 if number else 12))

    def exports() -> int:
        return sum(request.endpoint == "export" for request in sandbox.requests)

    asked = days_between(month[0], month[-1])
    windows = windows_to_load(project, target, asked)
    assert [str(one.window) for one in windows] == ["2024-02-01", "2024-02-02 to 2024-02-11"]
    for one in windows:
        load_days(project, target, one.window, at_once=one.events is not None)
    assert exports() == 2
    assert windows_to_load(project, target, asked) == []
    again = load_days(project, target, asked)
    assert (again.requests, again.rows, len(again.days)) == (0, 22, 11)
    # A day that is asked for once more comes back as it is now.
    sandbox.set_day(month[1], day_lines(month[1], 3))
    clock.now += timedelta(hours=1)
    second = date.fromisoformat(month[1])
    done = load_days(project, target, days_between(second, second), refresh=True)
    assert (done.requests, done.rows) == (1, 3)
    assert len(contents(target, "events")["events"]) == 24
    sandbox.set_profiles([{"$distinct_id": "u", "$properties": {}}])
    assert load_table(project, target, "profiles").metrics.rows == 1
    told = status_of(project, target)
    assert (told.days, told.rows, told.profiles) == (11, 24, 1)
    assert told.missing_days[0].first == date.fromisoformat(month[-1]) + timedelta(days=1)
