"""Who came back: /api/query/retention and /retention/addiction. Mixpanel docs: Query Retention Report, Query Frequency
Report."""

from __future__ import annotations

from calendar import monthrange
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from . import parameters
from .counting import Buckets, Event, as_text, chosen, events_between, later, start_of
from .reply import ApiError, Reply, json_reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

_BASE = {"project_id", "workspace_id", "from_date", "to_date", "event", "where", "unit", "on", "limit"}
PARAMS = frozenset(
    _BASE | {"retention_type", "born_event", "born_where", "interval", "interval_count", "unbounded_retention"}
)
FREQUENCY_PARAMS = frozenset(_BASE | {"addiction_unit"})

UNITS = ("day", "week", "month")
MAX_INTERVAL = 90
"""In days. Mixpanel docs: Query Retention Report."""

_HOURS = {"day": 24, "week": 7 * 24}
_EVERYONE = ""

Returns = dict[str, dict[str, list[Event]]]
"""The returning events by segment, then by user."""


def retention(sandbox: Sandbox, call: Call) -> Reply:
    """For each day (week, month) of births: how many users there are, and how many came back in each interval after.

    An interval is counted from the user's own birth, and the birth itself is no return: in the docs' example the first
    count can be less than `first`. Returns after to_date are counted too, else the last cohort could have none; the
    docs say so of funnels only.
    """
    params = call.params
    if params.keys() >= {"interval", "unit"}:
        # Not in the docs; a client has met it.
        raise ApiError(500)
    kind = parameters.choice(params, "retention_type", ("birth", "compounded"), "birth")
    unit = parameters.choice(params, "unit", UNITS, "day")
    interval = parameters.whole(params, "interval", 1, most=MAX_INTERVAL)
    count = parameters.whole(params, "interval_count", 1)
    unbounded = parameters.truth(params, "unbounded_retention")
    born_where = parameters.where(params, "born_where")
    where = parameters.where(params)
    born_event = parameters.text(params, "born_event") if kind == "birth" else None
    from_day, to_day = parameters.days(sandbox, params)
    limit = parameters.whole(params, "limit", None)
    parameters.value(params)

    events = events_between(sandbox, from_day, parameters.project_today(sandbox))
    returning = chosen(events, _event(params), where)
    births = returning if born_event is None else chosen(events, [born_event], born_where)
    buckets = Buckets.of_days(unit, from_day, to_day, interval)
    cohorts = _cohorts(births, buckets, once=kind == "birth")
    segments = _by_segment(params, returning, limit)

    def cohort(births: Mapping[str, Event], returns: Mapping[str, list[Event]]) -> dict[str, object]:
        counts = [0] * (count + 1)
        for user, birth in births.items():
            reached = {
                _intervals(birth, event, unit, interval)
                for event in returns.get(user, [])
                if event is not birth and event.time_ms >= birth.time_ms
            }
            for number in range(count + 1):
                counts[number] += number in reached or (unbounded and max(reached, default=-1) > number)
        return {"counts": counts, "first": len(births)}

    rows: dict[str, object] = {}
    for key in buckets.keys:
        found = {segment: cohort(cohorts[key], returns) for segment, returns in segments.items()}
        rows[key] = found if params.get("on") else found[_EVERYONE]
    return json_reply(200, rows)


def frequency(sandbox: Sandbox, call: Call) -> Reply:
    """For each day (week, month): how many users were active in at least 1, 2, 3, ... of its hours or days."""
    params = call.params
    unit = parameters.choice(params, "unit", UNITS)
    part = parameters.choice(params, "addiction_unit", ("hour", "day"))
    where = parameters.where(params)
    from_day, to_day = parameters.days(sandbox, params)
    limit = parameters.whole(params, "limit", None)
    parameters.value(params)

    events = chosen(events_between(sandbox, from_day, to_day), _event(params), where)
    buckets = Buckets.of_days(unit, from_day, to_day)
    segments = _by_segment(params, events, limit)
    rows: dict[str, object] = {}
    for key, start in zip(buckets.keys, buckets.starts, strict=True):
        hours = _HOURS.get(unit) or monthrange(start.year, start.month)[1] * 24
        lengths = {}
        for segment, by_user in segments.items():
            active = [
                len({start_of(event.wall, part) for event in mine if buckets.key(event.wall) == key})
                for mine in by_user.values()
            ]
            parts = hours if part == "hour" else hours // 24
            lengths[segment] = [sum(1 for length in active if length > number) for number in range(parts)]
        rows[key] = lengths if params.get("on") else lengths[_EVERYONE]
    # The specification has the map under `data`, the page's own text has it bare.
    return json_reply(200, rows if "retention/addiction" in sandbox.other_shape else {"data": rows})


def _event(params: parameters.Params) -> list[str] | None:
    """The returning event; without one, any. Mixpanel docs: Query Retention Report."""
    return [params["event"]] if params.get("event") else None


def _cohorts(births: Iterable[Event], buckets: Buckets, once: bool) -> dict[str, dict[str, Event]]:
    """Each user's first birth in a bucket, or (once) in all of them."""
    cohorts: dict[str, dict[str, Event]] = {key: {} for key in buckets.keys}
    born: set[str] = set()
    for event in births:
        key = buckets.key(event.wall)
        if key is None or not event.distinct_id or (once and event.distinct_id in born):
            continue
        born.add(event.distinct_id)
        cohorts[key].setdefault(event.distinct_id, event)
    return cohorts


def _by_segment(params: parameters.Params, events: Iterable[Event], limit: int | None) -> Returns:
    """The events of users by the value of `on`, those values with the most events; without `on`, all in one segment."""
    on = parameters.value(params)
    segments: Returns = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event.distinct_id:
            segments[as_text(on(event.row())) if on else _EVERYONE][event.distinct_id].append(event)
    if on is None:
        return {_EVERYONE: segments[_EVERYONE]}
    sizes = {segment: sum(map(len, by_user.values())) for segment, by_user in segments.items()}
    return {name: segments[name] for name in sorted(segments, key=lambda name: (-sizes[name], name))[:limit]}


def _intervals(birth: Event, event: Event, unit: str, interval: int) -> int:
    """How many whole intervals lie between the two."""
    if unit == "month":
        months = (event.wall.year - birth.wall.year) * 12 + event.wall.month - birth.wall.month
        return months - (later(birth.wall, "month", months) > event.wall)
    days = interval * (7 if unit == "week" else 1)
    return (event.time_ms - birth.time_ms) // (days * 86_400_000)
