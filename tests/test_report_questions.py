"""Questions for the tables of reports: what is one, what is refused, and which days are asked for. Nobody is asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from mixpanel_source.credentials import Account, Credentials
from mixpanel_source.errors import ConfigError
from mixpanel_source.project import Project, project_of
from mixpanel_source.report_days import ReportDay, ReportPlan, are_expected, plan_of, report_days
from mixpanel_source.report_questions import NEVER_DAYS, Question, questions_of
from mixpanel_source.settings import REPORT_TABLES
from mixpanel_source.windows import DateRange, Window

CREDENTIALS = Credentials("user", "secret", "1", "us")
NOW = datetime(2024, 3, 11, 12, tzinfo=UTC)  # a Monday


def question(table: str, **params: Any) -> Question:
    (found,) = questions_of(table, [{"report": "r", **params}])
    return found


# --- what is one

EVERY_PARAMETER: dict[str, list[dict[str, Any]]] = {
    "segmentation": [
        {"event": "A", "on": "plan", "unit": "hour", "where": "true", "type": "unique", "limit": 10_000},
        {"event": "A", "interval": 2, "type": "average"},
        {"event": "A", "on": "n", "math": "numeric", "unit": "day", "type": "unique"},
        {"event": "A", "on": "n", "math": "sum"},
        {"event": "A", "on": "n", "math": "average", "where": "true"},
    ],
    "event_counts": [{"events": ["A", "B"], "unit": "week", "type": "unique"}],
    "funnel_steps": [
        {"funnel_id": 7, "length": 90, "length_unit": "day", "unit": "week", "on": "x", "where": "true", "limit": 3},
        {"funnel_id": 7, "interval": 3},
    ],
    "retention_cohorts": [
        {
            "born_event": "A",
            "event": "B",
            "retention_type": "birth",
            "born_where": "true",
            "where": "true",
            "interval_count": 3,
            "unit": "week",
            "unbounded_retention": True,
            "on": "x",
            "limit": 3,
        },
        {"retention_type": "compounded", "interval": 7},
        {
            "retention_type": "frequency",
            "unit": "week",
            "addiction_unit": "day",
            "event": "A",
            "where": "true",
            "on": "x",
            "limit": 3,
        },
    ],
    "insights": [{"bookmark_id": 12345}],
}


@pytest.mark.parametrize("table", REPORT_TABLES)
def test_every_documented_parameter_can_be_given(table: str) -> None:
    for params in EVERY_PARAMETER[table]:
        assert question(table, **params).params == params


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("segmentation", {"event": "A", "evnt": "B"}, "evnt is not a known parameter"),
    ("segmentation", {"event": "A", "retention_type": "frequency"}, "retention_type is not a known parameter"),
    ("segmentation", {}, "event is missing"),
    ("segmentation", {"event": 5}, "event is text, not 5"),
    ("segmentation", {"event": " "}, "event is empty"),
    ("segmentation", {"event": "A", "unit": "week"}, "unit is one of minute, hour, day, month"),
    ("segmentation", {"event": "A", "limit": True}, "limit is a whole number, not True"),
    ("segmentation", {"event": "A", "limit": "3"}, "limit is a whole number, not '3'"),
    ("segmentation", {"event": "A", "limit": 10_001}, "limit is a number from 1 to 10000"),
    ("segmentation", {"event": "A", "from_date": "2024-01-01"}, "from_date is not its own"),
    ("segmentation", {"event": "A", "math": "sum"}, "needs a number"),
    ("segmentation", {"event": "A", "on": date(2024, 1, 1)}, "on is text, not datetime.date"),
    ("event_counts", {"events": "A"}, "events is a list of texts, not 'A'"),
    ("event_counts", {"events": []}, "events is a list of one event name or more"),
    ("event_counts", {"events": ["A", 5]}, "events is a list of texts"),
    ("event_counts", {"events": ["A"], "interval": 7}, "interval is not a known parameter"),
    ("event_counts", {"events": ["A"], "unit": "hour", "type": "unique"}, "unique users by the hour"),
    ("funnel_steps", {"funnel_id": 7, "funnel_name": "Buy"}, "funnel_name is not a known parameter"),
    ("funnel_steps", {"funnel_id": -7}, "funnel_id is a number from 1"),
    ("funnel_steps", {"funnel_id": 7, "unit": "day", "interval": 2}, "either unit or interval"),
    ("funnel_steps", {"funnel_id": 7, "length": 91}, "at most 90 days"),
    ("retention_cohorts", {}, "born_event is missing"),
    ("retention_cohorts", {"retention_type": "frequency", "born_event": "A"}, "born_event is not a known parameter"),
    ("retention_cohorts", {"retention_type": "frequency", "addiction_unit": "week"}, "addiction_unit is one of"),
    ("retention_cohorts", {"born_event": "A", "unbounded_retention": "yes"}, "unbounded_retention is true or false"),
    ("insights", {}, "bookmark_id is missing"),
    ("insights", {"bookmark_id": 1.5}, "bookmark_id is a whole number"),
]


@pytest.mark.parametrize(("table", "params", "problem"), WRONG)
def test_a_wrong_question_says_its_table_its_name_and_the_parameter(
    table: str, params: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        questions_of(table, [{"report": "odd 'one'", **params}])
    assert raised.value.message.startswith(f"report \"odd 'one'\" of {table}: ")
    assert problem in raised.value.message


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"report": "r", "event": "A"}, "are a list"),
        ("r", "are a list"),
        (["r"], "report 1 of segmentation is no table of parameters"),
        ([{"report": "r", "event": "A"}, {"event": "A"}], "report 2 of segmentation has no name"),
        ([{"report": " ", "event": "A"}], "report 1 of segmentation has no name"),
        ([{"report": 5, "event": "A"}], "report 1 of segmentation has no name"),
        ([{"report": "r", "event": "A"}, {"report": "r", "event": "B"}], "two reports named 'r'"),
    ],
)
def test_each_question_has_a_name_of_its_own(given: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        questions_of("segmentation", given)


def test_the_project_has_the_accounts_questions_unless_others_are_given() -> None:
    one, other = [{"report": "a", "event": "A"}], [{"report": "b", "event": "B"}]
    account = Account(CREDENTIALS, load_settings={"segmentation": one, "insights": [{"report": "i", "bookmark_id": 1}]})
    assert [(q.table, q.report) for q in project_of(account).questions] == [("segmentation", "a"), ("insights", "i")]
    given = project_of(account, segmentation=other, insights=[])
    assert [(q.table, q.report) for q in given.questions] == [("segmentation", "b")]
    assert project_of(account.of_project("2")).questions == ()
    with pytest.raises(ConfigError, match="report 'a' of event_counts: events is missing"):
        project_of(account, event_counts=[{"report": "a"}])


def test_the_same_question_has_the_same_text_in_any_order_and_another_one_in_another_workspace() -> None:
    first = question("segmentation", event="Ä", on="plan", limit=None)
    assert first.text(None) == question("segmentation", on="plan", event="Ä").text(None) == '{"event":"Ä","on":"plan"}'
    assert first.text("9") == '{"event":"Ä","on":"plan","workspace_id":"9"}'


@pytest.mark.parametrize(
    ("table", "params", "days"),
    [
        ("segmentation", {"event": "A"}, 0),
        ("event_counts", {"events": ["A"], "unit": "month"}, 0),
        ("funnel_steps", {"funnel_id": 1}, 90),
        ("funnel_steps", {"funnel_id": 1, "length": 7}, 7),
        ("funnel_steps", {"funnel_id": 1, "length": 25, "length_unit": "hour"}, 2),
        ("funnel_steps", {"funnel_id": 1, "length": 1, "length_unit": "second"}, 1),
        ("retention_cohorts", {"born_event": "A"}, 2),
        ("retention_cohorts", {"born_event": "A", "interval_count": 3, "unit": "week"}, 28),
        ("retention_cohorts", {"retention_type": "compounded", "interval_count": 2, "unit": "month"}, 93),
        ("retention_cohorts", {"born_event": "A", "interval": 5, "interval_count": 1}, 10),
        ("retention_cohorts", {"born_event": "A", "interval_count": 10**9}, NEVER_DAYS),
        ("retention_cohorts", {"born_event": "A", "unbounded_retention": True}, NEVER_DAYS),
        ("retention_cohorts", {"retention_type": "frequency", "unit": "month"}, 0),
    ],
)
def test_a_day_stays_open_as_long_as_users_may_still_convert_or_come_back(
    table: str, params: dict[str, Any], days: int
) -> None:
    assert question(table, **params).open_days == days


# --- which days


def plan(
    asked: Question,
    from_date: str | None = None,
    to_date: str | None = None,
    *,
    known: list[ReportDay] | None = None,
    refresh: bool = False,
    now: datetime = NOW,
    **project: Any,
) -> ReportPlan | None:
    first, last = (date.fromisoformat(day) if day else None for day in (from_date, to_date))
    return plan_of(asked, DateRange(first, last, refresh), known or [], Project(CREDENTIALS, **project), now)


def windows(*given: Any, **options: Any) -> list[str]:
    planned = plan(*given, **options)
    return [] if planned is None else [str(window) for window in planned.windows]


def loaded(
    first: str, last: str, asked_at: datetime = NOW, text: str = '{"event":"A"}', complete: bool = True
) -> list[ReportDay]:
    days = Window(date.fromisoformat(first), date.fromisoformat(last)).days
    return [ReportDay("r", text, day, asked_at, complete) for day in days]


DAILY = question("segmentation", event="A")


def test_days_that_touch_are_one_request_and_complete_ones_none() -> None:
    assert windows(DAILY, "2024-03-01", "2024-03-08") == ["2024-03-01 to 2024-03-08"]
    known = loaded("2024-03-03", "2024-03-04")
    assert windows(DAILY, "2024-03-01", "2024-03-08", known=known) == [
        "2024-03-01 to 2024-03-02",
        "2024-03-05 to 2024-03-08",
    ]
    assert windows(DAILY, "2024-03-03", "2024-03-04", known=known) == []
    assert windows(DAILY, "2024-03-03", "2024-03-04", known=known, refresh=True) == ["2024-03-03 to 2024-03-04"]
    other = [replace(day, report="other") for day in known]
    assert windows(DAILY, "2024-03-03", "2024-03-04", known=other) == ["2024-03-03 to 2024-03-04"]
    not_written = loaded("2024-03-03", "2024-03-04", complete=False)
    assert windows(DAILY, "2024-03-03", "2024-03-04", known=not_written) == ["2024-03-03 to 2024-03-04"]


def test_without_dates_unsettled_days_are_asked_for_again() -> None:
    assert windows(DAILY, start_date=date(2024, 3, 1)) == ["2024-03-01 to 2024-03-10"]
    assert windows(DAILY) == ["2024-02-10 to 2024-03-10"]
    known = loaded("2024-03-01", "2024-03-10")
    later = NOW + timedelta(days=3)
    # 5 March was over at the 6th, and was asked for 5 days and 12 hours after that.
    assert windows(DAILY, known=known, now=later) == ["2024-03-06 to 2024-03-13"]
    assert windows(DAILY, known=known, now=later, lookback_days=0) == ["2024-03-11 to 2024-03-13"]
    # Within 2 days after, users of a day can still finish the funnel: 3 March is the last one that is settled.
    funnel = question("funnel_steps", funnel_id=1, length=2)
    days = loaded("2024-03-01", "2024-03-10", text=funnel.text(None))
    assert windows(funnel, known=days, now=later) == ["2024-03-04 to 2024-03-13"]


def test_buckets_are_asked_for_whole_as_far_as_they_are_over() -> None:
    weeks = question("event_counts", events=["A"], unit="week")
    assert windows(weeks, "2024-02-29", "2024-02-29") == ["2024-02-26 to 2024-03-03"]
    assert windows(weeks, "2024-03-08", "2024-03-08") == ["2024-03-04 to 2024-03-10"]
    assert windows(weeks, "2024-03-11", "2024-03-11") == ["2024-03-11"]
    assert windows(weeks, "2000-01-01", "2000-01-01") == ["2000-01-01 to 2000-01-02"]
    months = question("segmentation", event="A", unit="month")
    assert windows(months, "2024-02-29", "2024-02-29") == ["2024-02-01 to 2024-02-29"]
    assert windows(months, "2024-02-29", "2024-03-01") == ["2024-02-01 to 2024-03-10"]
    assert windows(months, "2024-03-01", "2024-03-11") == ["2024-03-01 to 2024-03-11"]
    assert windows(months, "2023-12-31", "2023-12-31") == ["2023-12-01 to 2023-12-31"]
    hours = question("segmentation", event="A", unit="hour")
    assert windows(hours, "2024-03-08", "2024-03-08") == ["2024-03-08"]


def test_the_range_of_births_and_of_buckets_of_some_days_always_begins_with_the_first_day() -> None:
    births = question("retention_cohorts", born_event="A")
    known = loaded("2024-03-01", "2024-03-02", text=births.text(None))
    assert windows(births, "2024-03-08", "2024-03-09", known=known) == ["2024-03-01 to 2024-03-09"]
    assert windows(births, "2024-02-28", "2024-02-28", known=known) == ["2024-02-28 to 2024-03-02"]
    assert windows(births, "2024-03-01", "2024-03-02", known=known) == []
    by_week = question("retention_cohorts", born_event="A", unit="week")
    assert windows(by_week, "2024-02-29", "2024-02-29") == ["2024-02-26 to 2024-03-03"]
    threes = question("funnel_steps", funnel_id=1, interval=3)
    assert windows(threes, "2024-03-01", "2024-03-01") == ["2024-03-01 to 2024-03-03"]
    assert windows(threes, "2024-03-01", "2024-03-09") == ["2024-03-01 to 2024-03-09"]
    assert windows(threes, "2024-03-01", "2024-03-08") == ["2024-03-01 to 2024-03-09"]
    assert windows(threes, "2024-03-09", "2024-03-09") == ["2024-03-09 to 2024-03-10"]
    one_range = plan(births, "2024-03-08", "2024-03-09", known=known)
    assert one_range is not None
    assert one_range.replaces_all
    compounded = question("retention_cohorts", retention_type="compounded")
    days = loaded("2024-03-01", "2024-03-02", text=compounded.text(None))
    assert windows(compounded, "2024-03-08", "2024-03-09", known=days) == ["2024-03-08 to 2024-03-09"]


def test_a_question_that_was_changed_is_loaded_anew() -> None:
    known = loaded("2024-02-01", "2024-03-10", text='{"event":"A","type":"unique"}')
    changed = plan(DAILY, known=known)
    assert changed is not None
    assert changed.replaces_all
    assert changed.windows == (Window(date(2024, 2, 1), date(2024, 3, 10)),)
    some = plan(DAILY, "2024-03-01", "2024-03-02", known=known)
    assert some is not None
    assert (some.replaces_all, some.days()) == (True, [date(2024, 3, 1), date(2024, 3, 2)])
    same = plan(DAILY, "2024-03-01", "2024-03-02", known=loaded("2024-02-01", "2024-02-01"))
    assert same is not None
    assert not same.replaces_all


def test_days_are_those_of_the_calendar_of_reports() -> None:
    tokyo, new_york = {"project_timezone": "Asia/Tokyo"}, {"project_timezone": "America/New_York"}
    late, early = datetime(2024, 3, 10, 20, tzinfo=UTC), datetime(2024, 3, 11, 2, tzinfo=UTC)
    # In Tokyo the 11th has begun, in New York the 10th is not over; exports count in UTC.
    assert windows(DAILY, "2024-03-10", now=late, **tokyo) == ["2024-03-10"]
    assert windows(DAILY, "2024-03-10", "2024-03-11", now=late, **tokyo) == ["2024-03-10 to 2024-03-11"]
    assert windows(DAILY, "2024-03-09", now=early, **new_york) == ["2024-03-09"]
    # The exports' today is the reports' yesterday there.
    assert windows(DAILY, "2024-03-09", "2024-03-11", now=early, **new_york) == ["2024-03-09 to 2024-03-10"]
    assert windows(DAILY, "2024-03-11", "2024-03-11", now=early, **new_york) == ["2024-03-10"]
    with pytest.raises(ConfigError, match="in the future"):
        windows(DAILY, "2024-03-09", "2024-03-12", now=early, **new_york)


@pytest.mark.parametrize(
    ("unit", "days", "expected"),
    [
        ("day", ["2024-03-04", "2024-03-10"], True),
        ("hour", ["2024-03-10"], True),
        ("day", ["2024-03-03"], False),
        ("day", ["2024-03-11"], False),
        ("day", [None], False),
        ("week", ["2024-03-04"], True),
        ("week", ["2024-03-10"], False),
        ("month", ["2024-03-04"], False),
        ("week", [], True),
    ],
)
def test_dates_are_expected_within_what_was_asked_for_and_where_a_bucket_begins(
    unit: str, days: list[str | None], expected: bool
) -> None:
    found = [None if day is None else date.fromisoformat(day) for day in days]
    assert are_expected(found, Window(date(2024, 3, 4), date(2024, 3, 10)), unit) is expected


def test_a_day_counts_only_once_its_load_package_is_complete() -> None:
    row = ("segmentation", "r", "{}", date(2024, 3, 1), NOW)
    rows = [(*row, True, 0), (*row, True, 1), (*row, True, None), (*row, False, 0), ("insights", *row[1:], True, 0)]
    assert [day.complete for day in report_days(rows, "segmentation")] == [True, False, False, False]


def test_a_saved_report_is_asked_for_as_it_is() -> None:
    planned = plan(question("insights", bookmark_id=1), "2024-03-01", "2024-03-02")
    assert planned is not None
    assert (planned.windows, planned.days(), planned.replaces_all) == ((None,), [], True)
