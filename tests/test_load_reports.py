"""The tables of reports: over real HTTP into real DuckDB, question by question, day by day."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import pytest
from conftest import Clock, RunLoad, Sql, merge_broken_off
from test_report_questions import EVERY_PARAMETER

from mixpanel_source import settings
from mixpanel_source.cli.app import main
from mixpanel_source.errors import (
    ConfigError,
    EntityNotFoundError,
    PlanError,
    RateLimitError,
    ServerError,
    WarehouseError,
)
from mixpanel_source.load import LoadResult
from mixpanel_source.load_record import read_records
from mixpanel_source.project import Project
from mixpanel_source.report_questions import questions_of
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer
from mixpanel_source.settings import REPORT_TABLES
from mixpanel_source.source import mixpanel_source
from mixpanel_source.workspace import Workspace

pytestmark = pytest.mark.long

MARCH_8, MARCH_9, MARCH_10 = "2024-03-08", "2024-03-09", "2024-03-10"
DAILY = {"report": "daily", "event": "A"}

Questions = Mapping[str, list[dict[str, Any]]]


def event(name: str, user: str, moment: str, **properties: Any) -> dict[str, Any]:
    time_ms = round(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() * 1000)
    return {"event": name, "properties": {"time": time_ms, "distinct_id": user, **properties}}


def asked(sandbox: Sandbox) -> list[tuple[str, str | None, str | None]]:
    """What reports were asked for since the last time: the endpoint, and the days."""
    found = [(one.endpoint, one.params.get("from_date"), one.params.get("to_date")) for one in sandbox.requests]
    sandbox.requests.clear()
    return found


LoadReports = Callable[..., LoadResult]


@pytest.fixture
def load_reports(run_load: RunLoad, project: Project) -> LoadReports:
    """Loads the tables of `questions`, and no other."""

    def load(
        questions: Questions,
        from_date: str | None = None,
        to_date: str | None = None,
        project: Project = project,
        **options: Any,
    ) -> LoadResult:
        found = [question for table, rows in questions.items() for question in questions_of(table, rows)]
        return run_load(
            from_date, to_date, resources=tuple(questions), project=replace(project, questions=found), **options
        )

    return load


def values(sql: Sql, table: str = "segmentation") -> list[tuple[Any, ...]]:
    return sql(f"select report, date, value::int from {table} order by all")


# --- what a row says


ASKED = [
    ("question", "JSON"),
    ("from_date", "DATE"),
    ("to_date", "DATE"),
    ("_dlt_load_id", "VARCHAR"),
]
DATES = [("date", "VARCHAR"), ("day", "DATE"), ("starts_at", "TIMESTAMP"), ("unit", "VARCHAR")]
VALUES = [("value", "DOUBLE"), ("value_text", "VARCHAR")]
REPORT, SEGMENT = ("report", "VARCHAR"), [("segment_property", "VARCHAR"), ("segment", "VARCHAR")]
COLUMNS = {
    "segmentation": [
        REPORT,
        ("event", "VARCHAR"),
        *SEGMENT,
        *DATES,
        ("type", "VARCHAR"),
        ("math", "VARCHAR"),
        *VALUES,
        *ASKED,
    ],
    "event_counts": [REPORT, ("event", "VARCHAR"), *DATES, ("type", "VARCHAR"), *VALUES, *ASKED],
    "funnel_steps": [
        REPORT,
        ("funnel_id", "BIGINT"),
        *SEGMENT,
        *DATES,
        ("step", "BIGINT"),
        ("event", "VARCHAR"),
        ("label", "VARCHAR"),
        ("count", "BIGINT"),
        ("step_conv_ratio", "DOUBLE"),
        ("overall_conv_ratio", "DOUBLE"),
        ("avg_time", "DOUBLE"),
        ("avg_time_from_start", "DOUBLE"),
        *ASKED,
    ],
    "retention_cohorts": [
        REPORT,
        ("retention_type", "VARCHAR"),
        ("born_event", "VARCHAR"),
        ("event", "VARCHAR"),
        *SEGMENT,
        *DATES,
        ("first", "BIGINT"),
        ("interval", "BIGINT"),
        ("at_least", "BIGINT"),
        ("count", "BIGINT"),
        *ASKED,
    ],
    "insights": [
        REPORT,
        ("bookmark_id", "BIGINT"),
        ("headers", "JSON"),
        ("path", "JSON"),
        *DATES[:3],
        *VALUES,
        ("from_date", "DATE"),
        ("to_date", "DATE"),
        ("computed_at", "TIMESTAMP WITH TIME ZONE"),
        ("_dlt_load_id", "VARCHAR"),
    ],
    "report_days": [
        ("table_name", "VARCHAR"),
        ("report", "VARCHAR"),
        ("question", "VARCHAR"),
        ("day", "DATE"),
        ("asked_at", "TIMESTAMP WITH TIME ZONE"),
        ("complete", "BOOLEAN"),
        ("_dlt_load_id", "VARCHAR"),
    ],
}


def test_every_table_of_reports_says_what_was_asked_and_what_came(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.set_funnels([{"funnel_id": 7, "name": "Buy", "steps": ["A", {"event": "B", "label": "Paid"}]}])
    query = {"events": ["A"], "from_date": MARCH_9, "to_date": MARCH_10, "on": 'properties["plan"]'}
    sandbox.set_bookmarks([{"id": 12, "query": query}])
    sandbox.add_events(
        [
            event("A", "u", "2024-03-08 10:00", plan="pro", n=2000),
            event("A", "w", "2024-03-08 10:00", plan="free", n=2.5),
            event("B", "u", "2024-03-08 11:00"),
            event("A", "u", "2024-03-09 10:00", plan="pro"),
        ]
    )
    plan = 'properties["plan"]'
    questions: Questions = {
        "segmentation": [
            {"report": "by plan", "event": "A", "on": plan, "type": "unique"},
            {"report": "it's {odd}; \n", "event": "A", "math": "sum", "on": "n"},
        ],
        "event_counts": [{"report": "weeks", "events": ["A", "B"], "unit": "week"}],
        "funnel_steps": [{"report": "buy", "funnel_id": 7, "length": 1}],
        "retention_cohorts": [
            {"report": "born", "born_event": "A", "event": "B"},
            {"report": "hours", "retention_type": "frequency", "event": "A", "on": plan},
        ],
        "insights": [{"report": "saved", "bookmark_id": 12}],
    }
    result = load_reports(questions, MARCH_8, MARCH_8)
    assert [(table.table, table.rows, table.days) for table in result.tables] == [
        ("segmentation", 3, 1),
        ("event_counts", 2, 7),
        ("funnel_steps", 2, 1),
        ("retention_cohorts", 2 + 2 * 24, 1),
        ("insights", 4, 0),
    ]
    for table, columns in COLUMNS.items():
        found = sql(f"select column_name, column_type from (describe {table})")
        assert sorted(found) == sorted(columns), table
    eighth, midnight = date(2024, 3, 8), datetime(2024, 3, 8)
    rest = "event, segment_property, segment, date, day, starts_at, unit, type, math, value, value_text"
    assert sql(f"select report, {rest}, from_date, to_date from segmentation order by report, segment") == [
        ("by plan", "A", plan, "free", MARCH_8, eighth, midnight, "day", "unique", None, 1.0, "1", eighth, eighth),
        ("by plan", "A", plan, "pro", MARCH_8, eighth, midnight, "day", "unique", None, 1.0, "1", eighth, eighth),
        (
            *("it's {odd}; \n", "A", "n", "A", MARCH_8, eighth, midnight),
            *("day", None, "sum", 2002.5, "2002.5", eighth, eighth),
        ),
    ]
    question = sql("select question from segmentation where report = 'by plan' limit 1")[0][0]
    assert json.loads(question) == {"event": "A", "on": plan, "type": "unique"}
    monday, sunday = date(2024, 3, 4), date(2024, 3, 10)
    assert sql("select event, date, day, unit, type, value, from_date, to_date from event_counts order by event") == [
        ("A", "2024-03-04", monday, "week", "general", 3.0, monday, sunday),
        ("B", "2024-03-04", monday, "week", "general", 1.0, monday, sunday),
    ]
    assert sql("select funnel_id, step, event, label, count, step_conv_ratio, avg_time from funnel_steps") == [
        (7, 1, "A", None, 2, 1.0, None),
        (7, 2, "B", "Paid", 1, 0.5, 3600.0),
    ]
    retention = "retention_type, born_event, event, segment, day, first, interval, at_least, count"
    assert sql(f"select {retention} from retention_cohorts where coalesce(at_least, 1) < 2 order by all") == [
        ("birth", "A", "B", None, eighth, 2, 0, None, 1),
        ("birth", "A", "B", None, eighth, 2, 1, None, 0),
        ("frequency", None, "A", "free", eighth, None, None, 1, 1),
        ("frequency", None, "A", "pro", eighth, None, None, 1, 1),
    ]
    saved = "bookmark_id, headers->>1, path->>1, date, day, starts_at, value, from_date, to_date, computed_at::varchar"
    ninth = (date(2024, 3, 9), datetime(2024, 3, 9), 1.0, date(2024, 3, 9), date(2024, 3, 10))
    assert sql(f"select {saved} from insights where value > 0 order by path") == [
        (12, plan, "$overall", "2024-03-09T00:00:00+00:00", *ninth, "2024-03-11 12:00:00+00"),
        (12, plan, "pro", "2024-03-09T00:00:00+00:00", *ninth, "2024-03-11 12:00:00+00"),
    ]
    tables = [table for table in questions if table != "insights"]
    assert sql("select distinct table_name from report_days order by 1") == [(table,) for table in sorted(tables)]
    asked(sandbox)
    again = load_reports(questions, MARCH_8, MARCH_8)
    assert asked(sandbox) == [("insights", None, None)]
    assert [(table.rows, table.days) for table in again.tables] == [(0, 0)] * 4 + [(4, 0)]
    assert sql("select count(*), count(distinct path) from insights") == [(4, 2)]


# --- days


def test_days_are_loaded_once_and_those_that_touch_with_one_request(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.add_events([event("A", "u", f"2024-03-0{day} 10:00") for day in range(1, 10)])
    questions: Questions = {"segmentation": [DAILY, {"report": "b", "event": "B"}]}
    load_reports(questions, "2024-03-03", "2024-03-04")
    assert asked(sandbox) == [("segmentation", "2024-03-03", "2024-03-04")] * 2
    sandbox.add_events([event("A", "late", "2024-03-03 11:00"), event("A", "late", "2024-03-02 11:00")])
    result = load_reports(questions, "2024-03-02", "2024-03-06")
    assert (
        asked(sandbox)
        == [
            ("segmentation", "2024-03-02", "2024-03-02"),
            ("segmentation", "2024-03-05", "2024-03-06"),
        ]
        * 2
    )
    assert (result.tables[0].days, result.tables[0].rows) == (3, 3)
    daily = [("daily", f"2024-03-0{day}", 2 if day == 2 else 1) for day in range(2, 7)]
    assert values(sql) == daily
    load_reports(questions, "2024-03-03", "2024-03-03", refresh=True)
    assert asked(sandbox) == [("segmentation", "2024-03-03", "2024-03-03")] * 2
    daily[1] = ("daily", "2024-03-03", 2)
    assert values(sql) == daily
    assert sql("select count(*), count(distinct (report, day)) from report_days where complete") == [(10, 10)]


def test_without_dates_a_load_goes_on_and_asks_for_unsettled_days_again(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql, clock: Clock
) -> None:
    questions: Questions = {"event_counts": [{"report": "daily", "events": ["A"]}]}
    sandbox.add_events([event("A", "u", f"2024-03-{day:02} 10:00") for day in range(1, 15)])
    load_reports(questions, "2024-03-01", "2024-03-10")
    clock.now += timedelta(days=3)
    sandbox.add_events([event("A", "late", "2024-03-05 11:00"), event("A", "late", "2024-03-06 11:00")])
    asked(sandbox)
    load_reports(questions)
    # 5 March was settled: it had been asked for more than 5 days after its end.
    assert asked(sandbox) == [("events", "2024-03-06", "2024-03-13")]
    assert [value for _, _, value in values(sql, "event_counts")] == [1] * 5 + [2] + [1] * 7
    load_reports(questions)
    assert asked(sandbox) == [("events", "2024-03-09", "2024-03-13")]


def test_the_part_of_today_there_is_is_not_complete(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql, clock: Clock
) -> None:
    questions: Questions = {"segmentation": [DAILY]}
    sandbox.add_events([event("A", "u", "2024-03-11 10:00"), event("A", "u", "2024-03-11 14:00")])
    load_reports(questions, "2024-03-11", "2024-03-11")
    assert values(sql) == [("daily", "2024-03-11", 1)]
    assert sql("select day::varchar, complete from report_days") == [("2024-03-11", False)]
    clock.now += timedelta(days=1)
    load_reports(questions, "2024-03-11", "2024-03-11")
    assert values(sql) == [("daily", "2024-03-11", 2)]
    assert sql("select day::varchar, complete from report_days") == [("2024-03-11", True)]


def test_weeks_and_months_are_replaced_as_a_whole_and_hours_by_their_days(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.add_events(
        [event("A", "u", moment) for moment in ("2024-02-25 23:00", "2024-02-26 01:00", "2024-03-01 10:00")]
    )
    hours = {"report": "hours", "event": "A", "unit": "hour"}
    questions: Questions = {
        "segmentation": [{"report": "months", "event": "A", "unit": "month"}, hours],
        "event_counts": [{"report": "weeks", "events": ["A"], "unit": "week"}],
    }
    load_reports(questions, "2024-02-28", "2024-02-28")
    assert asked(sandbox) == [
        ("segmentation", "2024-02-01", "2024-02-29"),
        ("segmentation", "2024-02-28", "2024-02-28"),
        ("events", "2024-02-26", "2024-03-03"),
    ]
    sandbox.add_events([event("A", "late", "2024-03-03 23:00")])
    load_reports(questions, "2024-03-03", "2024-03-04")
    assert asked(sandbox) == [
        ("segmentation", "2024-03-01", "2024-03-10"),
        ("segmentation", "2024-03-03", "2024-03-04"),
        ("events", "2024-03-04", "2024-03-10"),
    ]
    load_reports({"event_counts": questions["event_counts"]}, "2024-02-26", "2024-02-26", refresh=True)
    assert values(sql, "event_counts") == [("weeks", "2024-02-26", 3)]
    assert sql("select date, value::int from segmentation where report = 'months' order by 1") == [
        ("2024-02-01", 2),
        ("2024-03-01", 2),
    ]
    assert sql("select starts_at, value::int from segmentation where report = 'hours' and value > 0") == [
        (datetime(2024, 3, 3, 23), 1)
    ]
    assert sql("select count(*) from segmentation where report = 'hours'") == [(2 * 24,)]


def test_users_are_born_once_however_many_loads_there_are(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.add_events([event("Join", "u", f"2024-03-0{day} 10:00") for day in (1, 3, 5)])
    sandbox.add_events([event("Use", "u", "2024-03-02 11:00")])
    births = {"report": "births", "born_event": "Join", "event": "Use"}
    again = {"report": "again", "retention_type": "compounded", "event": "Join"}
    questions: Questions = {"retention_cohorts": [births, again]}
    load_reports(questions, "2024-03-01", "2024-03-02")
    load_reports(questions, "2024-03-04", "2024-03-05")
    # Users of a day have until 2 days after it to come back, which may have to be within what is asked for.
    assert asked(sandbox) == [
        ("retention", "2024-03-01", "2024-03-04"),
        ("retention", "2024-03-01", "2024-03-04"),
        ("retention", "2024-03-01", "2024-03-07"),
        ("retention", "2024-03-04", "2024-03-07"),
    ]
    rows = "select date, first, count from retention_cohorts where report = '{}' and interval = 1 order by date"
    assert sql(rows.format("births")) == [("2024-03-01", 1, 1), *[(f"2024-03-0{day}", 0, 0) for day in (2, 3, 4, 5)]]
    assert [row[:2] for row in sql(rows.format("again"))] == [
        ("2024-03-01", 1),
        ("2024-03-02", 0),
        ("2024-03-04", 0),
        ("2024-03-05", 1),
    ]
    assert sql("select report, count(distinct day) from report_days group by all order by 1") == [
        ("again", 4),
        ("births", 5),
    ]


def test_buckets_that_begin_elsewhere_than_expected_are_replaced_as_one_range(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    weeks: Questions = {"event_counts": [{"report": "weeks", "events": ["A"], "unit": "week"}]}

    def counts(**by_date: int) -> Fault:
        found = {date.replace("_", "-").removeprefix("d"): count for date, count in by_date.items()}
        body = {"data": {"series": list(found), "values": {"A": found}}, "legend_size": 1}
        return Fault.body(json.dumps(body).encode(), "application/json")

    sandbox.faults.next("events", counts(d2024_02_19=5))
    load_reports(weeks, "2024-02-19", "2024-02-19")
    assert values(sql, "event_counts") == [("weeks", "2024-02-19", 5)]
    asked(sandbox)
    # From here on weeks begin on Sunday: what a week of Monday's would hold is not told.
    sandbox.faults.next("events", counts(d2024_03_03=4, d2024_03_10=1), counts(d2024_02_18=6, d2024_02_25=9))
    load_reports(weeks, "2024-03-05", "2024-03-05")
    assert asked(sandbox) == [("events", "2024-03-04", "2024-03-10"), ("events", "2024-02-19", "2024-03-10")]
    sundays = [("weeks", "2024-02-18", 6), ("weeks", "2024-02-25", 9)]
    assert values(sql, "event_counts") == sundays
    sandbox.faults.next("events", counts(d2024_02_18=6, d2024_02_25=8))
    load_reports(weeks)
    assert asked(sandbox) == [("events", "2024-02-19", "2024-03-10")]
    assert [value for _, _, value in values(sql, "event_counts")] == [6, 8]
    sandbox.faults.next("events", counts(**{"1709280000": 7}))
    load_reports(weeks)
    assert sql("select date, day, starts_at, value::int from event_counts") == [("1709280000", None, None, 7)]
    load_reports(weeks)
    assert values(sql, "event_counts") == []


def test_days_are_those_of_the_project(load_reports: LoadReports, sandbox: Sandbox, sql: Sql, project: Project) -> None:
    project = replace(project, project_timezone="Asia/Tokyo", start_date=date(2024, 3, 10))
    load_reports({"segmentation": [DAILY]}, project=project)
    assert asked(sandbox) == [("segmentation", "2024-03-10", "2024-03-10")]
    assert sql("select complete from report_days") == [(True,)]


def test_a_day_that_is_over_for_exports_but_not_for_reports_is_loaded_later(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql, project: Project, clock: Clock
) -> None:
    project = replace(project, project_timezone="America/New_York")
    sandbox.add_events([event("A", "u", "2024-03-11 10:00")])
    clock.now = datetime(2024, 3, 12, 2, tzinfo=UTC)
    questions: Questions = {"segmentation": [DAILY]}
    result = load_reports(questions, "2024-03-11", project=project)
    assert asked(sandbox) == []
    assert result.warnings == [
        "2024-03-11 is not over yet in the project's time zone: segmentation has no reports of it"
    ]
    clock.now += timedelta(hours=3)
    result = load_reports(questions, "2024-03-11", project=project)
    assert (asked(sandbox), result.warnings) == ([("segmentation", "2024-03-11", "2024-03-11")], [])


# --- questions that change


def test_a_question_that_was_changed_takes_the_place_of_the_old_one(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.add_events([event("A", user, "2024-03-08 10:00") for user in ("u", "u", "w")])
    sandbox.add_events([event("A", "u", f"{day} 10:00") for day in (MARCH_9, MARCH_10)])
    other = {"report": "other", "event": "A"}
    load_reports({"segmentation": [DAILY, other]}, MARCH_8, MARCH_10)
    unique = {**DAILY, "type": "unique"}
    asked(sandbox)
    load_reports({"segmentation": [unique, other]}, MARCH_9, MARCH_9)
    assert asked(sandbox) == [("segmentation", MARCH_9, MARCH_9)]
    others = [("other", MARCH_8, 3), ("other", MARCH_9, 1), ("other", MARCH_10, 1)]
    assert values(sql) == [("daily", MARCH_9, 1), *others]
    assert sql("select day::varchar, question from report_days where report = 'daily'") == [
        (MARCH_9, '{"event":"A","type":"unique"}')
    ]
    load_reports({"segmentation": [unique]}, MARCH_8, MARCH_10)
    assert values(sql) == [("daily", MARCH_8, 2), ("daily", MARCH_9, 1), ("daily", MARCH_10, 1), *others]
    asked(sandbox)
    # Without dates, all the days it had.
    load_reports({"segmentation": [DAILY]})
    assert asked(sandbox) == [("segmentation", MARCH_8, MARCH_10)]
    assert values(sql) == [("daily", MARCH_8, 3), ("daily", MARCH_9, 1), ("daily", MARCH_10, 1), *others]


# --- what fails


def test_a_report_that_fails_stays_as_it_was_and_the_others_are_loaded(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql, project: Project
) -> None:
    sandbox.set_funnels([{"funnel_id": 7, "name": "Buy", "steps": ["A", "B"]}])
    sandbox.add_events([event("A", "u", "2024-03-08 10:00")])
    questions: Questions = {
        "funnel_steps": [{"report": "gone", "funnel_id": 8}, {"report": "buy", "funnel_id": 7}],
        "segmentation": [DAILY],
    }
    result = load_reports(questions, MARCH_8, MARCH_8, raises=False)
    assert isinstance(result.error, EntityNotFoundError)
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("the report 'gone' of funnel_steps is as before: the project has no funnel 8")
    assert sql("select distinct report from funnel_steps") == [("buy",)]
    assert values(sql) == [("daily", MARCH_8, 1)]
    sandbox.faults.next("segmentation", Fault.http(500))
    failed = load_reports({"segmentation": [DAILY]}, MARCH_9, project=replace(project, retries=0), raises=False)
    assert isinstance(failed.error, ServerError)
    assert values(sql) == [("daily", MARCH_8, 1)]
    for body in (b'{"data":{"series":[],"values":{"A":{"2024-03-09":[1]}}}}', b'{"data":{"values":{"A":[]}}}', b"[]"):
        sandbox.faults.next("segmentation", Fault.body(body, "application/json"))
        odd = load_reports({"segmentation": [DAILY]}, MARCH_9, project=replace(project, retries=0), raises=False)
        assert isinstance(odd.error, ServerError)
    funnel = b'{"data":{"2024-03-08":{"steps":[{"event":"A","count":1.5}]}}}'
    sandbox.faults.next("funnels", Fault.body(funnel, "application/json"))
    half = load_reports({"funnel_steps": [questions["funnel_steps"][1]]}, MARCH_9, raises=False)
    assert isinstance(half.error, ServerError)
    assert "'1.5' where a whole number was expected" in half.error.message


def test_a_replacement_that_stops_half_way_leaves_the_report_as_it_was(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    sandbox.add_events([event("A", "u", "2024-03-08 10:00")])
    load_reports({"segmentation": [DAILY]}, MARCH_8, MARCH_9)
    before = values(sql)
    sandbox.add_events([event("A", "late", "2024-03-08 11:00")])
    for table in ("segmentation", "report_days"):
        with merge_broken_off(table), pytest.raises(WarehouseError):
            load_reports({"segmentation": [DAILY]}, MARCH_8, MARCH_8, refresh=True)
        if table == "segmentation":
            assert values(sql) == before
    load_reports({"segmentation": [DAILY]})
    assert values(sql)[:2] == [("daily", MARCH_8, 2), ("daily", MARCH_9, 0)]


def test_what_the_plan_lacks_is_left_out_with_a_warning_that_status_tells(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql, database: Path
) -> None:
    sandbox.plan_402 = ["segmentation", "segmentation/sum"]
    questions: Questions = {
        "segmentation": [DAILY, {"report": "sum", "event": "A", "on": "n", "math": "sum"}],
        "event_counts": [{"report": "c", "events": ["A"]}],
    }
    result = load_reports(questions, MARCH_8, MARCH_8)
    assert [(table.table, table.is_left_out, table.days) for table in result.tables] == [
        ("segmentation", True, 0),
        ("event_counts", False, 1),
    ]
    assert asked(sandbox) == [("segmentation", MARCH_8, MARCH_8), ("events", MARCH_8, MARCH_8)]
    assert result.warnings[0].startswith("segmentation is left out: GET /api/query/segmentation answered 402")
    last = read_records(database)[1]
    assert last is not None
    assert (last.outcome, list(last.warnings)) == ("done", result.warnings)


def test_days_that_the_plan_does_not_reach_back_to_fail_that_report_alone(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql
) -> None:
    births = {"report": "births", "born_event": "A"}
    load_reports({"retention_cohorts": [births]}, "2024-03-01", "2024-03-01")
    sandbox.history_days = 5
    again = {"report": "again", "retention_type": "compounded"}
    result = load_reports({"retention_cohorts": [births, again]}, MARCH_8, MARCH_8, raises=False)
    assert isinstance(result.error, PlanError)
    assert "the report 'births' of retention_cohorts is as before" in result.warnings[0]
    assert sql("select distinct report, date from retention_cohorts order by all") == [
        ("again", MARCH_8),
        ("births", "2024-03-01"),
    ]


def test_what_was_asked_for_before_the_hour_is_used_up_is_written(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.add_events([event("A", "u", "2024-03-08 10:00")])
    monkeypatch.setitem(settings.LIMITS, "query", ((2, 3600.0),))
    questions: Questions = {"segmentation": [{**DAILY, "report": name} for name in ("a", "b", "c")]}
    with pytest.raises(RateLimitError):
        load_reports(questions, MARCH_8, MARCH_8, project=replace(project, wait=False))
    assert [row[0] for row in values(sql)] == ["a", "b"]


def test_each_package_is_written_before_a_long_wait(
    load_reports: LoadReports, sandbox: Sandbox, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.add_events([event("A", "u", "2024-03-08 10:00")])
    monkeypatch.setattr("mixpanel_source.resources.report_tables.PACKAGE_S", 0.0)
    questions: Questions = {"segmentation": [{**DAILY, "report": name} for name in ("a", "b", "c")]}
    assert load_reports(questions, MARCH_8, MARCH_8).tables[0].rows == 3
    assert sql("select count(distinct _dlt_load_id) from segmentation") == [(3,)]


def test_a_table_without_a_question_is_refused_before_anything_is_asked(run_load: RunLoad, sandbox: Sandbox) -> None:
    for table in REPORT_TABLES:
        with pytest.raises(ConfigError, match=f"{table} needs to know what to ask for") as raised:
            run_load(MARCH_8, MARCH_8, resources=("events", table))
        assert f"[[accounts.NAME.{table}]]" in (raised.value.hint or "")
    assert sandbox.requests == []


# --- numbers


def test_numbers_keep_all_their_digits(load_reports: LoadReports, sandbox: Sandbox, sql: Sql) -> None:
    big, long, whole = "9007199254740993", "0.12345678901234567890123", "1" * 5000
    body = f'{{"status":"ok","results":{{"2024-03-08":{big},"2024-03-09":{long},"2024-03-10":{whole}}}}}'
    sandbox.faults.next("segmentation/sum", Fault.body(body.encode(), "application/json"))
    questions: Questions = {
        "segmentation": [{"report": "sum", "event": "A", "on": "n", "math": "sum"}],
        "insights": [{"report": "saved", "bookmark_id": 1}],
    }
    series = f'{{"A":{{"x":{big},"y":"text","z":null,"v":true,"e":1e400}}}}'
    answer = f'{{"headers":["$event"],"computed_at":"soon","date_range":{{"from_date":"soon"}},"series":{series}}}'
    sandbox.faults.next("insights", Fault.body(answer.encode(), "application/json"))
    load_reports(questions, MARCH_8, MARCH_10)
    assert sql("select value_text from segmentation order by date") == [(big,), (long,), (whole,)]
    assert sql("select value from segmentation order by date limit 2") == [(float(big),), (float(long),)]
    assert sql("select path->>1, value, value_text, date, day, computed_at from insights order by path") == [
        ("e", float("inf"), "1e400", None, None, None),
        ("v", None, "true", None, None, None),
        ("x", float(big), big, None, None, None),
        ("y", None, "text", None, None, None),
        ("z", None, None, None, None, None),
    ]


# --- what the readme says


def test_every_column_and_parameter_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    section = readme.partition("### Tables of reports")[2].partition("## Settings")[0]
    words = set(re.findall(r"\w+", section))
    columns = {column for columns in COLUMNS.values() for column, _ in columns}
    params = {name for questions in EVERY_PARAMETER.values() for params in questions for name in params}
    assert (columns | params) - words == set()


# --- as a dlt source, and from the command line


def test_the_source_takes_its_questions_from_dlts_config_or_as_arguments(
    server: SandboxServer,
    sandbox: Sandbox,
    clock: Clock,
    quick: None,
    database: Path,
    sql: Sql,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"USERNAME": "sandbox", "SECRET": "sandbox", "PROJECT_ID": "1", "REGION": "us"}.items():
        monkeypatch.setenv(f"MP_{name}", value)
    monkeypatch.setenv("SOURCES__MIXPANEL__SEGMENTATION__REPORTS", '[{"report":"daily","event":"A","limit":3}]')
    sandbox.add_events([event("A", "u", "2024-03-08 10:00")])

    def source(**options: Any) -> Any:
        return mixpanel_source(MARCH_8, MARCH_9, base_url=server.url, **options)

    pipeline = dlt.pipeline(
        "plain",
        destination=dlt.destinations.duckdb(str(database)),
        dataset_name="mixpanel",
        pipelines_dir=str(tmp_path / "plain"),
    )
    assert set(REPORT_TABLES) < set(source().resources)
    assert sorted(source().selected_resources) == ["events", "profiles"]
    given = {"event_counts": [{"report": "counts", "events": ["A"]}]}
    for refresh in (False, False, True):
        tables = source(**given, refresh=refresh).with_resources("segmentation", "event_counts")
        pipeline.run(tables)
    assert asked(sandbox) == [("segmentation", MARCH_8, MARCH_9), ("events", MARCH_8, MARCH_9)] * 2
    assert values(sql) == [("daily", MARCH_8, 1), ("daily", MARCH_9, 0)]
    assert values(sql, "event_counts") == [("counts", MARCH_8, 1)]
    assert sql("select table_name, report, count(*) from report_days group by all order by all") == [
        ("event_counts", "counts", 2),
        ("segmentation", "daily", 2),
    ]
    with pytest.raises(ConfigError, match="report 'x' of insights: bookmark_id is missing"):
        source(insights=[{"report": "x"}])
    assert sandbox.requests == []
    with Workspace(segmentation=[DAILY], base_url=server.url, path=tmp_path / "workspace.duckdb") as workspace:
        workspace.load("segmentation", from_date=MARCH_8, to_date=MARCH_8)
        assert workspace.sql_rows("select report, value from segmentation") == [("daily", 1.0)]


def test_the_command_takes_its_questions_from_the_account(
    server: SandboxServer,
    sandbox: Sandbox,
    clock: Clock,
    quick: None,
    tmp_path: Path,
    database: Path,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sandbox.add_events([event("A", "u", "2024-03-08 10:00")])
    config = tmp_path / "config.toml"
    monkeypatch.setenv("MP_CONFIG_PATH", str(config))
    monkeypatch.setenv("MP_BASE_URL", server.url)
    account = '[accounts.a]\nusername = "sandbox"\nsecret = "sandbox"\nproject_id = "1"\nregion = "us"\n'

    def load(reports: str, *arguments: str) -> tuple[Any, str]:
        config.write_text(account + reports)
        config.chmod(0o600)
        with pytest.raises(SystemExit) as ended:
            main(["load", *arguments, "--db", str(database)])
        return ended.value.code, capsys.readouterr().err

    daily = '[[accounts.a.segmentation]]\nreport = "daily"\nevent = "A"\n'
    days = ("--from", MARCH_8, "--to", MARCH_9)
    code, said = load(f'{daily}\n[[accounts.a.segmentation]]\nreport = "x"\nevnt = "A"\n', "segmentation", *days)
    assert code == 3
    assert "report 'x' of segmentation: evnt is not a known parameter" in said
    code, said = load("segmentation = [5]\n", "segmentation", *days)
    assert code == 3
    assert f"{config}: accounts.a.segmentation holds a number as report 1" in said
    code, said = load(daily, "event_counts", *days)
    assert code == 3
    assert "event_counts needs to know what to ask for" in said
    assert sandbox.requests == []
    funnel = f'{daily}[[accounts.a.funnel_steps]]\nreport = "gone"\nfunnel_id = 9\n'
    code, said = load(funnel, "segmentation", "funnel_steps", *days)
    assert code == 4
    assert "warning: the report 'gone' of funnel_steps is as before" in said
    assert values(sql) == [("daily", MARCH_8, 1), ("daily", MARCH_9, 0)]
    code, said = load(funnel, "segmentation", "cohorts", *days)
    assert (code, [line for line in said.splitlines() if " received, " not in line]) == (
        0,
        [
            "mpload: the dates do not apply to cohorts: loaded as they are now",
            "mpload: no new segmentation: every day asked for is there and complete",
            f"mpload: loaded into {database}",
        ],
    )
