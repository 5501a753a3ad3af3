"""Which files a load takes for its database, and what it says of the others."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from conftest import RunLoad
from export_lines import day_lines

from mixpanel_source.errors import ConfigError, MixpanelDataError, WarehouseError
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.status import status
from mixpanel_source.warehouse import check_database, opened, query


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    ["it's.duckdb", "50%s %d.duckdb", "a#b?c=d.duckdb", "日本 ü.duckdb", 'q"[a]*.db', "system.duckdb", "x" * 235],
)
def test_a_database_may_have_any_name_a_file_may_have(
    name: str, run_load: RunLoad, sandbox: Sandbox, tmp_path: Path
) -> None:
    database = tmp_path / name
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 3))
    run_load("2024-03-01", "2024-03-01", database=database)
    run_load("2024-03-01", "2024-03-01", database=database, refresh=True)
    with opened(database) as connection:
        assert query(connection, "SELECT count(*) FROM events").rows == [(3,)]
    found = status(database, None)
    assert found.loaded is not None
    assert found.last_run is not None
    assert (found.loaded.days, found.last_run.outcome) == (1, "done")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (":memory:", "is not a file"),
        ("md:", "is not a file"),
        ("md:events", "is not a file"),
        ("postgres:dbname=x", "is not a file"),
        ("ducklake:x.ducklake", "is not a file"),
        ("sqlite:x.db", "is not a file"),
        ("", "is a folder"),
        ("folder", "is a folder"),
        ("new/mixpanel.duckdb", "named like a schema"),
        ("MixPanel.v2.db", "named like a schema"),
        ("mixpanel?x", "named like a schema"),
        (".mixpanel.duckdb", "named like a schema"),
        ("mixpanel_staging.duckdb", "named like a schema"),
        ("information_schema.duckdb", "named like a schema"),
        ("new/" + "x" * 236, "too long"),
        ("new?/x.duckdb", "holds ?"),
    ],
)
def test_what_cannot_be_a_database_is_refused_before_anything_is_done(
    name: str, problem: str, run_load: RunLoad, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        run_load("2024-03-01", "2024-03-01", database=Path(name))
    assert problem in caught.value.message
    assert caught.value.hint
    assert (set(tmp_path.rglob("*")), sandbox.requests) == (before, [])


@pytest.mark.parametrize("char", "?*['%")
def test_a_data_folder_that_dlt_cannot_work_in_is_refused(
    char: str, run_load: RunLoad, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MP_DATA_DIR", str(tmp_path / f"o{char}b"))
    with pytest.raises(ConfigError, match="a load cannot work in") as caught:
        run_load("2024-03-01", "2024-03-01")
    assert caught.value.hint == "MP_DATA_DIR moves it"
    assert (list(tmp_path.glob("o*")), sandbox.requests) == ([], [])


def sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()


@pytest.mark.parametrize("kind", ["sqlite", "text", "short", "empty"])
def test_another_file_is_refused_and_left_alone(
    kind: str, run_load: RunLoad, sandbox: Sandbox, database: Path, tmp_path: Path
) -> None:
    if kind == "sqlite":
        sqlite(database)
    else:
        database.write_text({"text": "some text, and more of it\n" * 1000, "short": "x", "empty": ""}[kind])
    before, content = files(tmp_path), database.read_bytes()
    with pytest.raises(WarehouseError, match=r"no(t a|, and no) DuckDB database|empty, and no DuckDB") as caught:
        run_load("2024-03-01", "2024-03-01")
    assert "--db" in str(caught.value.hint)
    with pytest.raises(WarehouseError), opened(database):
        pass
    with pytest.raises(WarehouseError):
        status(database, None)
    assert (files(tmp_path), database.read_bytes(), sandbox.requests) == (before, content, [])


def test_a_damaged_database_is_told_as_damaged_wherever_that_shows(
    run_load: RunLoad, sandbox: Sandbox, database: Path
) -> None:
    sandbox.set_day("2024-03-01", day_lines("2024-03-01", 2000))
    run_load("2024-03-01", "2024-03-01")
    whole = database.read_bytes()
    sandbox.requests.clear()
    for size in (100, 5000, 12288, 20_000, len(whole) // 2):
        database.write_bytes(whole[:size])
        found: list[MixpanelDataError] = []
        try:
            run_load("2024-03-01", "2024-03-01", refresh=True)
        except MixpanelDataError as error:
            found.append(error)
        try:
            status(database, None)
        except MixpanelDataError as error:
            found.append(error)
        assert found
        assert all(type(error) is WarehouseError and "is damaged" in str(error.hint) for error in found), size


def test_looking_at_a_database_does_not_give_up_the_lock_that_this_process_has_on_it(tmp_path: Path) -> None:
    path = tmp_path / "held.duckdb"
    code = "import sys, duckdb\ntry: duckdb.connect(sys.argv[1])\nexcept duckdb.IOException: print('locked')"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1")
        check_database(path)
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert other.stdout == "locked\n"


def test_a_folder_that_cannot_be_written_is_told_with_a_hint(
    run_load: RunLoad, sandbox: Sandbox, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(WarehouseError, match="Permission denied") as caught:
        run_load("2024-03-01", "2024-03-01", database=folder / "x.duckdb")
    assert "--db" in str(caught.value.hint)
    assert sandbox.requests == []


def test_a_full_data_folder_is_not_blamed_on_the_database(
    run_load: RunLoad, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlt.common.data_writers.buffered.BufferedDataWriter._rotate_file", full)
    with pytest.raises(WarehouseError) as caught:
        run_load("2024-03-01", "2024-03-01")
    assert caught.value.message == f"cannot write in the data folder {tmp_path / 'data'}: No space left on device"
    assert "free some space" in str(caught.value.hint)
