"""The sandbox's reports, over real HTTP: counts worked out by hand, and refusals. The project lies in New York."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import requests

from mixpanel_source.sandbox import Sandbox, SandboxServer, demo_folder

NEW_YORK = ZoneInfo("America/New_York")
NOW = datetime(2024, 3, 11, 12, tzinfo=UTC)
"""A Monday, 8 in the morning in New York, a day after its clocks went from UTC-5 to UTC-4."""

Ask = Callable[..., Any]


@pytest.fixture(params=[False, True], ids=["new project", "old project"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Reports are the same whether exported times are true or wall clocks."""
    return Sandbox(now=NOW, limits=False, project_timezone="America/New_York", legacy_local_time=request.param)


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = ("sandbox", "sandbox")
        yield session


@pytest.fixture
def ask(server: SandboxServer, http: requests.Session) -> Ask:
    """The parsed answer of a report."""

    def answer(path: str, **params: str) -> Any:
        response = http.get(f"{server.url}/api/query/{path}", params={"project_id": "1", **params})
        assert response.status_code == 200, response.text
        return response.json()

    return answer


def event(name: str, user: str, local: str, **properties: Any) -> dict[str, Any]:
    """An event at a moment by New York's clock."""
    time_ms = round(datetime.fromisoformat(local).replace(tzinfo=NEW_YORK).timestamp() * 1000)
    return {"event": name, "properties": {"time": time_ms, "distinct_id": user, **properties}}


def days(from_date: str, to_date: str) -> dict[str, str]:
    return {"from_date": from_date, "to_date": to_date}


# What is counted, and where


def test_a_day_is_the_projects_own_over_a_change_of_its_clock(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("A", "u", "2024-03-08 23:59:59.999"),
            event("A", "u", "2024-03-09 00:00"),
            event("A", "u", "2024-03-10 00:00"),
            event("A", "u", "2024-03-10 03:00"),
            event("A", "u", "2024-03-10 23:59:59"),
            event("A", "u", "2024-03-11 00:00"),
        ]
    )
    assert ask("segmentation", event="A", **days("2024-03-08", "2024-03-11")) == {
        "data": {
            "series": ["2024-03-10", "2024-03-11", "2024-03-08", "2024-03-09"],
            "values": {"A": {"2024-03-08": 1, "2024-03-09": 1, "2024-03-10": 3, "2024-03-11": 1}},
        },
        "legend_size": 1,
    }
    assert ask("segmentation", event="A", **days("2024-03-09", "2024-03-09"))["data"]["values"] == {
        "A": {"2024-03-09": 1}
    }


def test_copies_of_an_event_count_once_and_the_latest_ingested_stays(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("A", "u", "2024-03-09 10:00", v="late", **{"$insert_id": "i", "mp_processing_time_ms": 2}),
            event("A", "u", "2024-03-09 10:00", v="early", **{"$insert_id": "i", "mp_processing_time_ms": 1}),
            event("A", "u", "2024-03-09 10:00:01", v="other time", **{"$insert_id": "i"}),
            event("A", "w", "2024-03-09 10:00", v="other user", **{"$insert_id": "i"}),
            event("B", "u", "2024-03-09 10:00", v="other event", **{"$insert_id": "i"}),
            event("A", "u", "2024-03-09 10:00", v="no id"),
            event("A", "u", "2024-03-09 10:00", v="no id"),
        ]
    )
    answer = ask("segmentation", event="A", on='properties["v"]', **days("2024-03-09", "2024-03-09"))
    assert answer["data"]["values"] == {
        "no id": {"2024-03-09": 2},
        "late": {"2024-03-09": 1},
        "other time": {"2024-03-09": 1},
        "other user": {"2024-03-09": 1},
    }


def test_users_count_once_in_a_bucket_and_no_user_counts_for_none(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            *[event("A", "u", f"2024-03-08 1{hour}:00") for hour in range(4)],
            event("A", "w", "2024-03-08 10:00"),
            event("A", "", "2024-03-08 10:00"),
            event("A", "u", "2024-03-09 10:00"),
        ]
    )
    span = days("2024-03-08", "2024-03-10")
    kinds = {kind: ask("segmentation", event="A", type=kind, **span)["data"]["values"]["A"] for kind in TYPES}
    assert kinds == {
        "general": {"2024-03-08": 6, "2024-03-09": 1, "2024-03-10": 0},
        "unique": {"2024-03-08": 2, "2024-03-09": 1, "2024-03-10": 0},
        "average": {"2024-03-08": 3.0, "2024-03-09": 1.0, "2024-03-10": 0},
    }


TYPES = ("general", "unique", "average")


def test_what_is_yet_to_come_or_cannot_be_read_is_not_counted(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.set_day("2024-03-09", [b"garbage", b'{"event":"A"}', b'{"event":"A","properties":{"time":"x"}}'])
    sandbox.add_events([event("A", "u", "2024-03-11 08:00"), event("A", "u", "2024-03-11 08:00:01")])
    span = days("2024-03-09", "2024-03-11")
    assert ask("segmentation", event="A", **span)["data"]["values"]["A"]["2024-03-11"] == 1
    sandbox.late_events = True
    processed = {"mp_processing_time_ms": int(NOW.timestamp() * 1000) + 1}
    sandbox.add_events([event("A", "u", "2024-03-10 08:00", **processed)])
    assert ask("segmentation", event="A", **span)["data"]["values"]["A"]["2024-03-10"] == 0
    sandbox.now = NOW + timedelta(seconds=1)
    assert ask("segmentation", event="A", **span)["data"]["values"]["A"] == {
        "2024-03-09": 0,
        "2024-03-10": 1,
        "2024-03-11": 2,
    }


# Segmentation


def test_segments_are_the_largest_and_of_equals_the_first_by_name(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.set_profiles([{"$distinct_id": "u", "$properties": {"plan": "pro"}}])
    plans: list[Any] = ["b", "b", "c", "a", "d", None, 1.5, True]
    sandbox.add_events([event("A", "u", "2024-03-08 10:00", plan=plan) for plan in plans])
    sandbox.add_events([event("A", "w", "2024-03-08 10:00")])
    span = days("2024-03-08", "2024-03-08")

    def segments(**params: str) -> dict[str, int]:
        values = ask("segmentation", event="A", **span, **params)["data"]["values"]
        return {name: counts["2024-03-08"] for name, counts in values.items()}

    assert segments(on='properties["plan"]') == {
        "b": 2,
        **dict.fromkeys(["1.5", "a", "c", "d", "null", "true", "undefined"], 1),
    }
    assert list(segments(on='properties["plan"]', limit="3")) == ["b", "1.5", "a"]
    assert segments(on='user["plan"]') == {"pro": 8, "undefined": 1}
    assert segments(where='properties["plan"] == "b" or user["plan"] != "pro"') == {"A": 3}
    assert segments(where='properties["plan"] == "z"') == {}


def test_segmentation_has_units_and_spans_of_days(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events([event("A", "u", moment) for moment in ("2024-02-29 23:30", "2024-03-01 00:10:59")])

    def counts(from_date: str, to_date: str, **params: str) -> dict[str, int]:
        values = ask("segmentation", event="A", **days(from_date, to_date), **params)["data"]["values"]["A"]
        return {key: count for key, count in values.items() if count}

    assert counts("2024-02-01", "2024-03-10", unit="month") == {"2024-02-01": 1, "2024-03-01": 1}
    assert counts("2024-02-29", "2024-03-01", unit="hour") == {"2024-02-29 23:00:00": 1, "2024-03-01 00:00:00": 1}
    assert counts("2024-03-01", "2024-03-01", unit="minute") == {"2024-03-01 00:10:00": 1}
    # Pairs of days from 27 February on: 29 February begins one.
    assert counts("2024-02-27", "2024-03-02", interval="2", type="unique") == {"2024-02-29": 1}


def test_numbers_are_put_into_ranges_summed_and_averaged(sandbox: Sandbox, ask: Ask) -> None:
    numbers: list[Any] = [2000, 2099.5, 2100, 2950, "x", None]
    sandbox.add_events([event("A", "u", "2024-03-08 10:00", n=n) for n in numbers])
    sandbox.add_events([event("A", "u", "2024-03-09 10:00", n=-50)])
    span = {"event": "A", "on": 'properties["n"]', **days("2024-03-08", "2024-03-10")}
    # From -50 to 2950 in about ten ranges: 300 wide, or the next of 1, 2, 5, 10 times 100.
    assert ask("segmentation/numeric", **span)["data"]["values"] == {
        "-500 - 0": {"2024-03-09": 1},
        "2,000 - 2,500": {"2024-03-08": 3},
        "2,500 - 3,000": {"2024-03-08": 1},
    }
    sums = ask("segmentation/sum", **span)
    assert (sums["status"], sums["computed_at"]) == ("ok", "2024-03-11T12:00:00.000000+00:00")
    assert sums["results"] == {"2024-03-08": 9149.5, "2024-03-09": -50.0, "2024-03-10": 0.0}
    assert ask("segmentation/average", **span) == {
        "results": {"2024-03-08": 9149.5 / 6, "2024-03-09": -50.0, "2024-03-10": 0.0},
        "status": "ok",
    }
    hours = ask("segmentation/sum", **{**span, "unit": "hour", "to_date": "2024-03-08"})["results"]
    assert (len(hours), hours["2024-03-08 10:00:00"]) == (24, 9149.5)


# Events and their properties


def test_counts_of_events_leave_out_what_is_not_there(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [event("A", "u", "2024-03-04 10:00"), event("A", "u", "2024-03-10 10:00"), event("B", "u", "2024-03-11 07:30")]
    )
    asked = {"event": '["A","B","C"]', "type": "general"}
    assert ask("events", unit="day", **asked, **days("2024-03-09", "2024-03-11")) == {
        "data": {
            "series": ["2024-03-09", "2024-03-10", "2024-03-11"],
            "values": {"A": {"2024-03-10": 1}, "B": {"2024-03-11": 1}},
        },
        "legend_size": 2,
    }
    # Weeks begin on Monday: 4 and 11 March.
    weeks = ask("events", unit="week", **asked, **days("2024-03-08", "2024-03-11"))
    assert weeks["data"] == {
        "series": ["2024-03-04", "2024-03-11"],
        "values": {"A": {"2024-03-04": 1}, "B": {"2024-03-11": 1}},
    }


@pytest.mark.parametrize(
    ("unit", "interval", "series", "values"),
    [
        ("day", "2", ["2024-03-10", "2024-03-11"], {"2024-03-10": 1, "2024-03-11": 1}),
        ("hour", "1", ["2024-03-11 08:00:00"], {}),
        ("hour", "2", ["2024-03-11 07:00:00", "2024-03-11 08:00:00"], {"2024-03-11 07:00:00": 1}),
        ("month", "2", ["2024-02-01", "2024-03-01"], {"2024-03-01": 2}),
    ],
)
def test_an_interval_counts_back_from_now(
    sandbox: Sandbox, ask: Ask, unit: str, interval: str, series: list[str], values: dict[str, int]
) -> None:
    sandbox.add_events([event("A", "u", "2024-03-10 10:00"), event("A", "u", "2024-03-11 07:30")])
    data = ask("events", event='["A"]', type="general", unit=unit, interval=interval)["data"]
    assert data == {"series": series, "values": {"A": values} if values else {}}


def test_top_events_compare_today_with_yesterday(sandbox: Sandbox, ask: Ask) -> None:
    today, yesterday = "2024-03-11 01:00", "2024-03-10 23:00"
    sandbox.add_events(
        [
            *[event(name, "u", today) for name in ("A", "B", "B", "C", "C", "C")],
            *[event(name, "u", yesterday) for name in ("B", "B", "B", "B", "C", "D")],
        ]
    )
    assert ask("events/top", type="general") == {
        "events": [
            {"amount": 3, "event": "C", "percent_change": 2.0},
            {"amount": 2, "event": "B", "percent_change": -0.5},
            {"amount": 1, "event": "A", "percent_change": 1.0},
        ],
        "type": "general",
    }
    assert [row["event"] for row in ask("events/top", type="unique", limit="2")["events"]] == ["A", "B"]


def test_names_are_those_of_the_last_31_days(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("Old", "u", "2024-02-09 23:59"),
            event("b", "u", "2024-02-10 00:00"),
            *[event("C", "u", "2024-03-01 00:00") for _ in range(3)],
            *[event("a", user, "2024-03-01 00:00") for user in "uw"],
        ]
    )
    assert ask("events/names", type="general") == ["a", "b", "C"]
    assert ask("events/names", type="general", limit="1") == ["C"]
    assert ask("events/names", type="unique", limit="1") == ["a"]
    assert ask("events/names", type="general", **days("2024-02-01", "2024-02-09")) == ["Old"]


def test_the_properties_of_an_event_are_counted(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("A", "u", "2024-03-08 10:00", plan="pro", n=1, list=["x"]),
            event("A", "w", "2024-03-09 10:00", plan="pro", n=None),
            event("A", "u", "2024-03-09 10:00", plan="free"),
            event("B", "u", "2024-03-09 10:00", only_b=True),
        ]
    )
    assert ask("events/properties/top", event="A") == {"plan": {"count": 3}, "n": {"count": 2}, "list": {"count": 1}}
    assert ask("events/properties/top", limit="1") == {"plan": {"count": 3}}
    assert ask("events/properties/toptypes") == {
        "plan": {"count": 3, "type": "string"},
        "n": {"count": 2, "type": "number"},
        "list": {"count": 1, "type": "list"},
        "only_b": {"count": 1, "type": "boolean"},
    }
    assert ask("events/properties/values", event="A", name="plan") == ["pro", "free"]
    assert ask("events/properties/values", event="A", name="n", limit="1") == ["1"]
    asked = {"event": "A", "type": "unique", "unit": "day", **days("2024-03-08", "2024-03-09")}
    assert ask("events/properties", name="plan", **asked) == {
        "data": {
            "series": ["2024-03-08", "2024-03-09"],
            "values": {"pro": {"2024-03-08": 1, "2024-03-09": 1}, "free": {"2024-03-09": 1}},
        },
        "legend_size": 2,
    }
    assert ask("events/properties", name="n", values='["1","2"]', **asked)["data"]["values"] == {"1": {"2024-03-08": 1}}
    sandbox.other_shape = ["events/properties/top"]
    assert ask("events/properties/top", event="A", limit="1")["$duration_s"] == {}


# Retention


def test_users_are_born_once_and_their_intervals_begin_with_them(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("Join", "u", "2024-03-01 20:00"),
            event("Use", "u", "2024-03-02 19:59:59"),
            event("Use", "u", "2024-03-02 20:00"),
            event("Join", "u", "2024-03-02 21:00"),
            event("Use", "w", "2024-03-01 08:00"),
            event("Join", "w", "2024-03-01 09:00"),
            event("Use", "w", "2024-03-04 10:00"),
            event("Join", "x", "2024-03-03 09:00", plan="pro"),
            event("Join", "", "2024-03-03 09:00"),
        ]
    )
    span = {"born_event": "Join", "event": "Use", "interval_count": "2", **days("2024-03-01", "2024-03-03")}
    # u used it within the first 24 hours and in the second; w, before joining, and in the fourth.
    assert ask("retention", **span) == {
        "2024-03-01": {"counts": [1, 1, 0], "first": 2},
        "2024-03-02": {"counts": [0, 0, 0], "first": 0},
        "2024-03-03": {"counts": [0, 0, 0], "first": 1},
    }
    assert ask("retention", unbounded_retention="true", **span)["2024-03-01"] == {"counts": [2, 2, 1], "first": 2}
    assert ask("retention", born_where='properties["plan"] == "pro"', **span)["2024-03-01"]["first"] == 0
    assert ask("retention", where='properties["plan"] == "pro"', **span)["2024-03-01"]["counts"] == [0, 0, 0]
    # Four days each from 1 March on: w came back within the first.
    four = {**span, "interval": "4", "interval_count": "1"}
    assert ask("retention", **four) == {"2024-03-01": {"counts": [2, 0], "first": 3}}
    # Any event is a return then, but for being born.
    del span["event"]
    assert ask("retention", **span)["2024-03-01"]["counts"] == [1, 1, 0]


def test_recurring_users_are_in_the_cohort_of_each_bucket(sandbox: Sandbox, ask: Ask) -> None:
    moments = ("2024-01-31 12:00", "2024-02-29 12:00", "2024-03-01 11:00")
    sandbox.add_events([event("Use", "u", moment) for moment in moments])
    sandbox.add_events([event("Use", "w", "2024-02-05 12:00"), event("Other", "w", "2024-02-05 13:00")])
    asked = {"retention_type": "compounded", "event": "Use", **days("2024-01-01", "2024-03-10")}
    # From 31 January, a month ends on 29 February (12:00), the next on 31 March.
    assert ask("retention", unit="month", **asked) == {
        "2024-01-01": {"counts": [0, 1], "first": 1},
        "2024-02-01": {"counts": [1, 0], "first": 2},
        "2024-03-01": {"counts": [0, 0], "first": 1},
    }
    weeks = ask("retention", unit="week", interval_count="4", **asked)
    assert weeks["2024-01-29"] == {"counts": [0, 0, 0, 0, 1], "first": 1}
    assert weeks["2024-02-26"] == {"counts": [1, 0, 0, 0, 0], "first": 1}


def test_retention_is_segmented_by_the_returning_event(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("Join", "u", "2024-03-01 08:00"),
            event("Join", "w", "2024-03-01 08:00"),
            event("Use", "u", "2024-03-01 09:00", on="web"),
            event("Use", "u", "2024-03-01 10:00", on="app"),
            event("Use", "w", "2024-03-02 10:00", on="app"),
        ]
    )
    asked = {"born_event": "Join", "event": "Use", "on": 'properties["on"]', **days("2024-03-01", "2024-03-01")}
    assert ask("retention", **asked) == {
        "2024-03-01": {"app": {"counts": [1, 1], "first": 2}, "web": {"counts": [1, 0], "first": 2}}
    }
    assert list(ask("retention", limit="1", **asked)["2024-03-01"]) == ["app"]


def test_frequency_counts_the_hours_or_days_in_which_users_were_active(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("A", "u", "2024-03-05 10:00"),
            event("A", "u", "2024-03-05 10:59"),
            event("A", "u", "2024-03-05 11:00"),
            event("B", "u", "2024-03-06 10:00", os="x"),
            event("A", "w", "2024-03-06 10:00"),
        ]
    )
    hours = ask("retention/addiction", unit="day", addiction_unit="hour", event="A", **days("2024-03-05", "2024-03-06"))
    assert hours == {"data": {"2024-03-05": [1, 1, *[0] * 22], "2024-03-06": [1, *[0] * 23]}}
    week = {"unit": "week", "addiction_unit": "day", **days("2024-03-05", "2024-03-06")}
    assert ask("retention/addiction", **week) == {"data": {"2024-03-04": [2, 1, 0, 0, 0, 0, 0]}}
    month = ask("retention/addiction", **{**week, "unit": "month"})["data"]["2024-03-01"]
    assert (month[:3], len(month)) == ([2, 1, 0], 31)
    assert ask("retention/addiction", on='properties["os"]', limit="1", **week)["data"] == {
        "2024-03-04": {"undefined": [2, 0, 0, 0, 0, 0, 0]}
    }
    sandbox.other_shape = ["retention/addiction"]
    assert list(ask("retention/addiction", **week)) == ["2024-03-04"]


# Funnels


def step(
    name: str, count: int, ratio: float, overall: float, avg: int | None, from_start: int | None
) -> dict[str, Any]:
    return {
        "count": count,
        "avg_time": avg,
        "avg_time_from_start": from_start,
        "step_conv_ratio": ratio,
        "goal": name,
        "overall_conv_ratio": overall,
        "event": name,
    }


def test_a_funnel_counts_users_who_take_the_steps_in_order_within_the_window(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.set_funnels(
        [{"funnel_id": 7, "name": "Buy", "steps": ["Visit", "Pay"], "length": 60, "length_unit": "minute"}]
    )
    sandbox.add_events(
        [
            event("Pay", "u", "2024-03-08 09:00"),
            event("Visit", "u", "2024-03-08 10:00"),
            event("Visit", "u", "2024-03-08 10:30"),
            event("Pay", "u", "2024-03-08 11:00"),
            event("Visit", "late", "2024-03-08 10:00"),
            event("Pay", "late", "2024-03-08 11:00:01"),
            event("Visit", "over", "2024-03-08 23:50"),
            event("Pay", "over", "2024-03-09 00:10"),
            event("Visit", "u", "2024-03-09 10:00"),
            event("Visit", "", "2024-03-09 10:00"),
        ]
    )
    assert ask("funnels/list") == [{"funnel_id": 7, "name": "Buy"}]
    # u pays an hour after the first visit, just within the window; "over" 20 minutes later, on the next day.
    assert ask("funnels", funnel_id="7", **days("2024-03-08", "2024-03-09")) == {
        "meta": {"dates": ["2024-03-08", "2024-03-09"]},
        "data": {
            "2024-03-08": {
                "steps": [step("Visit", 3, 1, 1, None, None), step("Pay", 2, 2 / 3, 2 / 3, 2400, 2400)],
                "analysis": {"completion": 2, "starting_amount": 3, "steps": 2, "worst": 1},
            },
            "2024-03-09": {
                "steps": [step("Visit", 1, 1, 1, None, None), step("Pay", 0, 0, 0, None, None)],
                "analysis": {"completion": 0, "starting_amount": 1, "steps": 2, "worst": 1},
            },
        },
    }

    def paid(**params: str) -> list[int]:
        answer = ask("funnels", funnel_id="7", **{**days("2024-03-08", "2024-03-08"), **params})
        return [bucket["analysis"]["completion"] for bucket in answer["data"].values()]

    assert paid() == [2]
    assert paid(length="59") == [2]
    assert paid(length="19") == [0]
    assert paid(length="3601", length_unit="second") == [3]
    assert paid(where='properties["$distinct_id"] == "u"') == [1]
    assert paid(interval="2", to_date="2024-03-10") == [2, 0]
    assert paid(unit="week", to_date="2024-03-11") == [2, 0]


def test_a_funnel_takes_the_attempt_that_went_furthest(sandbox: Sandbox, ask: Ask) -> None:
    steps = ["A", {"event": "B", "label": "Second"}, "A"]
    sandbox.set_funnels([{"funnel_id": 1, "name": "F", "steps": steps, "length": 1, "length_unit": "hour"}])
    sandbox.add_events(
        [
            event("A", "u", "2024-03-08 10:00"),
            event("B", "u", "2024-03-08 12:00"),
            event("A", "u", "2024-03-08 13:00"),
            event("B", "u", "2024-03-08 13:10"),
            event("A", "u", "2024-03-08 13:10"),
            event("A", "w", "2024-03-08 13:00"),
        ]
    )
    found = ask("funnels", funnel_id="1", **days("2024-03-08", "2024-03-08"))["data"]["2024-03-08"]
    second = {**step("B", 1, 0.5, 0.5, 600, 600), "step_label": "Second"}
    assert found["steps"] == [step("A", 2, 1, 1, None, None), second, step("A", 1, 1, 0.5, 0, 600)]
    assert found["analysis"] == {"completion": 1, "starting_amount": 2, "steps": 3, "worst": 1}


def test_a_segmented_funnel_has_an_entry_for_the_whole(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.set_funnels([{"funnel_id": 1, "name": "F", "steps": ["A", "B"]}])
    sandbox.add_events(
        [
            event("A", "u", "2024-03-08 10:00", os="x"),
            event("A", "u", "2024-03-08 10:01", os="y"),
            event("A", "w", "2024-03-08 10:00", os="x"),
            event("B", "u", "2024-03-08 10:02"),
        ]
    )
    asked = {"funnel_id": "1", "on": 'properties["os"]', **days("2024-03-08", "2024-03-08")}
    found = ask("funnels", **asked)["data"]["2024-03-08"]
    counts = {name: [row["count"] for row in steps] for name, steps in found.items()}
    assert counts == {"$overall": [2, 1], "x": [2, 1], "y": [1, 1]}
    assert list(ask("funnels", limit="1", **asked)["data"]["2024-03-08"]) == ["$overall", "x"]


# Saved reports, single users, scripts


def test_a_saved_report_is_what_was_set_or_is_worked_out(sandbox: Sandbox, ask: Ask) -> None:
    canned = {"headers": ["$retention"], "series": {"$average": [1]}, "computed_at": "x", "date_range": {}}
    query = {"events": ["A", "B"], **days("2024-03-09", "2024-03-11")}
    sandbox.set_bookmarks(
        [
            {"id": 5, "name": "Canned", "type": "retention", "report": canned},
            {"id": 6, "name": "Counted", "query": query},
            {"id": 7, "name": "By plan", "query": {**query, "on": 'properties["plan"]', "type": "unique"}},
        ]
    )
    sandbox.add_events(
        [
            event("A", "u", "2024-03-09 10:00", plan="pro"),
            event("A", "u", "2024-03-09 11:00", plan="free"),
            event("A", "u", "2024-03-11 01:00", plan="pro"),
        ]
    )
    first, second, third = "2024-03-09T00:00:00-05:00", "2024-03-10T00:00:00-05:00", "2024-03-11T00:00:00-04:00"
    assert ask("insights", bookmark_id="5") == canned
    assert ask("insights", bookmark_id="6") == {
        "computed_at": "2024-03-11T12:00:00.000000+00:00",
        "date_range": {"from_date": first, "to_date": "2024-03-11T23:59:59.999000-04:00"},
        "headers": ["$event"],
        "series": {"A": {first: 2, second: 0, third: 1}},
    }
    by_plan = ask("insights", bookmark_id="7")
    assert by_plan["headers"] == ["$event", 'properties["plan"]']
    assert by_plan["series"] == {
        "A": {
            "$overall": {first: 1, second: 0, third: 1},
            "pro": {first: 1, second: 0, third: 1},
            "free": {first: 1, second: 0, third: 0},
        },
        "B": {},
    }


def test_the_activity_of_users_has_their_id_under_either_name(sandbox: Sandbox, ask: Ask) -> None:
    sandbox.add_events(
        [
            event("B", "u", "2024-03-09 10:00:00.250", n=1),
            event("A", "w", "2024-03-09 09:00"),
            event("A", "x", "2024-03-09 09:00"),
            event("A", "u", "2024-03-10 00:00"),
        ]
    )
    # 9 o'clock is 14:00 UTC; an old project exports the local clock.
    nine = 1709992800 - (5 * 3600 if sandbox.local_time.legacy else 0)
    assert ask("stream/query", distinct_ids='["u","w"]', **days("2024-03-09", "2024-03-09")) == {
        "status": "ok",
        "results": {
            "events": [
                {"event": "A", "properties": {"time": nine, "$distinct_id": "w"}},
                {"event": "B", "properties": {"time": nine + 3600, "n": 1, "distinct_id": "u"}},
            ]
        },
    }


def test_a_script_yields_what_was_set_for_it(sandbox: Sandbox, server: SandboxServer, http: requests.Session) -> None:
    sandbox.set_jql("function main() { return 1 }", [1])
    sandbox.set_jql("main(params)", lambda params: [params["n"]])

    def jql(**form: str) -> tuple[int, Any]:
        response = http.post(f"{server.url}/api/query/jql", params={"project_id": "1"}, data=form)
        return response.status_code, response.json()

    assert jql(script=" function main() { return 1 }\n") == (200, [1])
    assert jql(script="main(params)", params='{"n":5}') == (200, [5])
    assert jql(script="function")[0] == 412
    assert jql(script="main(params)", params="[5]")[0] == 400
    assert jql()[0] == 400
    in_query = http.post(f"{server.url}/api/query/jql", params={"project_id": "1", "script": "main(params)"})
    assert in_query.status_code == 400
    assert http.get(f"{server.url}/api/query/jql", params={"project_id": "1"}).status_code == 405


# Refusals

SPAN = days("2024-03-08", "2024-03-09")
PROPERTY = 'properties["n"]'
ASKED: dict[str, dict[str, str]] = {
    "engage": {},
    "cohorts/list": {},
    "funnels/list": {},
    "funnels": {"funnel_id": "7", **SPAN},
    "segmentation": {"event": "A", **SPAN},
    "segmentation/numeric": {"event": "A", "on": PROPERTY, **SPAN},
    "segmentation/sum": {"event": "A", "on": PROPERTY, **SPAN},
    "segmentation/average": {"event": "A", "on": PROPERTY, **SPAN},
    "events": {"event": '["A"]', "type": "general", "unit": "day", **SPAN},
    "events/top": {"type": "general"},
    "events/names": {"type": "general"},
    "events/properties": {"event": "A", "name": "n", "type": "general", "unit": "day", **SPAN},
    "events/properties/top": {"event": "A"},
    "events/properties/toptypes": {},
    "events/properties/values": {"event": "A", "name": "n"},
    "retention": {"born_event": "A", **SPAN},
    "retention/addiction": {"unit": "day", "addiction_unit": "hour", **SPAN},
    "insights": {"bookmark_id": "5"},
    "stream/query": {"distinct_ids": '["u"]', **SPAN},
}
"""The least that each report wants to be told, project_id aside."""

REQUIRED = [
    (path, name)
    for path, params in ASKED.items()
    for name in params
    # Clients leave out the event here.
    if (path, name) != ("events/properties/top", "event")
]
DATED = [path for path, params in ASKED.items() if "from_date" in params]


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    """The url of a sandbox with something of everything."""
    sandbox = Sandbox(now=NOW, limits=False, project_timezone="America/New_York", history_days=30)
    sandbox.add_events([event("A", "u", "2024-03-08 10:00", n=1)])
    sandbox.set_funnels([{"funnel_id": 7, "name": "F", "steps": ["A", "B"]}])
    sandbox.set_bookmarks([{"id": 5, "report": {}}, {"id": 6}])
    with SandboxServer(sandbox) as server:
        yield server.url


def asked(http: requests.Session, url: str, path: str, **changes: str | None) -> requests.Response:
    params = {"project_id": "1", **ASKED[path], **changes}
    return http.get(f"{url}/api/query/{path}", params={name: text for name, text in params.items() if text is not None})


@pytest.mark.parametrize("path", ASKED)
def test_every_report_checks_who_asks_and_refuses_what_it_does_not_know(
    refusing: str, http: requests.Session, path: str
) -> None:
    assert asked(http, refusing, path).status_code == 200
    assert http.get(f"{refusing}/api/2.0/{path}/", params={"project_id": "1", **ASKED[path]}).status_code == 200
    assert asked(http, refusing, path, workspace_id="9").status_code == 200
    assert asked(http, refusing, path, workspace_id="x").status_code == 400
    assert asked(http, refusing, path, project_id="2").status_code == 403
    unknown = asked(http, refusing, path, fromDate="2024-03-08")
    assert (unknown.status_code, unknown.json()["error"]) == (400, "Unknown parameter: fromDate")
    assert unknown.json()["request"].startswith(f"/api/query/{path}?")
    without_project = asked(http, refusing, path, project_id=None)
    assert (without_project.status_code, without_project.json()["error"]) == (400, "project_id is a required parameter")
    assert requests.get(f"{refusing}/api/query/{path}", timeout=10).status_code == 401


@pytest.mark.parametrize(("path", "name"), REQUIRED)
def test_a_required_parameter_has_to_be_there(refusing: str, http: requests.Session, path: str, name: str) -> None:
    for missing in (None, ""):
        refused = asked(http, refusing, path, **{name: missing})
        assert (refused.status_code, refused.json()["error"]) == (400, f"{name} is a required parameter")


def test_what_stands_in_the_body_of_a_get_is_not_asked_for(refusing: str, http: requests.Session) -> None:
    url, asked = f"{refusing}/api/query/segmentation?project_id=1", {"event": "A", **SPAN}
    for refused in (http.get(url, data=asked), http.get(url, json=asked)):
        assert (refused.status_code, refused.json()["error"]) == (400, "event is a required parameter")


@pytest.mark.parametrize("path", DATED)
@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"from_date": "2024-3-8"}, 400, "Error in from_date: invalid date"),
        ({"to_date": "2024-02-30"}, 400, "Error in to_date: invalid date"),
        ({"from_date": "1999-12-31"}, 400, "Error in from_date: invalid date, bad year"),
        ({"to_date": "2024-03-07"}, 400, "from_date cannot be later than to_date"),
        ({"to_date": "2024-03-12"}, 400, "to_date cannot be later than today"),
        ({"from_date": "2024-02-09"}, 403, "Date range exceeds 30 days into the past"),
    ],
)
def test_wrong_dates_are_refused(
    refusing: str, http: requests.Session, path: str, changes: dict[str, str], status: int, text: str
) -> None:
    refused = asked(http, refusing, path, **changes)
    assert (refused.status_code, refused.json()["error"][: len(text)]) == (status, text)


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        ("engage", {"filter_by_cohort": "5"}, 400),
        ("engage", {"filter_by_cohort": '{"id":1}'}, 400),
        ("engage", {"filter_by_cohort": '{"id":1,"x":2}'}, 400),
        ("engage", {"include_all_users": "maybe"}, 400),
        ("engage", {"include_all_users": "True"}, 400),
        ("engage", {"include_all_users": "1"}, 400),
        ("engage", {"page": ""}, 400),
        ("engage", {"page": "1.0"}, 400),
        ("engage", {"data_group_id": "1e5"}, 400),
        ("engage", {"data_group_id": "9223372036854775808"}, 400),
        ("engage", {"as_of_timestamp": "now"}, 400),
        ("funnels", {"funnel_id": "x"}, 400),
        ("funnels", {"funnel_id": "8"}, 404),
        ("funnels", {"length": "0"}, 400),
        ("funnels", {"length": "91", "length_unit": "day"}, 400),
        ("funnels", {"length_unit": "week"}, 400),
        ("funnels", {"unit": "hour"}, 400),
        ("funnels", {"interval": "0"}, 400),
        ("funnels", {"interval": "1", "unit": "day"}, 400),
        ("funnels", {"on": "n"}, 400),
        ("funnels", {"where": "("}, 400),
        ("funnels", {"limit": "10001"}, 400),
        ("segmentation", {"unit": "week"}, 400),
        ("segmentation", {"type": "total"}, 400),
        ("segmentation", {"on": "n"}, 400),
        ("segmentation", {"where": 'properties["n"] and true'}, 400),
        ("segmentation", {"limit": "10001"}, 400),
        ("segmentation", {"interval": "2"}, 400),
        ("segmentation", {"interval": "2", "type": "unique", "unit": "day"}, 400),
        ("segmentation", {"format": "json"}, 400),
        ("segmentation", {"format": ""}, 400),
        ("segmentation", {"unit": ""}, 400),
        ("segmentation", {"limit": ""}, 400),
        ("segmentation", {"limit": "+3"}, 400),
        ("segmentation", {"format": "csv"}, 400),
        ("segmentation/numeric", {"unit": "minute"}, 400),
        ("segmentation/numeric", {"type": "x"}, 400),
        ("segmentation/numeric", {"on": "properties["}, 400),
        ("segmentation/sum", {"unit": "month"}, 400),
        ("segmentation/sum", {"type": "general"}, 400),
        ("segmentation/average", {"where": "1 +"}, 400),
        ("events", {"event": "A"}, 400),
        ("events", {"event": '{"A":1}'}, 400),
        ("events", {"type": "total"}, 400),
        ("events", {"unit": "year"}, 400),
        ("events", {"unit": "hour", "type": "unique"}, 400),
        ("events", {"interval": "2"}, 400),
        ("events", {"interval": "0", "from_date": None, "to_date": None}, 400),
        ("events", {"interval": "99999999999", "from_date": None, "to_date": None}, 400),
        ("events", {"format": "xml"}, 400),
        ("events", {"where": "true"}, 400),
        ("events/top", {"type": "total"}, 400),
        ("events/top", {"limit": "x"}, 400),
        ("events/names", {"type": "total"}, 400),
        ("events/names", {"limit": "-1"}, 400),
        ("events/names", {"from_date": "2024-03-08"}, 400),
        ("events/properties", {"values": "n"}, 400),
        ("events/properties", {"values": "[1]"}, 400),
        ("events/properties", {"unit": "minute", "type": "unique"}, 400),
        ("events/properties", {"limit": "0"}, 400),
        ("events/properties/top", {"limit": "x"}, 400),
        ("events/properties/toptypes", {"limit": "0"}, 400),
        ("events/properties/values", {"limit": "x"}, 400),
        ("retention", {"retention_type": "first"}, 400),
        ("retention", {"unit": "hour"}, 400),
        ("retention", {"unit": "day", "interval": "1"}, 500),
        ("retention", {"interval": "91"}, 400),
        ("retention", {"interval_count": "x"}, 400),
        ("retention", {"unbounded_retention": "2"}, 400),
        ("retention", {"unbounded_retention": "True"}, 400),
        ("retention", {"unbounded_retention": ""}, 400),
        ("retention", {"born_where": "("}, 400),
        ("retention", {"where": "("}, 400),
        ("retention", {"on": "("}, 400),
        ("retention", {"limit": "x"}, 400),
        ("retention/addiction", {"unit": "hour"}, 400),
        ("retention/addiction", {"addiction_unit": "week"}, 400),
        ("retention/addiction", {"on": "("}, 400),
        ("retention/addiction", {"limit": "0"}, 400),
        ("insights", {"bookmark_id": "x"}, 400),
        ("insights", {"bookmark_id": "8"}, 404),
        ("insights", {"bookmark_id": "6"}, 404),
        ("insights", {"from_date": "2024-03-08"}, 400),
        ("stream/query", {"distinct_ids": "u"}, 400),
        ("stream/query", {"distinct_ids": '["u",1]'}, 400),
    ],
)
def test_a_wrong_value_is_refused(
    refusing: str, http: requests.Session, path: str, changes: dict[str, str | None], status: int
) -> None:
    refused = asked(http, refusing, path, **changes)
    assert refused.status_code == status
    assert refused.json()["request"].startswith(f"/api/query/{path}?")
    assert refused.json()["error"]


# The demo


def test_the_demo_has_cohorts_a_funnel_and_reports(http: requests.Session) -> None:
    now = datetime(2013, 3, 29, 12, tzinfo=UTC)
    with SandboxServer(Sandbox(demo_folder(), now=now, limits=False)) as server:

        def ask(path: str, **params: str) -> Any:
            return http.get(f"{server.url}/api/query/{path}", params={"project_id": "1", **params}).json()

        cohorts = {cohort["id"]: cohort["count"] for cohort in ask("cohorts/list")}
        assert cohorts == {1: 60, 2: 3, 3: 3}
        for number, having_profiles in ((1, 60), (2, 3), (3, 0)):
            members = {"filter_by_cohort": f'{{"id":{number}}}'}
            assert ask("engage", **members)["total"] == cohorts[number]
            assert ask("engage", include_all_users="false", **members)["total"] == having_profiles
        series = ask("insights", bookmark_id="1")["series"]
        assert {name: sum(counts.values()) for name, counts in series.items()} == {
            "Flight Departed": 4303,
            "Flight Arrived": 4305,
            "Flight Cancelled": 19,
        }
        by_airport = ask("insights", bookmark_id="2")["series"]["Flight Departed"]
        totals = {name: sum(counts.values()) for name, counts in by_airport.items()}
        assert totals.pop("$overall") == sum(totals.values()) == 4303
        assert set(totals) == {"JFK", "EWR", "LGA"}
        funnel = ask("funnels", funnel_id="1", unit="month", **days("2013-03-01", "2013-03-28"))
        analysis = funnel["data"]["2013-03-01"]["analysis"]
        assert (analysis["starting_amount"], analysis["steps"]) == (181, 2)
        assert 0 < analysis["completion"] <= 181
