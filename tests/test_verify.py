"""What `verify` finds of loaded days against Mixpanel's own counts, and what `repair` asks for again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import NO_LIMITS, NOW, Clock, RunLoad, set_clock
from export_lines import at, day_lines, days, line
from mpload_here import run

from mixpanel_source import Workspace, settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import ConfigError, RateLimitError, TableNotFoundError, WarehouseError
from mixpanel_source.load import load
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.verify import DayCount, Verification, verify
from mixpanel_source.windows import DateRange

pytestmark = pytest.mark.long

Verify = Callable[..., Verification]
Row = tuple[str, str | None, int, int | None, str]


@pytest.fixture
def check(project: Project, database: Path) -> Verify:
    default = project

    def check(
        from_date: str | None = None, to_date: str | None = None, *, project: Project | None = None, **options: Any
    ) -> Verification:
        first, last = (date.fromisoformat(day) if day else None for day in (from_date, to_date))
        return verify(project or default, database, from_date=first, to_date=last, **options)

    return check


def rows(found: Verification, *, but: str = "equal") -> list[Row]:
    """The counts that are not `but`, with the day of the month alone."""
    return [
        (f"{one.day:%d}", one.event, one.loaded, one.mixpanel, one.verdict)
        for one in found.counts
        if one.verdict != but
    ]


def reason(found: Verification) -> str:
    (one,) = [count for count in found.counts if count.verdict != "equal"]
    assert one.reason is not None
    return one.reason


def change(database: Path, *statements: str) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET search_path = 'mixpanel'")
        for statement in statements:
            connection.execute(statement)


def asked(sandbox: Sandbox) -> list[str]:
    """The requests so far, exports with their days."""
    return [
        f"{one.params['from_date']} {one.params['to_date']} {one.params.get('event', '')}".strip()
        if one.endpoint == "export"
        else one.path.removeprefix("/api/query/")
        for one in sandbox.requests
    ]


Serve = Callable[[Sandbox], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves another sandbox, and tells its address."""
    with ExitStack() as servers:
        yield lambda sandbox: servers.enter_context(SandboxServer(sandbox)).url


def fill(sandbox: Sandbox) -> None:
    """Five days, settled at NOW, of two events."""
    for day in days("2024-03-01", 5):
        sandbox.set_day(day, [*day_lines(day, 4, "A"), *day_lines(day, 3, "B", first=4)])


@pytest.fixture(scope="module")
def five_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database that holds what `fill` makes."""
    folder = tmp_path_factory.mktemp("five_days")
    sandbox = Sandbox(now=NOW, limits=False)
    fill(sandbox)
    with SandboxServer(sandbox) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MP_DATA_DIR", str(folder / "data"))
        patch.setitem(settings.LIMITS, "export", NO_LIMITS["export"])
        set_clock(patch, lambda: NOW)
        project = Project(Credentials("sandbox", "sandbox", "1", "us"), base_url=server.url)
        result = load(project, folder / "five.duckdb", ("events",), asked=DateRange(date(2024, 3, 1), date(2024, 3, 5)))
    assert result.error is None
    return folder / "five.duckdb"


@pytest.fixture
def loaded(sandbox: Sandbox, five_days: Path, database: Path) -> None:
    fill(sandbox)
    shutil.copy(five_days, database)


SPAN = ("2024-03-01", "2024-03-05")


@pytest.mark.usefixtures("loaded")
def test_all_is_equal_after_a_load_and_costs_a_request_for_names_and_one_for_counts(
    check: Verify, sandbox: Sandbox
) -> None:
    found = check(*SPAN)
    assert rows(found) == []
    assert [count.difference for count in found.counts] == [0] * 10
    assert found.counts[0] == DayCount(date(2024, 3, 1), "A", 4, 4, "equal")
    assert found.verdicts == {"equal": 10}
    assert asked(sandbox) == ["events/names", "events"]
    check(*SPAN)
    assert asked(sandbox) == ["events/names", "events", "events"]  # names are kept for an hour


# --- what was changed by hand, or never loaded


@pytest.mark.usefixtures("loaded")
def test_a_row_deleted_by_hand_is_found_twice_by_what_its_load_recorded_and_by_mixpanels_count(
    check: Verify, database: Path
) -> None:
    change(database, "DELETE FROM events WHERE event_date = '2024-03-03' AND insert_id = 'i0'")
    found = check(*SPAN)
    assert rows(found) == [("03", None, 6, 7, "different"), ("03", "A", 3, 4, "different")]
    whole, one = found.wrong
    assert whole.reason == "the load of the export day 2024-03-03 recorded 7 rows, and 6 are there"
    assert (one.difference, one.reason) == (-1, "1 fewer here than Mixpanel counts")


@pytest.mark.usefixtures("loaded")
def test_a_day_deleted_by_hand_is_missing_with_and_without_its_row_in_event_days(check: Verify, database: Path) -> None:
    change(
        database,
        "DELETE FROM events WHERE event_date IN ('2024-03-02', '2024-03-04')",
        "DELETE FROM event_days WHERE day = '2024-03-04'",
    )
    found = check(*SPAN)
    assert rows(found) == [
        ("02", None, 0, 7, "different"),
        ("02", "A", 0, 4, "missing"),
        ("02", "B", 0, 3, "missing"),
        ("04", None, 0, 7, "missing"),
    ]
    assert found.wrong[-1].reason == "the export day 2024-03-04 is not loaded"


@pytest.mark.usefixtures("loaded")
def test_rows_that_no_load_brought_are_found(check: Verify, database: Path) -> None:
    copied = "SELECT * REPLACE ('made up' AS insert_id, event_date + {days} AS event_date,"
    copied += " event_time + INTERVAL ({days}) DAY AS event_time) FROM events WHERE event_date = '2024-03-05'"
    change(
        database,
        f"INSERT INTO events {copied.format(days=1)}",
        f"INSERT INTO events {copied.format(days=0)} AND insert_id = 'i0'",
    )
    found = check("2024-03-01", "2024-03-06")
    assert rows(found) == [
        ("05", None, 8, 7, "different"),
        ("05", "A", 5, 4, "different"),
        ("06", None, 7, 0, "missing"),
    ]
    assert found.wrong[-1].reason == "the export day 2024-03-06 is not loaded, though 7 rows are there"


@pytest.mark.usefixtures("loaded")
def test_a_load_package_that_never_became_complete_does_not_count(
    check: Verify, database: Path, run_load: RunLoad
) -> None:
    run_load("2024-03-05", "2024-03-05", refresh=True)
    change(
        database,
        "DELETE FROM _dlt_loads WHERE load_id IN (SELECT _dlt_load_id FROM event_days WHERE day = '2024-03-05')",
    )
    (one,) = check(*SPAN).wrong
    assert (one.day, one.verdict) == (date(2024, 3, 5), "missing")
    assert one.reason == (
        "the export day 2024-03-05 is not loaded: its load package never became complete, though 7 rows are there"
    )


@pytest.mark.usefixtures("loaded")
def test_days_never_loaded_and_a_day_loaded_too_early_are_missing_and_one_that_is_not_over_is_not_comparable(
    check: Verify, run_load: RunLoad, sandbox: Sandbox, database: Path, clock: Clock
) -> None:
    for day in ("2024-03-10", "2024-03-11"):
        sandbox.set_day(day, day_lines(day, 4, "A"))
    clock.now = datetime(2024, 3, 10, 0, 2, 30, tzinfo=UTC)
    run_load("2024-03-07", "2024-03-10")
    change(database, "DELETE FROM event_days WHERE day = '2024-03-09'")
    clock.now = datetime(2024, 3, 11, 12, tzinfo=UTC)
    run_load("2024-03-11", "2024-03-11")
    found = check("2024-03-05", "2024-03-11")
    assert rows(found) == [
        ("06", None, 0, 0, "missing"),
        ("09", None, 0, 0, "missing"),
        ("10", None, 3, 4, "missing"),
        ("11", None, 4, 4, "not comparable"),
    ]
    assert [one.reason for one in found.counts if one.event is None][2:] == [
        "the export day 2024-03-10 was loaded before it was over, and not since",
        "2024-03-11 is not over yet in the calendar of exports",
    ]


@pytest.mark.usefixtures("loaded")
def test_an_event_that_mixpanel_does_not_list_any_more_is_looked_for_where_it_is_loaded_on_other_days(
    check: Verify, sandbox: Sandbox, database: Path, clock: Clock
) -> None:
    """It lists those of the last 31 days."""
    change(database, "DELETE FROM events WHERE event_date = '2024-03-02'")
    clock.now = datetime(2024, 5, 1, tzinfo=UTC)
    assert rows(check("2024-03-02", "2024-03-02"))[1:] == [("02", "A", 0, 4, "missing"), ("02", "B", 0, 3, "missing")]
    assert [len(one.params["event"]) for one in sandbox.requests if one.path.endswith("events")] == [len('["A","B"]')]


@pytest.mark.usefixtures("loaded")
def test_without_dates_it_goes_from_the_first_loaded_day_to_yesterday(check: Verify) -> None:
    found = check()
    assert (str(found.days), found.verdicts) == ("2024-03-01 to 2024-03-10", {"equal": 10, "missing": 5})


# --- known reasons


@pytest.mark.usefixtures("loaded")
def test_a_late_event_is_explained_until_its_day_is_settled(check: Verify, project: Project, sandbox: Sandbox) -> None:
    sandbox.set_day("2024-03-05", [*day_lines("2024-03-05", 5, "A"), *day_lines("2024-03-05", 3, "B", first=5)])
    assert rows(check(*SPAN)) == [("05", "A", 4, 5, "different")]
    slow = check(*SPAN, project=replace(project, lookback_days=6))
    assert rows(slow) == [("05", "A", 4, 5, "explained")]
    assert reason(slow) == "the day is not settled: it may have changed since it was loaded"
    assert slow.wrong == []


FIRST, SECOND = "2024-03-01", "2024-03-02"


def lines(event: str, *moments: float, **properties: Any) -> list[bytes]:
    """Events of the first day, so many hours after its begin; they have `$insert_id`s of their own."""
    return [line(at(FIRST, hour), n, event, **properties) for n, hour in enumerate(moments)]


def hot(event: str, count: int) -> list[bytes]:
    told = {"mp_original_event_name": event, "mp_original_distinct_id": "u"}
    return [line(at(FIRST, n), n, "$hotshard_events", **told, **{"$insert_id": f"{event} {n}"}) for n in range(count)]


KNOWN: dict[str, tuple[list[bytes], list[bytes], tuple[int, int, str], str | None]] = {
    "Twice": (lines("Twice", 1) * 3, lines("Twice", 1) * 3, (1, 1, "equal"), None),
    "Merged": (
        [*lines("Merged", 1, distinct_id="u"), *lines("Merged", 1, distinct_id="v")],
        lines("Merged", 1, distinct_id="v"),
        (2, 1, "explained"),
        "1 row is of a $insert_id that others have, and Mixpanel may have merged them",
    ),
    "Merged more": (
        [*lines("Merged more", 1, 2, 3, distinct_id="u"), *lines("Merged more", 1, distinct_id="v")],
        lines("Merged more", 1, distinct_id="v"),
        (4, 1, "different"),
        "3 more here than Mixpanel counts; of these, some may be because 1 row is of a $insert_id that others have, and"
        " Mixpanel may have merged them",
    ),
    "No id": (
        lines("No id", 1, **{"$insert_id": None}) * 3,
        lines("No id", 1),
        (3, 1, "explained"),
        "2 rows are without $insert_id and like another one, which are never merged here",
    ),
    "Forwarded": (
        lines("Forwarded", 1, 2, **{"$mp_is_forwarded": True}),
        lines("Forwarded", 1),
        (2, 1, "explained"),
        "2 rows are forwarded to the EU, which reports may not count",
    ),
    "Gone": (
        lines("Gone", 1, 2),
        [],
        (2, 0, "explained"),
        "Mixpanel counts and lists no such event: it may be hidden or deleted there",
    ),
    "No time": (
        [*lines("No time", 1), line("soon", 1, "No time")],
        lines("No time", 1, 2),
        (1, 2, "explained"),
        "1 row is without a usable time, and so on no day",
    ),
    "Hot": (
        [*lines("Hot", 9), *hot("Hot", 3)],
        lines("Hot", 9, 10, 11, 12),
        (1, 4, "explained"),
        "3 rows are here as $hotshard_events",
    ),
    "Hotter": (
        [*lines("Hotter", 9), *hot("Hotter", 1)],
        lines("Hotter", 9, 10, 11),
        (1, 3, "different"),
        "2 fewer here than Mixpanel counts; of these, some may be because 1 row is here as $hotshard_events",
    ),
    "Early": (
        lines("Early", 1, 2),
        lines("Early", 1),
        (3, 2, "explained"),
        "1 row is the same event, which came with another export day",
    ),
    "Later": (lines("Later", 1), lines("Later", 1, 2), (1, 2, "different"), "1 fewer here than Mixpanel counts"),
    "New": ([], lines("New", 1), (0, 1, "missing"), "1 fewer here than Mixpanel counts"),
}
"""By event: what is exported, what Mixpanel then counts, and what is to be found."""


def test_what_is_known_to_differ_is_explained_as_far_as_it_goes(
    check: Verify, run_load: RunLoad, sandbox: Sandbox
) -> None:
    sandbox.set_day(FIRST, [one for exported, *_ in KNOWN.values() for one in exported])
    sandbox.set_day(SECOND, [*lines("Early", 1), b"what?"])
    run_load(FIRST, SECOND)
    sandbox.set_day(FIRST, [one for _, counted, *_ in KNOWN.values() for one in counted] + lines("Early", 2))
    sandbox.set_day(SECOND, [line(at(SECOND), 0, "A")])
    found = check(FIRST, SECOND)
    got = {one.event: ((one.loaded, one.mixpanel, one.verdict), one.reason) for one in found.counts}
    for event, (_, _, count, why) in KNOWN.items():
        assert got.pop(event) == (count, why)
    assert got == {
        "$hotshard_events": (
            (4, 0, "explained"),
            "it is an event of Mixpanel's own, which its reports may not count",
        ),
        "A": ((0, 1, "explained"), "1 of the lines could not be read: see rejected_lines"),
    }


# --- the calendar of reports


@pytest.mark.parametrize("legacy", [False, True])
def test_days_are_those_of_the_projects_time_zone(
    legacy: bool, check: Verify, run_load: RunLoad, project: Project, database: Path, serve: Serve, clock: Clock
) -> None:
    """New York was five hours behind UTC until 2024-03-10."""
    sandbox = Sandbox(now=clock.now, limits=False, project_timezone="America/New_York", legacy_local_time=legacy)
    new_york = replace(project, project_timezone="America/New_York", legacy_local_time=legacy, base_url=serve(sandbox))
    moments = [at("2024-03-02", 4.5), at("2024-03-02", 5.5), at("2024-03-03", 4.5), at("2024-03-03", 5.5)]
    sandbox.add_events(
        [
            {"event": "A", "properties": {"time": moment, "distinct_id": "u", "$insert_id": str(moment)}}
            for moment in moments
        ]
    )
    run_load("2024-03-01", "2024-03-03", project=new_york)
    found = check("2024-03-01", "2024-03-03", project=new_york)
    last = [] if legacy else [("03", None, 1, 1, "not comparable")]
    assert rows(found) == last
    assert rows(found, but="not comparable")[:2] == [("01", "A", 1, 1, "equal"), ("02", "A", 2, 2, "equal")]
    if not legacy:
        assert reason(found) == "2024-03-04 is not loaded"
        assert found.wrong == []
    change(database, "DELETE FROM events WHERE insert_id = " + f"'{moments[2]}'")
    exported = "02" if legacy else "03"
    assert ("02", "A", 1, 2, "different") in rows(check("2024-03-01", "2024-03-03", project=new_york))
    assert [f"{one.day:%d}" for one in check("2024-03-01", "2024-03-03", project=new_york).wrong if not one.event] == [
        exported
    ]


def test_east_of_utc_a_day_of_reports_lies_across_the_export_day_before_it_too(
    check: Verify, run_load: RunLoad, project: Project, database: Path, serve: Serve, clock: Clock
) -> None:
    """In Tokyo a day begins at 15:00 UTC."""
    sandbox = Sandbox(now=clock.now, limits=False, project_timezone="Asia/Tokyo")
    for day in days("2024-03-01", 4):
        sandbox.set_day(day, [line(at(day, 14), 1), line(at(day, 15), 2)])
    tokyo = replace(project, project_timezone="Asia/Tokyo", base_url=serve(sandbox))
    run_load("2024-03-02", "2024-03-04", project=tokyo)
    found = check("2024-03-02", "2024-03-04", project=tokyo)
    assert rows(found, but="") == [
        ("02", None, 1, 2, "not comparable"),
        ("03", "E", 2, 2, "equal"),
        ("04", "E", 2, 2, "equal"),
    ]
    assert found.counts[0].reason == "2024-03-01 is not loaded"
    sandbox.set_day("2024-03-03", [line(at("2024-03-03", hour), hour) for hour in (1, 14, 15, 16)])
    slow = replace(tokyo, lookback_days=7)  # 2024-03-03 is settled, and 2024-03-04 is not
    assert rows(check("2024-03-03", "2024-03-04", project=slow)) == [
        ("03", "E", 2, 3, "different"),
        ("04", "E", 2, 3, "explained"),
    ]
    sandbox.forget_requests()
    found = check("2024-03-03", "2024-03-03", project=tokyo, repair=True)
    assert (rows(found), found.repaired) == ([], (date(2024, 3, 2), date(2024, 3, 3)))
    assert asked(sandbox)[1:-1] == ["2024-03-02 2024-03-03"]


# --- some events


@pytest.mark.usefixtures("loaded")
def test_events_that_are_named_are_compared_alone(check: Verify, sandbox: Sandbox, database: Path) -> None:
    change(database, "DELETE FROM events WHERE insert_id IN ('i0', 'i4') AND event_date = '2024-03-03'")
    found = check(*SPAN, events=["B", "Bee"])
    assert rows(found) == [("03", "B", 2, 3, "different")]
    assert found.warnings == ("no event 'Bee' is loaded, or counted by Mixpanel",)
    assert asked(sandbox) == ["events"]
    with pytest.raises(ConfigError, match="is a list"):
        check(*SPAN, events="B")


def test_a_day_of_which_only_some_events_are_loaded_is_compared_by_these(
    check: Verify, run_load: RunLoad, sandbox: Sandbox, database: Path
) -> None:
    for day in days("2024-03-01", 3):
        sandbox.set_day(day, [*day_lines(day, 4, "A"), *day_lines(day, 3, "B", first=4)])
    run_load("2024-03-01", "2024-03-02", events=("A",))
    run_load("2024-03-03", "2024-03-03", where='properties["n"] == 1')
    found = check("2024-03-01", "2024-03-03")
    assert rows(found, but="") == [
        ("01", None, 0, 3, "not comparable"),
        ("01", "A", 4, 4, "equal"),
        ("02", None, 0, 3, "not comparable"),
        ("02", "A", 4, 4, "equal"),
        ("03", None, 1, 7, "not comparable"),
    ]
    assert {one.reason for one in found.counts if one.event is None} == {
        f"only a part of 2024-03-0{day} is loaded" for day in (1, 2, 3)
    }
    assert rows(check("2024-03-01", "2024-03-02", events=["A"])) == []
    change(database, "DELETE FROM events WHERE insert_id = 'i0' AND event_date = '2024-03-02'")
    sandbox.forget_requests()
    found = check("2024-03-01", "2024-03-02", events=["A"], repair=True)
    assert (rows(found), found.repaired, found.wrong_before) == ([], (date(2024, 3, 2),), 2)
    assert asked(sandbox) == ["events", '2024-03-02 2024-03-02 ["A"]', "events"]
    assert rows(check("2024-03-02", "2024-03-02", events=["B"])) == [("02", None, 0, 3, "missing")]


@pytest.mark.usefixtures("loaded")
def test_an_event_loaded_again_by_itself_is_checked_by_its_own_count(
    check: Verify, run_load: RunLoad, sandbox: Sandbox, database: Path
) -> None:
    day = "2024-03-03"
    sandbox.set_day(day, [*day_lines(day, 5, "A"), *day_lines(day, 3, "B", first=5)])
    run_load(day, day, events=("A",), refresh=True)
    assert rows(check(*SPAN)) == []
    change(database, f"DELETE FROM events WHERE insert_id = 'i0' AND event_date = '{day}'")
    found = check(*SPAN)
    assert rows(found) == [("03", None, 7, 8, "different"), ("03", "A", 4, 5, "different")]
    assert found.wrong[0].reason == "the load of the export day 2024-03-03 recorded 5 rows of A, and 4 are there"
    run_load(day, day, where='properties["n"] == 0', refresh=True)  # which says nothing of the rows there are
    assert rows(check(*SPAN)) == []
    change(database, f"DELETE FROM events WHERE insert_id = 'i0' AND event_date = '{day}'")
    assert rows(check(*SPAN)) == [("03", "A", 4, 5, "different")]


# --- repair


@pytest.mark.usefixtures("loaded")
def test_repair_asks_for_the_wrong_days_alone_and_mends_them(check: Verify, sandbox: Sandbox, database: Path) -> None:
    change(
        database,
        "DELETE FROM events WHERE event_date IN ('2024-03-01', '2024-03-02') AND insert_id = 'i0'",
        "DELETE FROM events WHERE event_date = '2024-03-04'",
        "DELETE FROM event_days WHERE day = '2024-03-04'",
    )
    found = check(*SPAN, repair=True)
    assert (rows(found), found.wrong_before) == ([], 5)
    assert found.repaired == (date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 4))
    assert asked(sandbox) == [
        "events/names",
        "events",
        "2024-03-01 2024-03-02",
        "2024-03-04 2024-03-04",
        "events",
    ]
    sandbox.forget_requests()
    assert check(*SPAN, repair=True).repaired == ()
    assert asked(sandbox) == ["events"]


@pytest.mark.usefixtures("loaded")
def test_what_a_repair_cannot_mend_is_still_told(check: Verify, sandbox: Sandbox, run_load: RunLoad) -> None:
    """An export that lacks an event which Mixpanel counts."""
    run_load("2024-03-06", "2024-03-06")
    stray = line(at("2024-03-01", 1), 99, "A")
    sandbox.set_day("2024-02-29", [stray])  # a day that nobody asks for
    found = check(*SPAN, repair=True)
    assert (rows(found), found.repaired) == ([("01", "A", 4, 5, "different")], (date(2024, 3, 1),))


# --- what cannot be asked


def test_nothing_is_asked_where_nothing_is_loaded(
    check: Verify, run_load: RunLoad, sandbox: Sandbox, database: Path
) -> None:
    with pytest.raises(WarehouseError, match="there is no database"):
        check(*SPAN)
    run_load(resources=("profiles",))
    sandbox.forget_requests()
    with pytest.raises(TableNotFoundError, match="no events are loaded"):
        check(*SPAN)
    assert asked(sandbox) == []


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("span", "problem"),
    [
        (("2024-03-02", "2024-03-01"), "ends .* before it begins"),
        (("2024-03-01", "2024-03-12"), "is in the future"),
        ((None, "2024-02-01"), "ends .* before it begins"),
        (("1999-12-31", "2024-03-01"), "no days before"),
    ],
)
def test_days_that_cannot_be_are_refused_before_anything_is_asked(
    span: tuple[str | None, str], problem: str, check: Verify, sandbox: Sandbox
) -> None:
    with pytest.raises(ConfigError, match=problem):
        check(*span)
    assert asked(sandbox) == []


@pytest.mark.usefixtures("loaded")
def test_names_too_long_for_one_address_take_more_requests(
    check: Verify, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "EVENT_NAMES_CHARS", 15)
    assert rows(check(*SPAN, events=["A", "B", "\u65e5"])) == []
    assert [one.params["event"] for one in sandbox.requests] == ['["A"]', '["B"]', '["\\u65e5"]']


@pytest.mark.usefixtures("loaded")
def test_it_does_not_wait_for_the_hour_unless_it_may(
    check: Verify, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.LIMITS, "query", ((1, 3600.0),))
    with pytest.raises(RateLimitError):
        check(*SPAN, project=replace(project, wait=False))


@pytest.mark.usefixtures("loaded")
def test_an_event_without_a_name_is_not_comparable(check: Verify, database: Path) -> None:
    change(
        database,
        "UPDATE events SET event_name = ' ' WHERE event_date = '2024-03-03' AND insert_id = 'i0'",
    )
    found = check("2024-03-03", "2024-03-03")
    assert rows(found) == [("03", " ", 1, None, "not comparable"), ("03", "A", 3, 4, "different")]
    assert found.counts[0].difference is None


# --- mpload and Workspace


@pytest.fixture
def here(project: Project, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of `project` and `database`."""
    given = {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us", "DB": str(database)}
    for name, value in {**given, "BASE_URL": str(project.base_url)}.items():
        monkeypatch.setenv(f"MP_{name}", value)
    monkeypatch.setenv("RUNTIME__LOG_LEVEL", "CRITICAL")


@pytest.mark.usefixtures("loaded", "here")
def test_mpload_verify_shows_what_is_not_equal_and_exits_with_1_until_it_is_repaired(database: Path) -> None:
    span = ("--from", "2024-03-01", "--to", "2024-03-05", "--format", "json")
    done = run(["verify", *span])
    assert (done.code, json.loads(done.out)) == (0, [])
    assert done.err == "mpload: 2024-03-01 to 2024-03-05: 10 equal\n"
    assert len(json.loads(run(["verify", *span, "--all"]).out)) == 10
    change(database, "DELETE FROM events WHERE event_date = '2024-03-03' AND insert_id = 'i0'")
    done = run(["verify", *span, "--event", "A", "--event", "B"])
    assert (done.code, json.loads(done.out)) == (
        1,
        [
            {
                "day": "2024-03-03",
                "event": "A",
                "loaded": 3,
                "mixpanel": 4,
                "difference": -1,
                "verdict": "different",
                "reason": "1 fewer here than Mixpanel counts",
            }
        ],
    )
    assert done.err == "mpload: 2024-03-01 to 2024-03-05: 1 different, 9 equal\n"
    done = run(["verify", *span, "--repair"])
    assert (done.code, json.loads(done.out)) == (0, [])
    assert done.err.splitlines() == [
        "mpload: loaded again: 2024-03-03; 2 counts were different or missing, and 0 are now",
        "mpload: 2024-03-01 to 2024-03-05: 10 equal",
    ]


@pytest.mark.usefixtures("loaded", "here")
def test_mpload_verify_exits_with_5_where_the_hour_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.LIMITS, "query", ((1, 3600.0),))
    assert run(["verify"]).code == 5


@pytest.mark.usefixtures("loaded", "here")
def test_a_workspace_verifies_with_its_own_settings(database: Path) -> None:
    with Workspace(path=database, lookback_days=6) as ws:
        assert ws.connection.execute("SELECT 1").fetchall() == [(1,)]
        assert ws.verify("2024-03-01", date(2024, 3, 5)).verdicts == {"equal": 10}
