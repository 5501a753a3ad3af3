"""One event's counts over time: /api/query/segmentation and below.

Mixpanel docs: Query Segmentation Report; Numerically Bucket; Numerically Sum; Numerically Average.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import parameters
from .counting import TYPES, Buckets, Event, by_value, chosen, events_between, grouped, largest, values_of
from .reply import ApiError, Reply, json_reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

_BASE = {"project_id", "workspace_id", "event", "from_date", "to_date", "on", "unit", "where"}
PARAMS = frozenset(_BASE | {"interval", "limit", "type", "format"})
NUMERIC_PARAMS = frozenset(_BASE | {"type"})
SUM_PARAMS = frozenset(_BASE)

DEFAULT_LIMIT, MAX_LIMIT = 60, 10_000
"""Segments of `on`. Mixpanel docs: Query Segmentation Report."""

_RANGES = 10
"""About how many ranges `numeric` makes; Mixpanel's own choice of them is not documented."""


def segmentation(sandbox: Sandbox, call: Call) -> Reply:
    """The event's counts, by the values of `on` if given. A bucket without events counts 0."""
    params = call.params
    event = parameters.text(params, "event")
    kind = parameters.choice(params, "type", TYPES, "general")
    limit = parameters.whole(params, "limit", DEFAULT_LIMIT, most=MAX_LIMIT)
    interval = parameters.whole(params, "interval", None)
    if interval is not None and ("unit" in params or kind == "general"):
        raise ApiError(400, "interval stands in for unit, where type is not general")
    refuse_csv(params, ("csv",))
    on = parameters.value(params)
    events, buckets = _asked(sandbox, call, ("minute", "hour", "day", "month"), interval or 1)
    groups = largest(grouped(events, by_value(on) if on else lambda _: event, buckets), limit)
    zeros = dict.fromkeys(buckets.keys, 0)
    values = {segment: zeros | counts for segment, counts in values_of(groups, kind).items()}
    return _series(buckets, values)


def numeric(sandbox: Sandbox, call: Call) -> Reply:
    """Counts by ranges of a number; a bucket without events is left out, as are events without a number."""
    parameters.text(call.params, "event")
    kind = parameters.choice(call.params, "type", TYPES, "general")
    number = _number(call)
    events, buckets = _asked(sandbox, call, ("hour", "day"))
    numbers = [(found, event) for event in events if (found := number(event)) is not None]
    width = _width(min((found for found, _ in numbers), default=0), max((found for found, _ in numbers), default=0))
    in_range: dict[int, list[Event]] = defaultdict(list)
    for found, event in numbers:
        in_range[math.floor(found / width)].append(event)
    values: dict[str, dict[str, float]] = {}
    for start in sorted(in_range):
        name = _range(start, width)
        values |= values_of({name: grouped(in_range[start], lambda _: "", buckets)[""]}, kind)
    return _series(buckets, values)


def total(sandbox: Sandbox, call: Call) -> Reply:
    """The sum of `on`; a value that is no number counts as 0."""
    results = {key: float(sum(numbers)) for key, numbers in _numbers(sandbox, call).items()}
    computed_at = sandbox.current_time().isoformat(timespec="microseconds")
    return json_reply(200, {"status": "ok", "computed_at": computed_at, "results": results})


def average(sandbox: Sandbox, call: Call) -> Reply:
    """The mean of `on` over the events; a value that is no number counts as 0."""
    results = {key: sum(numbers) / len(numbers) if numbers else 0.0 for key, numbers in _numbers(sandbox, call).items()}
    return json_reply(200, {"results": results, "status": "ok"})


def refuse_csv(params: parameters.Params, formats: tuple[str, ...]) -> None:
    """What Mixpanel's CSV looks like is not known, so that none is served."""
    if "format" in params and parameters.choice(params, "format", formats) == "csv":
        raise ApiError(400, "the sandbox does not serve format=csv")


def _asked(sandbox: Sandbox, call: Call, units: tuple[str, ...], days: int = 1) -> tuple[list[Event], Buckets]:
    params = call.params
    from_day, to_day = parameters.days(sandbox, params)
    unit = parameters.choice(params, "unit", units, "day")
    where = parameters.where(params)
    events = chosen(events_between(sandbox, from_day, to_day), [parameters.text(params, "event")], where)
    return events, Buckets.of_days(unit, from_day, to_day, days)


def _series(buckets: Buckets, values: dict[str, dict[str, float]]) -> Reply:
    # The docs' example has its later half first: clients have to sort.
    half = len(buckets.keys) // 2
    series = buckets.keys[half:] + buckets.keys[:half]
    return json_reply(200, {"data": {"series": series, "values": values}, "legend_size": len(values)})


def _number(call: Call) -> Callable[[Event], float | None]:
    """The value of `on`, which is required here; None where it is no number."""
    parameters.text(call.params, "on")
    on = parameters.value(call.params)

    def number(event: Event) -> float | None:
        found: Any = None if on is None else on(event.row())
        return found if isinstance(found, int | float) and not isinstance(found, bool) else None

    return number


def _numbers(sandbox: Sandbox, call: Call) -> dict[str, list[float]]:
    parameters.text(call.params, "event")
    number = _number(call)
    events, buckets = _asked(sandbox, call, ("hour", "day"))
    numbers: dict[str, list[float]] = {key: [] for key in buckets.keys}
    for event in events:
        key = buckets.key(event.wall)
        if key is not None:
            numbers[key].append(number(event) or 0.0)
    return numbers


def _width(least: float, most: float) -> float:
    """1, 2 or 5 times a power of ten."""
    rough = (most - least) / _RANGES
    if rough <= 0:
        return 1
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)


def _range(start: int, width: float) -> str:
    """Such as "2,000 - 2,100"."""
    return " - ".join(f"{edge * width:,.12g}" for edge in (start, start + 1))
