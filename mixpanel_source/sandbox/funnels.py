"""How far users got: /api/query/funnels and /funnels/list. Mixpanel docs: Funnels, Query Saved Report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from . import parameters
from .counting import Buckets, Event, as_text, chosen, events_between
from .reply import ApiError, Reply, json_reply
from .saved import Funnel, Step

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

LIST_PARAMS = frozenset({"project_id", "workspace_id"})
PARAMS = frozenset(
    {
        "project_id",
        "workspace_id",
        "funnel_id",
        "from_date",
        "to_date",
        "length",
        "length_unit",
        "interval",
        "unit",
        "on",
        "where",
        "limit",
    }
)

DEFAULT_LIMIT, MAX_LIMIT = 255, 10_000
"""Segments of `on`. Mixpanel docs: Funnels, Query Saved Report."""

LONGEST_WINDOW = timedelta(days=90)
"""Mixpanel docs: Funnels, Query Saved Report."""

LENGTH_UNITS = ("day", "hour", "minute", "second")
OVERALL = "$overall"

Attempt = list[int]
"""The times of the steps that a user reached, in milliseconds."""


def listed(sandbox: Sandbox, call: Call) -> Reply:
    return json_reply(200, [{"funnel_id": one.funnel_id, "name": one.name} for one in sandbox.saved.funnels])


def funnel(sandbox: Sandbox, call: Call) -> Reply:
    """The funnel for each bucket of days, by the day of its first step; with `on`, by the first step's value too.

    A user counts once in a bucket, with the attempt that went furthest, the first of equals; which attempt counts is
    not in these pages of the docs. `where` holds for the events of every step.
    """
    params = call.params
    number = parameters.number(params, "funnel_id")
    from_day, to_day = parameters.days(sandbox, params)
    if params.keys() >= {"interval", "unit"}:
        raise ApiError(400, "give either interval or unit")
    unit = parameters.choice(params, "unit", ("day", "week", "month"), "day")
    interval = parameters.whole(params, "interval", 1)
    limit = parameters.whole(params, "limit", DEFAULT_LIMIT, most=MAX_LIMIT)
    on, where = parameters.value(params), parameters.where(params)
    saved = next((one for one in sandbox.saved.funnels if one.funnel_id == number), None)
    if saved is None:
        raise ApiError(404, f"funnel_id: there is no funnel {number}")
    window = _window(params, saved)

    last_day = min(to_day + timedelta(days=1) + window, parameters.project_today(sandbox))
    events = chosen(events_between(sandbox, from_day, last_day), {step.event for step in saved.steps}, where)
    by_user: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.distinct_id:
            by_user[event.distinct_id].append(event)
    buckets = Buckets.of_days(unit, from_day, to_day, interval)
    # By bucket, then segment, then user.
    best: dict[str, dict[str, dict[str, Attempt]]] = {key: {OVERALL: {}} for key in buckets.keys}
    for user, mine in by_user.items():
        for start, event in enumerate(mine):
            key = buckets.key(event.wall)
            if key is None or event.name != saved.steps[0].event:
                continue
            attempt = _attempt(mine[start:], saved.steps, window // timedelta(milliseconds=1))
            for segment in (OVERALL, as_text(on(event.row()))) if on else (OVERALL,):
                attempts = best[key].setdefault(segment, {})
                if len(attempt) > len(attempts.get(user, [])):
                    attempts[user] = attempt
    data: dict[str, object] = {}
    top = _largest(best, limit)
    for key, segments in best.items():
        steps = {name: _steps(saved.steps, list(users.values())) for name, users in segments.items() if name in top}
        data[key] = steps if on else {"steps": steps[OVERALL], "analysis": _analysis(steps[OVERALL])}
    return json_reply(200, {"meta": {"dates": buckets.keys}, "data": data})


def _window(params: parameters.Params, saved: Funnel) -> timedelta:
    """The time a user has from the first step to the last, by default as saved."""
    length = parameters.whole(params, "length", saved.length)
    unit = parameters.choice(params, "length_unit", LENGTH_UNITS, saved.length_unit)
    if length * timedelta(**{f"{unit}s": 1}).total_seconds() > LONGEST_WINDOW.total_seconds():
        raise ApiError(400, "Error in length: more than 90 days")
    return length * timedelta(**{f"{unit}s": 1})


def _attempt(events: Sequence[Event], steps: Sequence[Step], window_ms: int) -> Attempt:
    """The steps that follow from the first of these events, each the earliest that can be; one event is one step."""
    times = [events[0].time_ms]
    for event in events[1:]:
        if len(times) == len(steps) or event.time_ms - times[0] > window_ms:
            break
        if event.name == steps[len(times)].event:
            times.append(event.time_ms)
    return times


def _largest(best: Mapping[str, Mapping[str, Mapping[str, Attempt]]], limit: int) -> set[str]:
    """The segments with the most users at the first step, of equals the first by name; and the whole."""
    sizes: dict[str, int] = defaultdict(int)
    for segments in best.values():
        for name, users in segments.items():
            sizes[name] += len(users)
    sizes.pop(OVERALL, None)
    return {OVERALL, *sorted(sizes, key=lambda name: (-sizes[name], name))[:limit]}


def _steps(steps: Sequence[Step], attempts: Sequence[Attempt]) -> list[dict[str, object]]:
    counts = [sum(1 for attempt in attempts if len(attempt) > number) for number in range(len(steps))]
    before = [counts[0], *counts]
    rows: list[dict[str, object]] = []
    for number, step in enumerate(steps):
        there = [attempt for attempt in attempts if len(attempt) > number] if number else []
        row: dict[str, object] = {
            "count": counts[number],
            # Null at the first step, as the docs' text has it; their example has numbers.
            "avg_time": _mean_s([attempt[number] - attempt[number - 1] for attempt in there]),
            "avg_time_from_start": _mean_s([attempt[number] - attempt[0] for attempt in there]),
            "step_conv_ratio": _share(counts[number], before[number]) if number else 1,
            "goal": step.event,
            "overall_conv_ratio": _share(counts[number], counts[0]) if number else 1,
            "event": step.event,
        }
        if step.label is not None:
            row["step_label"] = step.label
        rows.append(row)
    return rows


def _analysis(steps: Sequence[Mapping[str, object]]) -> dict[str, object]:
    counts = [int(str(step["count"])) for step in steps]
    drops = [_share(before - after, before) for before, after in pairwise(counts)]
    return {
        "completion": counts[-1],
        "starting_amount": counts[0],
        "steps": len(counts),
        "worst": drops.index(max(drops)) + 1 if drops else 0,
    }


def _mean_s(durations_ms: Sequence[int]) -> int | None:
    """In whole seconds."""
    return round(sum(durations_ms) / len(durations_ms) / 1000) if durations_ms else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0
