"""What a stopped load has on the disk is not asked for again; what is not whole, or too old, is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import pytest
from conftest import Clock, RunLoad, Sql
from export_lines import day_lines, days
from killed_load import start_child, wait_for

from mixpanel_source.exports import EventFilter, Exports
from mixpanel_source.forget import forget
from mixpanel_source.load_plan import plan_load
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.warehouse import kept_folder
from mixpanel_source.windows import DateRange

WEEK = days("2024-03-01", 7)


@pytest.fixture
def project(project: Project, sandbox: Sandbox) -> Project:
    """Each day is an export of its own."""
    for number, day in enumerate(WEEK):
        sandbox.set_day(day, day_lines(day, 30, first=100 * number))
    return replace(project, window_days=1)


Stop = Callable[..., None]


@pytest.fixture
def stop(run_load: RunLoad, sandbox: Sandbox) -> Stop:
    """A load that is stopped when `after` windows were read, and nothing is written yet."""

    def run(after: int = 3, **options: object) -> None:
        def next_(exports: Exports, original: Callable[[Exports], object] = Exports.next) -> object:
            nonlocal after
            if after == 0:
                raise KeyboardInterrupt
            after -= 1
            return original(exports)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Exports, "next", next_)
            with pytest.raises(KeyboardInterrupt):
                run_load(WEEK[0], WEEK[-1], **options)  # type: ignore[arg-type]

    return run


def asked(sandbox: Sandbox) -> list[str]:
    """The days exported since the last call."""
    found = [request.params["from_date"] for request in sandbox.requests if request.endpoint == "export"]
    sandbox.requests.clear()
    return found


def kept(database: Path) -> list[str]:
    """The days of the exports that are kept."""
    return sorted(json.loads(path.read_text())["from_date"] for path in kept_folder(database).glob("*.json"))


def all_is_there_once(sql: Sql) -> None:
    assert sql("select count(*), count(distinct event_id), count(distinct event_date) from events") == [(210, 210, 7)]
    assert sql("select count(*), sum(requests), bool_and(complete) from event_days") == [(7, 7, True)]


def test_what_a_stopped_load_has_is_not_asked_for_again(
    stop: Stop, run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path
) -> None:
    stop()
    before = asked(sandbox)
    here = kept(database)
    assert len(here) >= 3
    assert set(here) <= set(before)
    run_load(WEEK[0], WEEK[-1])
    assert sorted(asked(sandbox)) == sorted(set(WEEK) - set(here))
    assert kept(database) == []
    assert list(kept_folder(database).iterdir()) == []
    all_is_there_once(sql)


def test_a_plan_counts_on_what_a_stopped_load_has(
    stop: Stop, run_load: RunLoad, sandbox: Sandbox, project: Project, database: Path
) -> None:
    stop()
    here = kept(database)
    asked(sandbox)
    first, last = map(date.fromisoformat, (WEEK[0], WEEK[-1]))
    plan = partial(plan_load, project, database, asked=DateRange(first, last))
    found = plan()
    assert [str(day) for window in found.kept for day in window.days] == here
    assert found.there == []
    assert kept(database) == here  # looking takes nothing
    assert plan(asked=DateRange(first, last, refresh=True)).kept == []
    assert plan(filter_=EventFilter(("E",))).kept == []
    run_load(WEEK[0], WEEK[-1])
    assert len(asked(sandbox)) == found.forecast.requests == 7 - len(here)


@pytest.mark.long
def test_what_is_left_is_of_use_only_to_a_load_that_asks_for_the_same(
    stop: Stop, run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path, project: Project, tmp_path: Path
) -> None:
    stop()
    here = kept(database)
    asked(sandbox)
    run_load(here[0], here[0], events=("E",))
    assert asked(sandbox) == [here[0]]
    # Of a day that was exported since, what is older is removed; the others wait for their load.
    assert kept(database) == here
    run_load(here[0], here[1], database=tmp_path / "other.duckdb")
    assert sorted(asked(sandbox)) == here[:2]
    run_load(here[1], here[1])
    assert asked(sandbox) == []
    assert kept(database) == here[2:]
    run_load(here[2], here[2], refresh=True)
    assert asked(sandbox) == [here[2]]
    assert kept(database) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "hours", "is_used"), [({}, 23, True), ({}, 25, False), ({"spool_keep_hours": 1}, 2, False)]
)
def test_it_is_kept_for_a_day(
    options: dict[str, float],
    hours: int,
    is_used: bool,
    stop: Stop,
    run_load: RunLoad,
    sandbox: Sandbox,
    database: Path,
    project: Project,
    clock: Clock,
) -> None:
    stop()
    here = kept(database)
    asked(sandbox)
    clock.now += timedelta(hours=hours)
    run_load(here[0], here[0], project=replace(project, **options))  # type: ignore[arg-type]
    assert asked(sandbox) == ([] if is_used else here[:1])
    assert kept(database) == (here[1:] if is_used else [])


@pytest.mark.long
def test_the_folders_of_other_databases_are_swept_too(
    stop: Stop, run_load: RunLoad, database: Path, clock: Clock, tmp_path: Path
) -> None:
    stop()
    assert kept(database)
    left = kept_folder(database).with_name("mpload-package-left")
    left.touch()
    os.utime(left, (0, 0))
    run_load(WEEK[0], WEEK[0], database=tmp_path / "other.duckdb")
    assert kept(database)
    assert not left.exists()
    clock.now += timedelta(hours=25)
    run_load(WEEK[1], WEEK[1], database=tmp_path / "other.duckdb")
    assert list(kept_folder(database).iterdir()) == []  # the folder stays: its own load may have just made it


def test_a_day_that_is_not_over_is_not_kept(
    stop: Stop, run_load: RunLoad, sandbox: Sandbox, database: Path, clock: Clock
) -> None:
    clock.now = clock.now.replace(day=7)
    stop(after=7)
    assert set(asked(sandbox)) == set(WEEK)
    assert kept(database) == WEEK[:6]


def spoilt(path: Path, how: str) -> None:
    body = path.with_name(path.name.removesuffix(".json"))
    if how == "shorter":
        body.write_bytes(body.read_bytes()[:-1])
    elif how == "other bytes":
        content = bytearray(body.read_bytes())
        content[len(content) // 2] ^= 0xFF
        body.write_bytes(content)
    elif how == "half a description":
        path.write_text(path.read_text()[:-20])
    elif how == "no description":
        path.unlink()
    else:
        body.unlink()


@pytest.mark.long
@pytest.mark.parametrize("how", ["shorter", "other bytes", "half a description", "no description", "no body"])
def test_what_is_not_whole_is_asked_for_again(
    how: str, stop: Stop, run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path
) -> None:
    stop(after=2)
    here = kept(database)
    path = next(path for path in kept_folder(database).glob("*.json") if here[0] in path.read_text())
    spoilt(path, how)
    (kept_folder(database) / "mpload-export-left").touch()
    (kept_folder(database) / "export-left.json.new").touch()
    asked(sandbox)
    run_load(WEEK[0], WEEK[-1])
    assert sorted(asked(sandbox)) == sorted({*WEEK, here[0]} - set(here[1:]))
    assert list(kept_folder(database).iterdir()) == []
    assert sql("select count(*), count(distinct event_id) from events") == [(210, 210)]


def test_nothing_is_kept_where_that_is_turned_off(
    stop: Stop, database: Path, project: Project, sandbox: Sandbox
) -> None:
    stop(project=replace(project, spool_keep_hours=0))
    assert list(kept_folder(database).iterdir()) == []


@pytest.mark.long
def test_forgetting_people_removes_what_is_kept(stop: Stop, run_load: RunLoad, database: Path) -> None:
    run_load("2024-02-01", "2024-02-01")
    stop()
    assert kept(database)
    forget(database, ["somebody"])
    assert not kept_folder(database).exists()


@pytest.mark.long
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_killed_at_any_step_of_keeping_it_leaves_nothing_that_is_taken_for_whole_and_is_not(
    step: str, number: int, run_load: RunLoad, sandbox: Sandbox, sql: Sql, database: Path, project: Project
) -> None:
    single = replace(project, concurrent_exports=1)

    def killed() -> None:
        left = number
        original = getattr(os, step)

        def stepping(*args: object, **options: object) -> object:
            nonlocal left
            path = str(args[0])
            if step == "fsync" or str(kept_folder(database)) in path:
                if left == 0:
                    os.kill(os.getpid(), 9)
                left -= 1
            return original(*args, **options)

        setattr(os, step, stepping)
        run_load(WEEK[0], WEEK[-1], project=single)

    assert wait_for(start_child(killed)) == -9
    run_load(WEEK[0], WEEK[-1], project=single)
    all_is_there_once(sql)
