"""Saved reports: /api/query/insights. Mixpanel docs: Insights, Query Saved Report.

A bookmark's answer is what it holds under `report`, served as it is: so any report can be had, funnels and retention
included. Else it is worked out from `query`: `events` (names), `from_date`, `to_date`, and, if wanted, `unit` (day),
`type` (general), `on` and `where`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from . import parameters
from .counting import Buckets, Event, by_value, chosen, events_between, grouped, measured
from .reply import ApiError, Reply, json_reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

PARAMS = frozenset({"project_id", "workspace_id", "bookmark_id"})
OVERALL = "$overall"


def insights(sandbox: Sandbox, call: Call) -> Reply:
    number = parameters.number(call.params, "bookmark_id")
    bookmark = next((one for one in sandbox.saved.bookmarks if one["id"] == number), None)
    if bookmark is None or not bookmark.keys() & {"report", "query"}:
        raise ApiError(404, f"bookmark_id: there is no report {number}")
    report = bookmark.get("report")
    return json_reply(200, _report(sandbox, bookmark["query"]) if report is None else report)


def _report(sandbox: Sandbox, query: Mapping[str, Any]) -> dict[str, Any]:
    """Every bucket is there, with 0 where nothing happened. Keys and dates carry the project's offset.

    With `on`, there is a level more, named for the expression, with an entry for the whole: clients report such.
    """
    given = {name: text for name, text in query.items() if isinstance(text, str)}
    from_day, to_day = parameters.day(given, "from_date"), parameters.day(given, "to_date")
    unit, kind = query.get("unit", "day"), query.get("type", "general")
    on = parameters.value(given)
    events = chosen(events_between(sandbox, from_day, to_day), query["events"], parameters.where(given))
    buckets = Buckets.of_days(unit, from_day, to_day)
    zone = sandbox.local_time.zone

    def offset(wall: datetime) -> str:
        return wall.replace(tzinfo=zone).isoformat()

    def counts(events: list[Event], segment: Callable[[Event], str]) -> dict[str, dict[str, float]]:
        return {
            name: {
                offset(start): measured(by_key.get(key, []), kind)
                for key, start in zip(buckets.keys, buckets.starts, strict=True)
            }
            for name, by_key in grouped(events, segment, buckets).items()
        }

    series: dict[str, Any] = {}
    for name in query["events"]:
        mine = [event for event in events if event.name == name]
        if on is None:
            series |= counts(mine, lambda event: event.name)
        else:
            series[name] = counts(mine, lambda _: OVERALL) | counts(mine, by_value(on))
    last = datetime.combine(to_day, time()) + timedelta(days=1, milliseconds=-1)
    return {
        "computed_at": sandbox.current_time().isoformat(timespec="microseconds"),
        "date_range": {"from_date": offset(datetime.combine(from_day, time())), "to_date": offset(last)},
        "headers": ["$event"] if on is None else ["$event", str(query["on"])],
        "series": series,
    }
