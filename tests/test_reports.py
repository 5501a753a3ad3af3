"""Live reports as the library's users meet them: over HTTP from the sandbox, with numbers worked out by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests_mock

from mixpanel_source import settings
from mixpanel_source.client import MixpanelClient
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import ConfigError, EntityNotFoundError, QueryError, RateLimitError, ServerError
from mixpanel_source.parsing import reports as parsing
from mixpanel_source.project import Project
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.reports import FunnelStep, Reports, RetentionCohort
from mixpanel_source.sandbox import Sandbox

ROOT = "https://mixpanel.com/api/query"
PLAN = 'properties["plan"]'
DAYS = ("2024-03-01", "2024-03-02")


def event(name: str, user: str, moment: str, **properties: Any) -> dict[str, Any]:
    time_ms = round(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() * 1000)
    return {"event": name, "properties": {"time": time_ms, "distinct_id": user, **properties}}


def values(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in rows]


@pytest.fixture
def reports(project: Project) -> Iterator[Reports]:
    with project.client() as client:
        yield Reports(client)


@pytest.fixture
def mock() -> Iterator[requests_mock.Mocker]:
    with requests_mock.Mocker() as mocker:
        yield mocker


@pytest.fixture
def mocked(mock: requests_mock.Mocker, quick: None) -> Iterator[Reports]:
    """Asks `mock`."""
    with MixpanelClient(Credentials("user", "planted", "7", "us", workspace_id="9")) as client:
        yield Reports(client)


# --- segmentation


def test_segmentation_counts_an_event_as_a_whole_and_by_a_property(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.add_events(
        [
            *[event("A", "u", f"2024-03-08 1{hour}:00", plan="pro") for hour in range(4)],
            event("A", "w", "2024-03-08 10:00", plan="free"),
            event("A", "u", "2024-03-09 10:00", plan="pro"),
        ]
    )
    whole = reports.segmentation("A", "2024-03-08", date(2024, 3, 10))
    assert whole.columns == ("segment", "date", "value")
    assert whole.rows == [
        {"segment": "A", "date": "2024-03-08", "value": 5},
        {"segment": "A", "date": "2024-03-09", "value": 1},
        {"segment": "A", "date": "2024-03-10", "value": 0},
    ]
    assert (whole.total, whole.event, whole.unit, whole.segment_property) == (6, "A", "day", None)
    assert (whole.from_date, whole.to_date) == (date(2024, 3, 8), date(2024, 3, 10))
    assert whole.raw["legend_size"] == 1
    by_plan = reports.segmentation("A", "2024-03-08", "2024-03-08", on="plan", type="unique", limit=2)
    assert sorted(values(by_plan.rows)) == [("free", "2024-03-08", 1), ("pro", "2024-03-08", 1)]
    hours = reports.segmentation("A", "2024-03-08", "2024-03-08", on=PLAN, unit="hour", where=f'{PLAN} == "free"')
    assert [row for row in hours.rows if row["value"]] == [
        {"segment": "free", "date": "2024-03-08 10:00:00", "value": 1}
    ]
    pairs = reports.segmentation("A", "2024-03-08", "2024-03-09", interval=2, type="average")
    assert values(pairs.rows) == [("A", "2024-03-08", 3.0)]


def test_numbers_are_counted_by_ranges_summed_and_averaged(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.add_events([event("A", "u", "2024-03-08 10:00", n=n) for n in (2000, 2099.5, 2100, 2950, "x", None)])
    sandbox.add_events([event("A", "u", "2024-03-09 10:00", n=-50)])

    def asked(**options: Any) -> list[tuple[Any, ...]]:
        return values(reports.segmentation("A", "2024-03-08", "2024-03-10", on="n", **options).rows)

    assert asked(math="numeric", type="general") == [
        ("-500 - 0", "2024-03-09", 1),
        ("2,000 - 2,500", "2024-03-08", 3),
        ("2,500 - 3,000", "2024-03-08", 1),
    ]
    assert asked(math="sum", unit="day") == [
        ("A", "2024-03-08", 9149.5),
        ("A", "2024-03-09", -50.0),
        ("A", "2024-03-10", 0.0),
    ]
    assert asked(math="average")[:2] == [("A", "2024-03-08", 9149.5 / 6), ("A", "2024-03-09", -50.0)]


# --- funnels


def test_a_funnel_is_a_row_for_each_step_and_its_steps_over_all_dates(sandbox: Sandbox, reports: Reports) -> None:
    steps = ["Visit", {"event": "Pay", "label": "Paid"}]
    sandbox.set_funnels([{"funnel_id": 7, "name": "Buy", "steps": steps, "length": 60, "length_unit": "minute"}])
    sandbox.add_events(
        [
            event("Visit", "u", "2024-03-08 10:00"),
            event("Pay", "u", "2024-03-08 10:40"),
            event("Visit", "late", "2024-03-08 10:00"),
            event("Pay", "late", "2024-03-08 11:00:01"),
            event("Visit", "over", "2024-03-08 23:50"),
            event("Pay", "over", "2024-03-09 00:30"),
            event("Visit", "u", "2024-03-09 10:00"),
        ]
    )
    found = reports.funnel(7, "2024-03-08", "2024-03-09", funnel_name="Buy")
    assert values(found.rows) == [
        ("2024-03-08", None, 1, "Visit", None, 3, 1, 1, None, None),
        ("2024-03-08", None, 2, "Pay", "Paid", 2, 2 / 3, 2 / 3, 2400, 2400),
        ("2024-03-09", None, 1, "Visit", None, 1, 1, 1, None, None),
        ("2024-03-09", None, 2, "Pay", "Paid", 0, 0, 0, None, None),
    ]
    assert found.steps == [FunnelStep("Visit", None, 4, 1.0), FunnelStep("Pay", "Paid", 2, 0.5)]
    assert (found.conversion_rate, found.funnel_name) == (0.5, "Buy")
    # Within 3601 seconds the late one pays, too.
    assert reports.funnel(7, "2024-03-08", "2024-03-08", length=3601, length_unit="second").conversion_rate == 1
    two_days = reports.funnel(7, "2024-03-08", "2024-03-09", interval=2, where='properties["$distinct_id"] == "u"')
    assert [row["count"] for row in two_days.rows] == [1, 1]
    with pytest.raises(EntityNotFoundError, match="no funnel 8"):
        reports.funnel(8, "2024-03-08", "2024-03-09")


def test_a_segmented_funnel_is_summed_up_by_its_overall_entry(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.set_funnels([{"funnel_id": 1, "name": "F", "steps": ["A", "B"]}])
    sandbox.add_events(
        [
            event("A", "u", "2024-03-08 10:00", os="x"),
            event("A", "u", "2024-03-08 10:01", os="y"),
            event("A", "w", "2024-03-08 10:00", os="x"),
            event("B", "u", "2024-03-08 10:02"),
        ]
    )
    found = reports.funnel(1, "2024-03-08", "2024-03-08", on="os", unit="week")
    assert [(row["segment"], row["step"], row["count"]) for row in found.rows] == [
        ("$overall", 1, 2),
        ("$overall", 2, 1),
        ("x", 1, 2),
        ("x", 2, 1),
        ("y", 1, 1),
        ("y", 2, 1),
    ]
    assert found.conversion_rate == 0.5


def test_a_funnel_takes_segments_named_steps_and_nobody_and_lacking_a_whole(mocked: Reports, mock: Any) -> None:
    def steps(*counts: int) -> list[dict[str, Any]]:
        return [{"count": count, "event": "E"} for count in counts]

    def rate(bucket: dict[str, Any]) -> float | None:
        mock.get(f"{ROOT}/funnels", json={"meta": {"dates": []}, "data": {"2024-03-08": bucket}})
        return mocked.funnel(1, "2024-03-08", "2024-03-08").conversion_rate

    assert rate({"$overall": steps(4, 1), "steps": steps(1, 1)}) == 0.25
    assert rate({"$overall": {"steps": steps(4, 2)}, "x": {"steps": steps(1, 0)}}) == 0.5
    assert rate({"steps": steps(0, 0), "analysis": {}}) == 0.0
    assert rate({"x": steps(4, 1)}) is None


# --- retention and frequency


def test_retention_is_a_row_for_each_interval_of_each_cohort(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.add_events(
        [
            event("Join", "u", "2024-03-01 20:00"),
            event("Use", "u", "2024-03-02 19:59:59", os="x"),
            event("Use", "u", "2024-03-02 20:00", os="y"),
            event("Join", "w", "2024-03-01 09:00"),
            event("Use", "w", "2024-03-04 10:00", os="x"),
            event("Join", "x", "2024-03-02 09:00", plan="pro"),
        ]
    )
    span = ("2024-03-01", "2024-03-02")
    found = reports.retention(*span, born_event="Join", event="Use", interval_count=2)
    # u came back within the first 24 hours and in the second; w in the fourth.
    assert values(found.rows) == [
        (None, "2024-03-01", 2, 0, 1),
        (None, "2024-03-01", 2, 1, 1),
        (None, "2024-03-01", 2, 2, 0),
        (None, "2024-03-02", 1, 0, 0),
        (None, "2024-03-02", 1, 1, 0),
        (None, "2024-03-02", 1, 2, 0),
    ]
    assert found.cohorts == [
        RetentionCohort("2024-03-01", None, 2, [1, 1, 0]),
        RetentionCohort("2024-03-02", None, 1, [0, 0, 0]),
    ]
    assert (found.born_event, found.return_event, found.unit) == ("Join", "Use", "day")

    def counts(**options: Any) -> list[list[int]]:
        answer = reports.retention(*span, **{"born_event": "Join", "event": "Use", **options})
        return [[cohort.first, *cohort.counts] for cohort in answer.cohorts]

    assert counts(unbounded_retention=True)[0] == [2, 2, 2]
    assert counts(born_where=f'{PLAN} == "pro"') == [[0, 0, 0], [1, 0, 0]]
    assert counts(where=f'{PLAN} == "pro"')[0] == [2, 0, 0]
    assert counts(interval=4) == [[3, 2, 0]]
    assert counts(unit="week", retention_type="birth") == [[3, 2, 0]]
    by_os = reports.retention(*span, born_event="Join", event="Use", on="os", limit=1)
    assert [(row["segment"], row["first"], row["count"]) for row in by_os.rows][:2] == [("x", 2, 1), ("x", 2, 0)]
    # Those who used it on a day, and whether they did again.
    again = reports.retention("2024-03-02", "2024-03-02", retention_type="compounded", event="Use")
    assert [(cohort.first, cohort.counts) for cohort in again.cohorts] == [(1, [1, 0])]


def test_frequency_counts_hours_in_both_shapes_of_the_answer(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.add_events(
        [
            event("A", "u", "2024-03-05 10:00", os="x"),
            event("A", "u", "2024-03-05 11:00", os="x"),
            event("A", "w", "2024-03-05 10:00", os="y"),
        ]
    )
    for shape in ([], ["retention/addiction"]):
        sandbox.other_shape = shape
        found = reports.frequency("2024-03-05", "2024-03-05", event="A")
        assert values(found.rows)[:3] == [
            (None, "2024-03-05", 1, 2),
            (None, "2024-03-05", 2, 1),
            (None, "2024-03-05", 3, 0),
        ]
        assert len(found.rows) == 24
        week = reports.frequency("2024-03-05", "2024-03-06", unit="week", addiction_unit="day", on="os", limit=1)
        assert values(week.rows)[:2] == [("x", "2024-03-04", 1, 1), ("x", "2024-03-04", 2, 0)]
        assert len(week.rows) == 7


# --- saved reports


def test_insights_are_flattened_however_deep_they_are(sandbox: Sandbox, reports: Reports) -> None:
    query = {"events": ["A"], "from_date": "2024-03-09", "to_date": "2024-03-10", "on": PLAN}
    first, second = "2024-03-09T00:00:00+00:00", "2024-03-10T00:00:00+00:00"
    funnel = {"Buy": {"count": {"1. Visit": {"all": 5}, "2. Pay": {"all": 2}}}}
    cohort = {"first": 4, "counts": [3, 1]}
    sandbox.set_bookmarks(
        [
            {"id": 1, "query": query},
            {"id": 2, "type": "funnels", "report": {"headers": ["$funnel"], "series": funnel}},
            {
                "id": 3,
                "type": "retention",
                "report": {"headers": ["$retention"], "series": {"R": {"2024-03-01T00:00:00": cohort}}},
            },
            # A breakdown by a property that holds dates, not over time.
            {"id": 4, "report": {"headers": ["$event", "due"], "series": {"A": {"2024-05-01": 3}}}},
        ]
    )
    sandbox.add_events([event("A", "u", "2024-03-09 10:00", plan="pro"), event("A", "u", "2024-03-10 10:00")])
    found = reports.insights(1)
    assert values(found.rows) == [
        (["A", "$overall"], first, 1),
        (["A", "$overall"], second, 1),
        (["A", "pro"], first, 1),
        (["A", "pro"], second, 0),
        (["A", "undefined"], first, 0),
        (["A", "undefined"], second, 1),
    ]
    assert (found.headers, found.from_date) == (["$event", PLAN], first)
    assert found.computed_at is not None
    assert values(reports.insights(2).rows) == [
        (["Buy", "count", "1. Visit", "all"], None, 5),
        (["Buy", "count", "2. Pay", "all"], None, 2),
    ]
    assert values(reports.insights(3).rows) == [
        (["R", "first"], "2024-03-01T00:00:00", 4),
        (["R", "counts", "0"], "2024-03-01T00:00:00", 3),
        (["R", "counts", "1"], "2024-03-01T00:00:00", 1),
    ]
    assert values(reports.insights(4).rows) == [(["A", "2024-05-01"], None, 3)]
    with pytest.raises(EntityNotFoundError, match="no bookmark 99"):
        reports.insights(99)


# --- counts, activity, scripts


def test_events_and_properties_are_counted_and_absent_dates_stay_absent(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.add_events(
        [
            event("A", "u", "2024-03-10 10:00", plan="pro"),
            event("A", "w", "2024-03-10 10:00", plan="free"),
            event("A", "w", "2024-03-11 10:00", plan="pro"),
            event("B", "u", "2024-03-11 07:30"),
        ]
    )
    counts = reports.event_counts(["A", "B", "C"], "2024-03-09", "2024-03-11")
    assert values(counts.rows) == [("A", "2024-03-10", 2), ("A", "2024-03-11", 1), ("B", "2024-03-11", 1)]
    assert (counts.columns, counts.total) == (("event", "date", "value"), 4)
    assert values(reports.event_counts(["A"], interval=1, type="unique", unit="week").rows) == [("A", "2024-03-11", 1)]
    by_plan = reports.property_counts("A", "plan", "2024-03-10", "2024-03-11", limit=1)
    assert values(by_plan.rows) == [("pro", "2024-03-10", 1), ("pro", "2024-03-11", 1)]
    free = reports.property_counts("A", "plan", values=["free"], interval=2)
    assert values(free.rows) == [("free", "2024-03-10", 1)]


def test_the_activity_of_users_has_their_id_under_one_name(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.add_events(
        [
            event("A", "w", "2024-03-09 14:00"),
            event("B", "u", "2024-03-09 15:00", n=1),
            event("B", "x", "2024-03-09 15:00"),
        ]
    )
    found = reports.activity(["u", "w"], "2024-03-09", "2024-03-09")
    assert [(row["event"], row["time"], row["distinct_id"]) for row in found.rows] == [
        ("A", 1709992800, "w"),
        ("B", 1709996400, "u"),
    ]
    assert found.rows[1]["properties"] == {"time": 1709996400, "n": 1, "distinct_id": "u"}


def test_a_script_gets_its_params_as_json_in_a_form(sandbox: Sandbox, reports: Reports) -> None:
    sandbox.set_jql("main(params)", lambda params: [{"name": "A", "n": params["n"]}, {"other": params["é"]}, 5])
    found = reports.jql("main(params)", {"n": 1, "é": "ü"})
    assert found.columns == ("name", "n", "other", "value")
    assert values(found.rows) == [("A", 1, None, None), (None, None, "ü", None), (None, None, None, 5)]
    assert found.raw == [{"name": "A", "n": 1}, {"other": "ü"}, 5]
    sandbox.set_jql("nothing", [])
    assert (reports.jql("nothing").rows, reports.jql("nothing").columns) == ([], ("value",))
    with pytest.raises(QueryError) as refused:
        reports.jql("function main( {")
    assert refused.value.status == 412


def test_a_script_may_take_two_minutes(mocked: Reports, mock: Any) -> None:
    mock.post(f"{ROOT}/jql", json=[1])
    mock.get(f"{ROOT}/events", json={"data": {"series": [], "values": {}}})
    mocked.jql("s")
    assert mock.last_request.timeout == (settings.TIMEOUT_S, settings.JQL_TIMEOUT_S)
    assert mock.last_request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert mock.last_request.text == "script=s"
    mocked.event_counts(["A"], interval=1)
    assert mock.last_request.timeout == (settings.TIMEOUT_S, settings.TIMEOUT_S)


# --- what is sent, and what is not


@pytest.mark.parametrize(
    ("on", "sent"),
    [
        ("plan", 'properties["plan"]'),
        ("$os", 'properties["$os"]'),
        ("carrier näme_2", 'properties["carrier näme_2"]'),
        ("Order Value", 'properties["Order Value"]'),
        ("Logged In", 'properties["Logged In"]'),
        ("in", 'properties["in"]'),
        ("Terms And Conditions", 'properties["Terms And Conditions"]'),
        ("brand origin", 'properties["brand origin"]'),
        ("note", 'properties["note"]'),
        ("a and b", "a and b"),
        ("a  or b", "a  or b"),
        ("a AND b OR c", "a AND b OR c"),
        ("a in b", "a in b"),
        ("not a", "not a"),
        ('user["plan"]', 'user["plan"]'),
        ("boolean(1)", "boolean(1)"),
        ("true", "true"),
        ("1", "1"),
    ],
)
def test_a_bare_name_is_that_property(on: str, sent: str, mocked: Reports, mock: Any) -> None:
    mock.get(f"{ROOT}/segmentation", json={"data": {"series": [], "values": {}}})
    assert mocked.segmentation("A", *DAYS, on=on).segment_property == on
    assert parse_qs(urlsplit(mock.last_request.url).query)["on"] == [sent]


REFUSED: dict[str, Callable[[Reports], object]] = {
    "from_date '1.3.2024' is not a day": lambda r: r.segmentation("A", "1.3.2024", "2024-03-02"),
    "the days end": lambda r: r.segmentation("A", "2024-03-02", "2024-03-01"),
    "event is empty": lambda r: r.segmentation("", *DAYS),
    "where is empty": lambda r: r.segmentation("A", *DAYS, where=" "),
    "type is one of": lambda r: r.segmentation("A", *DAYS, type="total"),
    "unit is one of minute, hour, day, month": lambda r: r.segmentation("A", *DAYS, unit="week"),
    "unit is one of hour, day, not": lambda r: r.segmentation("A", *DAYS, on="n", math="sum", unit="month"),
    "needs a number": lambda r: r.segmentation("A", *DAYS, math="sum"),
    "type does not go with math 'sum'": lambda r: r.segmentation("A", *DAYS, on="n", math="sum", type="unique"),
    "limit does not go with math": lambda r: r.segmentation("A", *DAYS, on="n", math="numeric", limit=3),
    "interval stands in for unit": lambda r: r.segmentation("A", *DAYS, interval=2),
    "limit is a number from 1 to 10000": lambda r: r.segmentation("A", *DAYS, on="n", limit=10_001),
    "either unit or interval": lambda r: r.retention(*DAYS, born_event="A", unit="day", interval=1),
    "interval is a number from 1 to 90": lambda r: r.retention(*DAYS, born_event="A", interval=91),
    "born_event is missing": lambda r: r.retention(*DAYS),
    "born_event does not go with": lambda r: r.retention(*DAYS, retention_type="compounded", born_event="A"),
    "unit is one of day, week, month": lambda r: r.funnel(1, *DAYS, unit="hour"),
    "either unit or interval, and": lambda r: r.funnel(1, *DAYS, unit="day", interval=1),
    "at most 90 days": lambda r: r.funnel(1, *DAYS, length=91),
    "length_unit goes with length": lambda r: r.funnel(1, *DAYS, length_unit="day"),
    "funnel_id is a number from 1": lambda r: r.funnel(-1, *DAYS),
    "addiction_unit is one of hour, day": lambda r: r.frequency(*DAYS, addiction_unit="week"),
    "unique users by the hour": lambda r: r.event_counts(["A"], *DAYS, type="unique", unit="hour"),
    "unique users by the minute": lambda r: r.property_counts("A", "n", *DAYS, type="unique", unit="minute"),
    "either dates or interval": lambda r: r.event_counts(["A"], *DAYS, interval=2),
    "from_date is missing": lambda r: r.event_counts(["A"]),
    "to_date is missing": lambda r: r.property_counts("A", "n", "2024-03-01"),
    "events is a list": lambda r: r.event_counts("A", *DAYS),
    "values is a list": lambda r: r.property_counts("A", "n", *DAYS, values=[]),
    "distinct_ids is a list": lambda r: r.activity([], *DAYS),
    "script is empty": lambda r: r.jql(" "),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_mixpanel_would_refuse_is_refused_before_a_request_is_spent(
    message: str, mocked: Reports, mock: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        REFUSED[message](mocked)
    assert mock.call_count == 0


def test_a_report_waits_for_the_hour_only_where_it_is_told_to(mock: Any) -> None:
    mock.get(f"{ROOT}/events", json={"data": {"series": [], "values": {}}})
    now = [1_800_000_000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    ledger = RequestLedger(None, origin="https://mixpanel.com", project_id="7", clock=lambda: now[0])
    ledger.penalize("query", 1800)
    for allowed in (True, False):
        client = MixpanelClient(
            Credentials("user", "planted", "7", "us"),
            ledger=ledger,
            wait=allowed,
            clock=lambda: now[0],
            sleep=sleep,
        )
        with client, pytest.raises(RateLimitError):
            Reports(client).event_counts(["A"], interval=1)
    assert mock.call_count == 0
    with MixpanelClient(
        Credentials("user", "planted", "7", "us"), ledger=ledger, wait=False, clock=lambda: now[0], sleep=sleep
    ) as client:
        Reports(client, wait=True).event_counts(["A"], interval=1)
    assert (mock.call_count, now[0]) == (1, 1_800_001_800.0)


# --- odd answers


@pytest.mark.parametrize(
    ("path", "answer", "ask"),
    [
        ("segmentation", {"data": {"series": []}}, lambda r: r.segmentation("A", *DAYS)),
        ("segmentation", [], lambda r: r.segmentation("A", *DAYS)),
        ("segmentation/sum", {"status": "ok"}, lambda r: r.segmentation("A", *DAYS, on="n", math="sum")),
        ("funnels", {"data": []}, lambda r: r.funnel(1, *DAYS)),
        ("funnels", {"data": {"2024-03-01": 5}}, lambda r: r.funnel(1, *DAYS)),
        ("retention", {"2024-03-01": {"counts": [1]}}, lambda r: r.retention(*DAYS, born_event="A")),
        ("retention/addiction", {"data": 1}, lambda r: r.frequency(*DAYS)),
        ("insights", {"computed_at": "x"}, lambda r: r.insights(1)),
        ("stream/query", {"results": []}, lambda r: r.activity(["u"], *DAYS)),
    ],
)
def test_what_is_no_report_is_an_error(
    path: str, answer: Any, ask: Callable[[Reports], object], mocked: Reports, mock: Any
) -> None:
    mock.get(f"{ROOT}/{path}", json=answer)
    with pytest.raises(ServerError, match="no such report"):
        ask(mocked)


def test_series_without_data_are_read_and_unsorted_ones_sorted() -> None:
    bare = {"series": ["2024-03-02", "2024-03-01"], "values": {"2,000 - 2,100": {"2024-03-02": 1, "2024-03-01": 2}}}
    assert [row["date"] for row in parsing.series_rows(bare)] == ["2024-03-01", "2024-03-02"]
    assert parsing.series_rows({"data": bare}) == parsing.series_rows(bare)
    assert parsing.series_rows({"data": {"series": ["2024-03-01"], "values": {"A": {}}}}) == []
    wrapped = {"data": {"2024-03-01": {"counts": [1], "first": 2}}}
    assert parsing.retention_rows(wrapped) == parsing.retention_rows(wrapped["data"])


def test_an_error_inside_a_200_is_one(mocked: Reports, mock: Any) -> None:
    mock.get(f"{ROOT}/insights", json={"request": "x", "error": "report is broken"})
    with pytest.raises(QueryError, match="report is broken"):
        mocked.insights(1)
    mock.get(f"{ROOT}/insights", status_code=400, json={"error": "no"})
    with pytest.raises(QueryError) as refused:
        mocked.insights(1)
    assert type(refused.value) is QueryError


# --- frames


def test_a_frame_has_the_columns_even_without_rows(mocked: Reports, mock: Any) -> None:
    mock.get(f"{ROOT}/events", json={"data": {"series": [], "values": {"A": {"2024-03-01": 2}}}})
    found = mocked.event_counts(["A"], interval=1)
    assert json.loads(found.df.to_json(orient="records")) == found.rows
    assert found.df is found.df
    mock.get(f"{ROOT}/events", json={"data": {"series": [], "values": {}}})
    assert list(mocked.event_counts(["A"], interval=1).df.columns) == ["event", "date", "value"]


def test_without_pandas_a_frame_says_what_to_install(
    mocked: Reports, mock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.get(f"{ROOT}/events", json={"data": {"series": [], "values": {}}})
    found = mocked.event_counts(["A"], interval=1)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="needs pandas"):
        _ = found.df
