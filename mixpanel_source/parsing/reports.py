"""The answers of Mixpanel's reports as rows in long form.

Where an answer is no such report, they raise TypeError, KeyError, AttributeError or ValueError. Dates and times stay
text, as they came: those of hours and minutes are not documented. A date that Mixpanel leaves out has no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Rows = list[dict[str, Any]]

OVERALL = "$overall"
"""The segment that stands for all of them (met by clients; the docs do not tell of it)."""

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?")


def series_rows(answer: Any, name: str = "segment") -> Rows:
    """Counts by `name` and date. Mixpanel docs: Query Segmentation Report (whose example is not sorted by date)."""
    return [
        {name: key, "date": day, "value": value}
        for key, by_day in _inside(answer, "data")["values"].items()
        for day, value in sorted(by_day.items())
    ]


def total_rows(answer: Any, event: str) -> Rows:
    """Sums or averages by date. Mixpanel docs: Numerically Sum; Numerically Average."""
    return [{"segment": event, "date": day, "value": value} for day, value in sorted(answer["results"].items())]


def funnel_rows(answer: Any) -> Rows:
    """A row for each step of each date and segment. Mixpanel docs: Funnels, Query Saved Report."""
    return [
        {
            "date": day,
            "segment": segment,
            "step": number,
            "event": step["event"],
            "label": step.get("step_label"),
            "count": step["count"],
            "step_conv_ratio": step.get("step_conv_ratio"),
            "overall_conv_ratio": step.get("overall_conv_ratio"),
            "avg_time": step.get("avg_time"),
            "avg_time_from_start": step.get("avg_time_from_start"),
        }
        for day, bucket in sorted(_inside(answer, "data").items())
        for segment, steps in _funnel_segments(bucket)
        for number, step in enumerate(steps, 1)
    ]


def _funnel_segments(bucket: Mapping[str, Any]) -> Iterator[tuple[str | None, list[Mapping[str, Any]]]]:
    """With `on` there is a list of steps for each value, or an object that holds one, as there is without."""
    if "steps" in bucket and OVERALL not in bucket:
        yield None, bucket["steps"]
        return
    for segment, steps in bucket.items():
        yield segment, steps["steps"] if isinstance(steps, Mapping) else steps


def retention_rows(answer: Any) -> Rows:
    """A row for each interval after each cohort's date. Mixpanel docs: Query Retention Report."""
    return [
        {"segment": segment, "date": day, "first": cohort["first"], "interval": interval, "count": count}
        for day, cohorts in sorted(_inside(answer, "data").items())
        for segment, cohort in _segments(cohorts, isinstance(cohorts.get("counts"), list))
        for interval, count in enumerate(cohort["counts"])
    ]


def frequency_rows(answer: Any) -> Rows:
    """How many users were active in at least so many hours or days of each date. Mixpanel docs: Query Frequency Report.

    The page's text has the dates bare, its specification under `data`.
    """
    return [
        {"segment": segment, "date": day, "at_least": at_least, "users": users}
        for day, found in sorted(_inside(answer, "data").items())
        for segment, counts in _segments(found, isinstance(found, list))
        for at_least, users in enumerate(counts, 1)
    ]


def insights_rows(answer: Any) -> Rows:
    """A row for each value, however deep it lies. Mixpanel docs: Insights, Query Saved Report.

    `path` are the keys that lead to it, but for the last of them that is a date. One that stands where `headers` names
    a level is no date but a segment: `headers` does not name the level of dates.
    """
    levels = len(answer.get("headers") or [])
    rows: Rows = []
    for keys, value in _leaves(answer["series"], ()):
        dates = [place for place, key in enumerate(keys) if place >= levels and _DATE.fullmatch(key)]
        path = list(keys)
        day = path.pop(dates[-1]) if dates else None
        rows.append({"path": path, "date": day, "value": value})
    return rows


def _leaves(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that holds no others, with its keys; those of a list are numbered from 0, as intervals are."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        yield keys, value
        return
    if all(_DATE.fullmatch(key) for key, _ in items):
        items.sort(key=lambda item: item[0])
    for key, item in items:
        yield from _leaves(item, (*keys, key))


def activity_rows(answer: Any) -> Rows:
    """What users did. Mixpanel docs: Query Stream, whose example has the user's id under either of two names."""
    return [
        {
            "event": event["event"],
            "time": event["properties"].get("time"),
            "distinct_id": event["properties"].get("$distinct_id", event["properties"].get("distinct_id")),
            "properties": event["properties"],
        }
        for event in answer["results"]["events"]
    ]


def script_rows(answer: Any) -> Rows:
    """Objects as they are, each with the keys of all of them; anything else under `value`."""
    found = answer if isinstance(answer, list) else [answer]
    objects = [one if isinstance(one, dict) else {"value": one} for one in found]
    keys = dict.fromkeys(key for one in objects for key in one)
    return [{**dict.fromkeys(keys), **one} for one in objects]


def _segments(found: Any, is_whole: bool) -> list[tuple[str | None, Any]]:
    return [(None, found)] if is_whole else list(found.items())


def _inside(answer: Any, key: str) -> Mapping[str, Any]:
    """What lies under `key`, or the answer itself where nothing does."""
    found = answer.get(key, answer)
    if not isinstance(found, Mapping):
        raise TypeError(f"{key} is not an object")
    return found
