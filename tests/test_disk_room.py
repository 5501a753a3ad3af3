"""A disk that is full, or filling up, and files that cannot be written: told before requests are spent on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import duckdb
import pytest
from conftest import RunLoad, Sql
from export_lines import day_lines

from mixpanel_source import disk_room
from mixpanel_source.disk_room import DiskRoom
from mixpanel_source.errors import ConfigError, WarehouseError
from mixpanel_source.fetch import FetchResult, fetch_events, fetch_profiles
from mixpanel_source.load import load
from mixpanel_source.planner import Plan
from mixpanel_source.progress import NoProgress
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.warehouse import DatabaseBusyError
from mixpanel_source.windows import DateRange, Window, days_between

DAYS = date(2024, 3, 1), date(2024, 3, 3)


@pytest.fixture(autouse=True)
def _days(sandbox: Sandbox) -> None:
    for day in days_between(*DAYS):
        sandbox.set_day(str(day), day_lines(str(day), 30))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """20 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_too_full_is_told_before_anything_is_asked(
    run_load: RunLoad, project: Project, sandbox: Sandbox, small_disk: Path
) -> None:
    roomy = replace(project, min_free_mb=10)
    run_load("2024-03-01", "2024-03-01", project=roomy, database=small_disk / "x.duckdb")
    asked = len(sandbox.requests)
    with pytest.raises(WarehouseError, match=r"too little room on the disk of .*small: ") as caught:
        run_load("2024-03-02", "2024-03-02", project=replace(project, min_free_mb=30), database=small_disk / "x.duckdb")
    assert "--min-free-mb" in str(caught.value.hint)
    assert len(sandbox.requests) == asked
    with pytest.raises(ConfigError, match="min_free_mb"):
        replace(project, min_free_mb=-1)


@pytest.mark.parametrize("fetch", [partial(fetch_events, from_date=DAYS[0], to_date=DAYS[1]), fetch_profiles])
def test_a_snapshot_needs_room_too(
    fetch: Callable[..., FetchResult], project: Project, sandbox: Sandbox, small_disk: Path
) -> None:
    with pytest.raises(WarehouseError, match=r"too little room on the disk of .*small: "):
        fetch(replace(project, min_free_mb=30), small_disk / "x.duckdb", "snapshot")
    assert not sandbox.requests
    assert fetch(replace(project, min_free_mb=5), small_disk / "x.duckdb", "snapshot").table == "snapshot"


def test_a_disk_that_fills_up_ends_the_load_with_what_it_had_committed(
    project: Project, sandbox: Sandbox, database: Path, sql: Sql, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Filling(NoProgress):
        def loaded(self, window: Window, rows: int, size: int) -> None:
            (small_disk / "filler").write_bytes(bytes(16_000_000))

    monkeypatch.setenv("MP_DATA_DIR", str(small_disk / "data"))
    narrow = replace(project, min_free_mb=5, window_days=1, concurrent_exports=1)
    result = load(narrow, database, ("events", "profiles"), asked=DateRange(*DAYS), progress=Filling())
    assert ["too little room" in str(table.error) for table in result.tables] == [True, True]
    assert {request.endpoint for request in sandbox.requests} & {"engage"} == set()
    assert 1 <= len(sql("SELECT day FROM event_days WHERE complete")) < 3
    (small_disk / "filler").unlink()
    assert load(narrow, database, ("events",), asked=DateRange(*DAYS)).error is None
    assert sql("SELECT count(*), count(DISTINCT event_id) FROM events") == [(90, 90)]


def test_a_disk_that_fills_up_without_a_look_at_it_is_told_as_full(
    run_load: RunLoad, project: Project, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MP_DATA_DIR", str(small_disk))
    (small_disk / "spool").mkdir()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(30_000_000))
    with pytest.raises(WarehouseError, match="No space left on device") as caught:
        run_load("2024-03-01", "2024-03-01", project=replace(project, min_free_mb=0))
    assert "free some space" in str(caught.value.hint)


def test_what_is_expected_counts_new_days_and_one_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(days_between(*DAYS), sizes=dict.fromkeys(days_between(*DAYS), 1_000_000), event_bytes=1000)
    room = DiskRoom(tmp_path / "x.duckdb", tmp_path, 500)
    for free, there, fits in (
        (1370, (), True),  # 500 of room, a tenth of 3000, a window of 520
        (1270, (), False),
        (1270, DAYS, True),
        (970, list(days_between(*DAYS)), False),
    ):
        monkeypatch.setattr(disk_room, "free_bytes", lambda _, free=free: free * 1_000_000)
        if fits:
            room.check_forecast(plan.forecast(), there)
        else:
            with pytest.raises(WarehouseError, match=r"MB are free, and a load takes (1,320|1,020) MB"):
                room.check_forecast(plan.forecast(), there)
    DiskRoom(tmp_path / "x.duckdb", tmp_path, 0).check()


@pytest.mark.parametrize("what", ["writer", "reader", "spool", "read-only spool", "read-only"])
def test_what_cannot_be_written_is_told_before_anything_is_asked(
    what: str,
    run_load: RunLoad,
    project: Project,
    sandbox: Sandbox,
    database: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    holder = None
    if what in ("writer", "reader"):
        duckdb.connect(str(database)).close()
        code = (
            "import sys, duckdb\n"
            "connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == 'reader')\n"
            "print(flush=True)\ninput()"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(database), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()
    elif what == "spool":
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "spool").write_text("in the way")
    else:
        folder: Path = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        if what == "read-only":
            database = folder / "x.duckdb"
        else:
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "spool").symlink_to(folder)
    try:
        with pytest.raises(WarehouseError) as caught:
            run_load(project=replace(project, min_free_mb=0), database=database)
    finally:
        if holder is not None:
            holder.communicate(b"\n")
    assert isinstance(caught.value, DatabaseBusyError) == (holder is not None)
    if holder is not None:
        assert str(holder.pid) in caught.value.message
    assert caught.value.hint
    assert sandbox.requests == []
