"""Deleting people: from every table, from the bytes of the files, and out of later loads where that is asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import RunLoad, Sql
from database_reader import start_reader
from export_lines import at, day_lines, line
from mpload_here import run

from mixpanel_source import forget as forgetting
from mixpanel_source.engage import MembersAsked, ProfilesAsked
from mixpanel_source.errors import ConfigError, WarehouseError
from mixpanel_source.fetch import fetch_events, fetch_profiles
from mixpanel_source.forget import forget
from mixpanel_source.kept_out import key_path
from mixpanel_source.load import load
from mixpanel_source.pipeline import locked
from mixpanel_source.progress import NoProgress
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.typed import is_in_step
from mixpanel_source.warehouse import DatabaseBusyError, pipelines_folder
from mixpanel_source.workspace import Workspace

pytestmark = pytest.mark.long

ANN, DEVICE, MARKER = "ann@example.com", "dev-0f3a", "m4rker"
FIRST, LAST = date(2024, 3, 1), date(2024, 3, 2)
TABLES = "SELECT table_schema || '.' || table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"


def of_ann(n: int, properties: Mapping[str, Any] = {}, event: str = "E", day: str = "2024-03-01") -> bytes:
    return line(at(day, 5) + n, n, event, **{"distinct_id": ANN, "marker": MARKER, **properties})


HERS = [
    of_ann(100),
    of_ann(101, {"only": 1}, "Only Hers"),
    of_ann(102, {"distinct_id": f"$device:{DEVICE}", "$device_id": DEVICE}),
    of_ann(103, {"distinct_id": "canonical-uuid", "$distinct_id_before_identity": ANN}),
    of_ann(104, {"distinct_id": "someone", "$distinct_ids": ["x", ANN]}, "$merge"),
    of_ann(105, {"distinct_id": "someone", "$anon_id": DEVICE, "$identified_id": "y"}, "$identify"),
    of_ann(106, {"distinct_id": "other", "$user_id": ANN}),
]
NOT_READ = b'{"event":"E","properties":{"distinct_id":"' + ANN.encode() + b'","marker":"m4rker",broken}}'


@pytest.fixture(autouse=True)
def _people(sandbox: Sandbox) -> None:
    sandbox.set_day("2024-03-01", [*day_lines("2024-03-01", 5), *HERS, NOT_READ, of_ann(100)])
    sandbox.set_day(
        "2024-03-02", [*day_lines("2024-03-02", 4, first=20), of_ann(200, {"amount": 1.5}, day="2024-03-02")]
    )
    ids = [ANN, "u1", "u2"]
    sandbox.set_profiles(
        [{"$distinct_id": id_, "$properties": {"$name": MARKER if id_ == ANN else "other"}} for id_ in ids]
    )
    sandbox.set_cohorts([{"id": 5, "name": "c", "members": ids}])


@pytest.fixture
def loaded(run_load: RunLoad, project: Project, database: Path) -> Path:
    """All tables that have people in them."""
    for name in ("profiles", "cohort_members"):
        run_load(resources=(name,), profiles=ProfilesAsked(history=True), members=MembersAsked(history=True))
    run_load(resources=("profiles",), profiles=ProfilesAsked(output_properties=("$name",)))
    run_load("2024-03-01", "2024-03-02")
    fetch_events(project, database, "snap", from_date=FIRST, to_date=LAST)
    fetch_profiles(project, database, "people")
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            f"""
            CREATE TABLE mixpanel.segmentation AS SELECT unnest(['{ANN}', 'u1']) AS segment, 1 AS value;
            CREATE TABLE mixpanel.insights AS SELECT unnest(['["E", "{ANN}"]', '["E", "u1"]'])::JSON AS path;
            CREATE TABLE mine (distinct_id VARCHAR PRIMARY KEY, n INT DEFAULT 7);
            INSERT INTO mine VALUES ('{ANN}', 1), ('u1', 2);
            CREATE TABLE numbers AS SELECT 5 AS user_id;
            CREATE VIEW mixpanel.of_e AS SELECT * FROM mixpanel.events WHERE event_name = 'E';
            CREATE INDEX quick ON mine (n);
            CREATE MACRO twice(x) AS 2 * x;
            """
        )
    return database


def holding(folder: Path, *texts: str) -> list[str]:
    """The files below `folder` whose bytes hold one of `texts`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path.name for path in files if any(text.encode() in path.read_bytes() for text in texts))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each table."""
    found = {}
    with duckdb.connect(str(path), read_only=True) as connection:
        for (name,) in connection.execute(TABLES).fetchall():
            found[name] = connection.execute(f"FROM {name} ORDER BY ALL").fetchall()
    return found


def wrong_days(sql: Sql) -> list[tuple[Any, ...]]:
    """The days of `event_days` that do not say what is there of their load package."""
    return sql(
        """
        SELECT day, filter, rows, bytes, count(event_id), coalesce(sum(strlen(properties)), 0)
        FROM event_days LEFT JOIN events ON event_date = day AND events._dlt_load_id = event_days._dlt_load_id
            AND coalesce(filter->>'event', event_name) = event_name
        GROUP BY ALL HAVING rows <> count(event_id) OR bytes <> coalesce(sum(strlen(properties)), 0)
        """
    )


def test_nothing_of_a_person_is_left_in_any_table_or_any_byte(loaded: Path, sql: Sql, tmp_path: Path) -> None:
    spool = tmp_path / "data" / "spool"
    left = spool / "mpload-export-1"
    left.write_bytes(HERS[0])
    os.utime(left, (time.time() - 5,) * 2)
    package = pipelines_folder(loaded) / "mixpanel" / "load" / "new" / "1"
    package.mkdir(parents=True)
    (package / "events.jsonl").write_bytes(HERS[0])
    answers = tmp_path / "data" / "discovery"
    answers.mkdir()
    (answers / "1.json").write_text(f'{{"answer": ["{MARKER}"]}}')
    loaded.chmod(0o640)
    before = contents(loaded)
    with duckdb.connect(str(loaded)) as connection:  # killed before its log was in the file
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute(f"CREATE TABLE late AS SELECT '{ANN}' AS device_id")
    others_before = sql("FROM events WHERE distinct_id LIKE 'u_' ORDER BY ALL")
    assert sql("SELECT rows, rejected FROM event_days ORDER BY day") == [(12, 1), (5, 0)]
    assert holding(tmp_path, ANN, MARKER) == [
        "1.json",
        "events.jsonl",
        "loaded.duckdb",
        "loaded.duckdb.wal",
        "mpload-export-1",
    ]

    result = forget(loaded, [ANN, DEVICE])

    assert holding(tmp_path, ANN, MARKER, DEVICE) == []
    assert dict(result.rows) == {
        "events": 8,
        "snap": 8,
        "rejected_lines": 1,
        **dict.fromkeys(("profiles", "profiles_history", "profiles_partial", "people"), 1),
        **dict.fromkeys(("cohort_members", "cohort_members_history", "segmentation", "insights"), 1),
        **dict.fromkeys(("main.mine", "main.late"), 1),
        "mixpanel_typed.e__title": 5,
        **dict.fromkeys(
            (f"mixpanel_typed.{name}" for name in ("only_hers__title", "_identify", "_merge", "profiles")), 1
        ),
    }
    # All else is as it was.
    assert sql("FROM events ORDER BY ALL") == others_before
    assert len(others_before) == 9
    after = contents(loaded)
    told = {"mixpanel.event_days", "mixpanel.fetches", "mixpanel_typed.properties_catalog", "mixpanel.forgotten"}
    for name in before.keys() - told:
        assert set(map(repr, after[name])) <= set(map(repr, before[name])), name
        assert len(before[name]) - len(after[name]) == result.rows.get(name.removeprefix("mixpanel."), 0), name
    assert after["main.numbers"] == [(5,)]
    assert sql("SELECT count(*), main.twice(4) FROM of_e") == [(9, 8)]
    assert sql("SELECT has_primary_key, index_count FROM duckdb_tables() WHERE table_name = 'mine'") == [(True, 2)]
    assert sql("SELECT column_default FROM duckdb_columns() WHERE table_name = 'mine' AND column_name = 'n'") == [
        ("7",)
    ]
    assert stat.S_IMODE(loaded.stat().st_mode) == 0o640
    assert sorted(path.name for path in loaded.parent.iterdir() if path.is_file()) == [
        "loaded.duckdb",
        "loaded.duckdb.lock",
    ]
    assert sql("SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = 'loaded'") == [
        ("v1.2.0+",)
    ]
    # What tells of the rows says what is there.
    assert wrong_days(sql) == []
    assert sql("SELECT rows, rejected FROM event_days ORDER BY day") == [(5, 0), (4, 0)]
    assert sql("SELECT table_name, row_count FROM fetches ORDER BY 1") == [("people", 2), ("snap", 9)]
    catalog = sql("SELECT event, property, rows FROM mixpanel_typed.properties_catalog ORDER BY ALL")
    assert ("E", "n", 9) in catalog
    assert ("E", "marker", 0) in catalog
    assert ("Only Hers", "only", 0) in catalog
    assert (None, "$name", 2) in catalog
    with duckdb.connect(str(loaded), read_only=True) as connection:
        assert is_in_step(connection)
    # That it happened is noted, and nothing more.
    [(at_, ids, kept_out, rows)] = sql("FROM forgotten")
    assert (at_, ids, kept_out, json.loads(rows)) == (result.forgotten_at, 2, False, dict(result.rows))


def test_the_columns_stay_compressed_as_loads_have_them(
    sandbox: Sandbox, run_load: RunLoad, database: Path, sql: Sql
) -> None:
    sandbox.set_day("2024-03-01", [*day_lines("2024-03-01", 3000), *HERS])
    run_load("2024-03-01", "2024-03-01")

    def compression(column: str, table: str) -> set[str]:
        ask = f"SELECT DISTINCT compression FROM pragma_storage_info('{table}') WHERE column_name = '{column}'"
        return {name for (name,) in sql(f"{ask} AND segment_type <> 'VALIDITY'")}

    places = (("properties", "mixpanel.events"), ("distinct_id", "mixpanel_typed.e__title"))
    before = [compression(*place) for place in places]
    assert before[0] == {"ZSTD"}
    forget(database, [ANN])
    assert [compression(*place) for place in places] == before


def test_a_day_loaded_in_parts_is_counted_by_package(run_load: RunLoad, database: Path, sql: Sql) -> None:
    run_load("2024-03-01", "2024-03-01")
    run_load("2024-03-01", "2024-03-01", events=("Only Hers",), refresh=True)
    run_load("2024-03-02", "2024-03-02", where='properties["n"] > 0')
    before = sql("SELECT day, filter, rows FROM event_days ORDER BY ALL")
    assert [rows for *_, rows in before] == [1, 12, 5]
    forget(database, [ANN])
    after = sql("SELECT day, filter, rows FROM event_days ORDER BY ALL")
    assert [rows for *_, rows in after] == [0, 8, 4]
    assert sql("SELECT count(*) FROM events") == [(11,)]


def test_a_line_that_holds_a_longer_id_is_another_persons(
    sandbox: Sandbox, run_load: RunLoad, database: Path, sql: Sql
) -> None:
    broken = [
        '{"event":"E","properties":{"distinct_id":"' + id_ + '",broken}}' for id_ in (f"jo{ANN}", ANN, "Zo\\u00eb")
    ]
    sandbox.set_day("2024-03-01", [*day_lines("2024-03-01", 5), *(one.encode() for one in broken)])
    run_load("2024-03-01", "2024-03-01")
    assert forget(database, [ANN, "Zo\u00eb"]).rows == {"rejected_lines": 2}
    assert sql("SELECT decode(raw) FROM rejected_lines") == [(broken[0],)]
    assert sql("SELECT rejected FROM event_days") == [(1,)]


def test_a_link_to_the_file_stays_one(run_load: RunLoad, database: Path, tmp_path: Path, sql: Sql) -> None:
    run_load("2024-03-01", "2024-03-01")
    link = tmp_path / "link.duckdb"
    link.symlink_to(database)
    forget(link, [ANN])
    assert link.is_symlink()
    assert sql(f"SELECT count(*) FROM events WHERE distinct_id = '{ANN}'") == [(0,)]


# --- what can go wrong


def killed(work: Callable[[], object]) -> None:
    """Does `work` in a process of its own, which kills itself on its way."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def kill_itself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


STEPS = {"_detach": False, "_keep_in_step": False, "_replace": False, "sleep": True}
"""Where it is killed, and whether the new file is then in its place."""


def test_killed_at_any_moment_it_leaves_the_old_file_or_the_new_one(
    run_load: RunLoad, database: Path, tmp_path: Path
) -> None:
    run_load("2024-03-01", "2024-03-01")
    before = contents(database)
    for step, is_done in STEPS.items():
        folder = tmp_path / step
        folder.mkdir()
        copy = Path(shutil.copy(database, folder))

        def work(step: str = step, copy: Path = copy) -> None:
            homes: list[Any] = [forgetting, forgetting._Forgetting, time]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(next(home for home in homes if step in vars(home)), step, kill_itself)
                forget(copy, [ANN, DEVICE])

        killed(work)
        assert ("mixpanel.forgotten" in contents(copy)) == is_done, step
        if not is_done:
            assert contents(copy) == before
        forget(copy, [ANN, DEVICE])
        assert holding(folder, ANN, MARKER) == []
        assert files_in(folder) == ["loaded.duckdb", "loaded.duckdb.lock"]


def test_what_goes_wrong_is_told_and_changes_nothing(
    run_load: RunLoad, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WarehouseError, match="there is no database"):
        forget(database, [ANN])
    run_load("2024-03-01", "2024-03-01")
    before = database.read_bytes()
    for ids, told in (
        ([], "nobody is named"),
        (["", ANN], "an id is empty"),
        (["$device:"], "an id is empty"),
        (["\udc80"], "an id is not UTF-8"),
    ):
        with pytest.raises(ConfigError, match=told):
            forget(database, ids)
    with pytest.raises(WarehouseError, match="another load works on"), locked(database):
        forget(database, [ANN])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "WRITE_WAIT_S", 0.0)
        with start_reader(database, 60) as reader:
            with pytest.raises(DatabaseBusyError):
                forget(database, [ANN])
            reader.kill()
    with pytest.MonkeyPatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(WarehouseError, match="there is no room for a copy"):
            forget(database, [ANN])
    with pytest.MonkeyPatch.context() as patch:
        copy = forgetting._Forgetting._copy

        def lossy(self: Any) -> None:
            copy(self)
            self._connection.execute("DELETE FROM mpload_copy.mixpanel.events WHERE distinct_id = 'u1'")

        patch.setattr(forgetting._Forgetting, "_copy", lossy)
        with pytest.raises(WarehouseError, match="the copy of the table events is not the same"):
            forget(database, [ANN])
    assert database.read_bytes() == before
    assert files_in(tmp_path) == ["loaded.duckdb", "loaded.duckdb.lock"]
    assert forget(database, ["nobody"]).rows == {}


# --- keeping out


def test_who_is_kept_out_comes_with_no_later_load(
    loaded: Path, run_load: RunLoad, project: Project, sql: Sql, tmp_path: Path
) -> None:
    forget(loaded, [ANN, DEVICE], keep_out=True)
    assert sql("SELECT kept_out FROM forgotten") == [(True,)]
    for name in ("events", "profiles", "cohort_members"):
        run_load("2024-03-01", "2024-03-02", refresh=True, resources=(name,), profiles=ProfilesAsked(history=True),
                 members=MembersAsked(history=True))  # fmt: skip
    fetch_events(project, loaded, "snap_2", from_date=FIRST, to_date=LAST)
    fetch_profiles(project, loaded, "people_2")
    assert holding(tmp_path, ANN, MARKER, DEVICE) == []
    assert sql("SELECT count(*) FROM events") == sql("SELECT count(*) FROM snap_2") == [(9,)]
    assert sql("SELECT count(*) FROM profiles") == sql("SELECT count(*) FROM cohort_members") == [(2,)]
    assert wrong_days(sql) == []
    assert sql("SELECT rows, rejected FROM event_days ORDER BY day") == [(5, 0), (4, 0)]
    key = key_path()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert holding(tmp_path, key.read_text().strip()) == [key.name]
    # A second time, the same key holds for all of them.
    forget(loaded, ["u1"], keep_out=True)
    run_load("2024-03-01", "2024-03-02", refresh=True)
    assert sql("SELECT DISTINCT distinct_id FROM events ORDER BY 1") == [(f"u{n}",) for n in (0, 2, 3, 4, 6)]


def test_a_key_that_is_lost_is_told(run_load: RunLoad, project: Project, database: Path, sql: Sql) -> None:
    run_load("2024-03-01", "2024-03-01")
    forget(database, [ANN], keep_out=True)
    key = key_path().read_text()
    for text, told in ((None, "is gone"), ("00" * 32, "is another key"), ("no key", "is damaged")):
        key_path().unlink()
        if text is not None:
            key_path().write_text(text)
        else:
            assert Workspace.open(database).sql_scalar("SELECT count(*) FROM kept_out") == 2
        for work in (
            lambda: load(project, database),
            lambda: fetch_profiles(project, database, "people"),
            lambda: forget(database, ["u1"], keep_out=True),
        ):
            with pytest.raises(ConfigError, match=told):
                work()
        key_path().touch()
    assert sql("SELECT count(*) FROM events WHERE distinct_id = 'u1'") == [(1,)]
    key_path().write_text(key)
    run_load("2024-03-01", "2024-03-01", refresh=True)
    assert sql(f"SELECT count(*) FROM events WHERE distinct_id = '{ANN}'") == [(0,)]


def test_who_is_not_kept_out_comes_again_once_the_day_is_loaded_again(
    run_load: RunLoad, database: Path, sql: Sql, sandbox: Sandbox
) -> None:
    run_load("2024-03-01", "2024-03-01")
    with Workspace.open(database) as workspace:
        assert workspace.forget([ANN]).rows["events"] == 5
    asked = len(sandbox.requests)
    run_load("2024-03-01", "2024-03-01")
    assert len(sandbox.requests) == asked  # the day is complete
    run_load("2024-03-01", "2024-03-01", refresh=True)
    assert sql(f"SELECT count(*) FROM events WHERE distinct_id = '{ANN}'") == [(2,)]


def test_a_snapshot_that_was_on_its_way_meanwhile_is_not_made(
    run_load: RunLoad, project: Project, database: Path, tmp_path: Path
) -> None:
    run_load("2024-03-01", "2024-03-01")

    class Meanwhile(NoProgress):
        def writing(self) -> None:
            forget(database, [ANN, DEVICE], keep_out=True)

    with pytest.raises(WarehouseError, match="forgotten while the snapshot was fetched"):
        fetch_profiles(project, database, "people", progress=Meanwhile())
    assert holding(tmp_path, ANN, MARKER) == []
    assert fetch_profiles(project, database, "people").rows == 2


# --- the command


def test_ids_are_read_from_a_file_or_a_pipe_and_never_told(tmp_path: Path) -> None:
    path, file = tmp_path / "people.duckdb", tmp_path / "ids.txt"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA mixpanel")
        connection.execute(f"CREATE TABLE mixpanel.profiles AS SELECT unnest(['{ANN}', 'bob', 'eve']) AS distinct_id")
    file.write_bytes(ANN.encode() + b"\r\n\nnobody\n")

    def told(*arguments: str, stdin: str = "") -> tuple[Any, ...]:
        done = run(["forget", *arguments, "--force", "--db", str(path)], stdin)
        assert (done.code, ANN in done.out + done.err) == (0, False)
        found = json.loads(done.out)
        return found["ids"], found["rows"], found["kept_out"], done.err

    assert told("--file", str(file)) == (2, {"profiles": 1}, False, "")
    assert told("--file", "-", "--keep-out", stdin="eve\n") == (1, {"profiles": 1}, True, "")
    assert told(ANN) == (1, {}, False, "mpload: nothing was there of 1 id\n")
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("FROM mixpanel.profiles").fetchall() == [("bob",)]
