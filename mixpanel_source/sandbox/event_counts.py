"""Counts of events and of their properties: /api/query/events and below. Mixpanel docs: Aggregate Event Counts, Today's
Top Events, Top Events, Aggregated Event Property Values, Top Event Properties, Top Event Property Values."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import parameters
from .counting import (
    TYPES,
    Buckets,
    Event,
    Groups,
    as_text,
    chosen,
    events_between,
    grouped,
    largest,
    later,
    measured,
    start_of,
    values_of,
)
from .reply import ApiError, Reply, json_reply
from .segmentation import refuse_csv

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

_PROJECT = {"project_id", "workspace_id"}
_SERIES = _PROJECT | {"event", "type", "unit", "interval", "from_date", "to_date", "format"}
PARAMS = frozenset(_SERIES)
TOP_PARAMS = frozenset(_PROJECT | {"type", "limit"})
NAMES_PARAMS = frozenset(_PROJECT | {"type", "limit", "from_date", "to_date"})
PROPERTIES_PARAMS = frozenset(_SERIES | {"name", "values", "limit"})
TOP_PROPERTIES_PARAMS = frozenset(_PROJECT | {"event", "limit"})
VALUES_PARAMS = frozenset(_PROJECT | {"event", "name", "limit"})

UNITS = ("minute", "hour", "day", "week", "month")

NAMES_DAYS = 31
"""How far back names are looked for. Mixpanel docs: Top Events. For properties it is not documented; the same here."""

NAMES_MOST = 5000
"""More names are never served, whatever `limit` says, as a known client has it."""

SESSION_PROPERTIES = ("$duration_s", "$event_count", "$origin_end", "$origin_start")
"""Computed for sessions; a known client met them in properties/top as entries without a count."""

# The event's own fields, rather than properties of it.
_FIELDS = {"time", "distinct_id"}
_TYPE_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}


def counts(sandbox: Sandbox, call: Call) -> Reply:
    """Each event's counts; a bucket without events is left out, as in the docs' example."""
    parameters.text(call.params, "event")
    names = parameters.names(call.params, "event")
    events, buckets, kind = _asked(sandbox, call)
    return _series(buckets, grouped(chosen(events, names, None), lambda event: event.name, buckets), kind)


def property_counts(sandbox: Sandbox, call: Call) -> Reply:
    """Counts of one event by the values of one property; events without the property are left out."""
    params = call.params
    event, name = parameters.text(params, "event"), parameters.text(params, "name")
    values = parameters.names(params, "values")
    limit = parameters.whole(params, "limit", 255)
    events, buckets, kind = _asked(sandbox, call)
    having = [
        one
        for one in chosen(events, [event], None)
        if name in one.properties and (values is None or as_text(one.properties[name]) in values)
    ]
    groups = grouped(having, lambda event: as_text(event.properties[name]), buckets)
    return _series(buckets, largest(groups, limit), kind)


def top(sandbox: Sandbox, call: Call) -> Reply:
    """Today's events and their change from yesterday, as a share of yesterday's amount; 1 where that was 0."""
    kind = parameters.choice(call.params, "type", TYPES)
    limit = parameters.whole(call.params, "limit", 100)
    today = parameters.project_today(sandbox)
    events = events_between(sandbox, today - timedelta(days=1), today)
    rows: list[dict[str, Any]] = []
    for name in {event.name for event in events if event.wall.date() == today}:
        amount, before = (
            measured([event for event in events if event.name == name and event.wall.date() == day], kind)
            for day in (today, today - timedelta(days=1))
        )
        change = (amount - before) / before if before else 1.0
        rows.append({"amount": amount, "event": name, "percent_change": change})
    rows.sort(key=lambda row: (-row["amount"], row["event"]))
    return json_reply(200, {"events": rows[:limit], "type": kind})


def names(sandbox: Sandbox, call: Call) -> Reply:
    """The names of the most common events of the last 31 days, or of the days given, which the docs do not tell of.

    The docs call their order "descending alphabetical"; their example is ascending, whatever the case, as this is.
    """
    params = call.params
    kind = parameters.choice(params, "type", TYPES)
    limit = min(parameters.whole(params, "limit", 255), NAMES_MOST)
    if params.get("from_date") or params.get("to_date"):
        events = events_between(sandbox, *parameters.days(sandbox, params))
    else:
        events = _recent(sandbox)
    by_name: dict[str, list[Event]] = {}
    for event in events:
        by_name.setdefault(event.name, []).append(event)
    most_common = sorted(by_name, key=lambda name: (-measured(by_name[name], kind), name))[:limit]
    return json_reply(200, sorted(most_common, key=lambda name: (name.lower(), name)))


def top_properties(sandbox: Sandbox, call: Call) -> Reply:
    """How many events have each property. Without `event`, which the docs require, of all events, as clients ask."""
    found: dict[str, Any] = {name: {"count": count} for name, count in _common_properties(sandbox, call)}
    if "events/properties/top" in sandbox.other_shape:
        found |= {name: {} for name in SESSION_PROPERTIES}
    return json_reply(200, found)


def property_types(sandbox: Sandbox, call: Call) -> Reply:
    """The same with each property's most common type. Undocumented."""
    common = _common_properties(sandbox, call)
    types = {name: Counter[str]() for name, _ in common}
    for event in _recent_of(sandbox, call):
        for name in event.properties.keys() & types.keys():
            value = event.properties[name]
            if value is not None:
                types[name][_TYPE_NAMES[type(value)]] += 1
    rows = {
        name: {"count": count, "type": _most_common(types[name], 1)[0][0] if types[name] else "string"}
        for name, count in common
    }
    return json_reply(200, rows)


def values(sandbox: Sandbox, call: Call) -> Reply:
    """The most common values of a property, as strings."""
    parameters.text(call.params, "event")
    name = parameters.text(call.params, "name")
    limit = parameters.whole(call.params, "limit", 255)
    events = _recent_of(sandbox, call)
    found = Counter(as_text(event.properties[name]) for event in events if name in event.properties)
    return json_reply(200, [value for value, _ in _most_common(found, limit)])


def _asked(sandbox: Sandbox, call: Call) -> tuple[list[Event], Buckets, str]:
    """The events of the span asked for, its buckets, and the type.

    The span is two dates, or so many units up to now. Both at once are refused: the docs say "either".
    """
    params = call.params
    kind = parameters.choice(params, "type", TYPES)
    unit = parameters.choice(params, "unit", UNITS)
    if kind == "unique" and unit in ("minute", "hour"):
        raise ApiError(400, "you cannot get hourly uniques")
    refuse_csv(params, ("json", "csv"))
    interval = parameters.whole(params, "interval", None)
    if interval is None:
        from_day, to_day = parameters.days(sandbox, params)
        return events_between(sandbox, from_day, to_day), Buckets.of_days(unit, from_day, to_day), kind
    if params.get("from_date") or params.get("to_date"):
        raise ApiError(400, "give either interval or from_date and to_date")
    now = sandbox.current_time().astimezone(sandbox.local_time.zone).replace(tzinfo=None)
    try:
        first = later(start_of(now, unit), unit, 1 - interval)
    except (OverflowError, ValueError):
        raise ApiError(400, "Error in interval: too many units") from None
    return events_between(sandbox, first.date(), now.date()), Buckets(unit, first, now), kind


def _series(buckets: Buckets, groups: Groups, kind: str) -> Reply:
    data = {"series": buckets.keys, "values": values_of(groups, kind)}
    return json_reply(200, {"data": data, "legend_size": len(groups)})


def _recent(sandbox: Sandbox) -> list[Event]:
    today = parameters.project_today(sandbox)
    return events_between(sandbox, today - timedelta(days=NAMES_DAYS - 1), today)


def _recent_of(sandbox: Sandbox, call: Call) -> list[Event]:
    event = call.params.get("event")
    return chosen(_recent(sandbox), [event] if event else None, None)


def _common_properties(sandbox: Sandbox, call: Call) -> list[tuple[str, int]]:
    limit = parameters.whole(call.params, "limit", 10)
    found = Counter(name for event in _recent_of(sandbox, call) for name in event.properties if name not in _FIELDS)
    return _most_common(found, limit)


def _most_common(found: Counter[str], limit: int) -> list[tuple[str, int]]:
    """The most common; of equals, the first by name."""
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:limit]
