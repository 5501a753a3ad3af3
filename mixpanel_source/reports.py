"""Live reports: Mixpanel works one out for each call, and counts each as one of the Query API's 60 requests an hour."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from mixpanel_source import settings
from mixpanel_source.client import MixpanelClient, compact
from mixpanel_source.errors import ConfigError, EntityNotFoundError, QueryError, ServerError
from mixpanel_source.parsing import reports as parsing
from mixpanel_source.parsing.reports import OVERALL, Rows
from mixpanel_source.project import parse_day

if TYPE_CHECKING:
    import pandas

Day = str | date
"""As YYYY-MM-DD, or a date; in the project's time zone (Mixpanel docs: Managing Projects)."""

TYPES: Final = ("general", "unique", "average")
"""Events, their users, or events for each user. Mixpanel docs: Aggregate Event Counts."""
MATHS: Final = ("numeric", "sum", "average")
MAX_SEGMENTS: Final = 10_000
"""`limit` at most. Mixpanel docs: Query Segmentation Report; Funnels, Query Saved Report."""
MAX_LENGTH_S: Final = 90 * 86_400
"""The longest time for a funnel's steps. Mixpanel docs: Funnels, Query Saved Report."""
MAX_INTERVAL_DAYS: Final = 90
"""Mixpanel docs: Query Retention Report."""

FUNNEL_COLUMNS: Final = (
    "date",
    "segment",
    "step",
    "event",
    "label",
    "count",
    "step_conv_ratio",
    "overall_conv_ratio",
    "avg_time",
    "avg_time_from_start",
)

_BARE_NAME: Final = re.compile(r"[^\W\d][\w $]*|\$[\w $]+")
_OPERATOR: Final = re.compile(r"\S +(and|or|in|AND|OR) +\S|^not +\S")
"""What makes an expression of words: `Logged In`, `Terms And Conditions` and `Order Value` are names. Mixpanel docs:
Segmentation Expressions; its own export script has AND and OR (Hot Shard Limits)."""
_LITERALS: Final = ("true", "false", "null", "undefined")
_LENGTH_UNITS_S: Final = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report says. `rows` is its long form, plain dicts with the keys `columns`; `raw` is Mixpanel's answer."""

    raw: Any = field(repr=False)
    rows: Rows = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)

    @cached_property
    def df(self) -> pandas.DataFrame:
        """The rows as a DataFrame. Raises ConfigError without pandas."""
        try:
            import pandas
        except ImportError:
            raise ConfigError(
                "a DataFrame needs pandas, which is not installed", hint="pip install pandas; or take .rows"
            ) from None
        return pandas.DataFrame(self.rows, columns=list(self.columns))


@dataclass(frozen=True, kw_only=True)
class SegmentationResult(Report):
    """One event over time, by `segment_property` (an expression) or as a whole, its segment then being the event."""

    event: str
    from_date: date
    to_date: date
    unit: str
    segment_property: str | None

    @property
    def total(self) -> float:
        """The sum of all values. Of users, and of averages, it is not that of the whole time."""
        return _total(self.rows)


@dataclass(frozen=True)
class FunnelStep:
    event: str
    label: str | None
    count: int
    conversion_rate: float
    """From the first step, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class FunnelResult(Report):
    funnel_id: int
    funnel_name: str | None
    """As given: Mixpanel's answer does not hold it."""
    from_date: date
    to_date: date

    @cached_property
    def steps(self) -> list[FunnelStep]:
        """The steps over all dates; a user counts once in each. None of a segmented answer that lacks `$overall`."""
        counts: dict[int, int] = {}
        named: dict[int, dict[str, Any]] = {}
        for row in self.rows:
            if row["segment"] in (None, OVERALL):
                counts[row["step"]] = counts.get(row["step"], 0) + row["count"]
                named.setdefault(row["step"], row)
        first = counts.get(1, 0)
        return [
            FunnelStep(row["event"], row["label"], counts[step], counts[step] / first if first else 0.0)
            for step, row in sorted(named.items())
        ]

    @property
    def conversion_rate(self) -> float | None:
        """From the first step to the last, 0 to 1; None where there are no steps."""
        return self.steps[-1].conversion_rate if self.steps else None


@dataclass(frozen=True)
class RetentionCohort:
    """The users of one date, and how many of them came back in each interval after it."""

    date: str
    segment: str | None
    first: int
    counts: list[int]


@dataclass(frozen=True, kw_only=True)
class RetentionResult(Report):
    born_event: str | None
    return_event: str | None
    from_date: date
    to_date: date
    unit: str

    @cached_property
    def cohorts(self) -> list[RetentionCohort]:
        found: dict[tuple[str, str | None], RetentionCohort] = {}
        for row in self.rows:
            key = row["date"], row["segment"]
            found.setdefault(key, RetentionCohort(*key, row["first"], [])).counts.append(row["count"])
        return list(found.values())


@dataclass(frozen=True, kw_only=True)
class FrequencyResult(Report):
    event: str | None
    from_date: date
    to_date: date
    unit: str
    addiction_unit: str


@dataclass(frozen=True, kw_only=True)
class InsightsResult(Report):
    """A saved report. `headers` names the levels of `path`; the dates are those of the report as saved."""

    bookmark_id: int
    headers: list[str]
    computed_at: str | None
    from_date: str | None
    to_date: str | None


@dataclass(frozen=True, kw_only=True)
class EventCountsResult(Report):
    events: list[str]
    unit: str
    type: str

    @property
    def total(self) -> float:
        """The sum of all values. Of users, and of averages, it is not that of the whole time."""
        return _total(self.rows)


@dataclass(frozen=True, kw_only=True)
class PropertyCountsResult(Report):
    """Counts of one event by the values of a property, which are the segments."""

    event: str
    name: str
    unit: str
    type: str


@dataclass(frozen=True, kw_only=True)
class ActivityResult(Report):
    """What some users did. `time` is in seconds, as Mixpanel sends it: see `legacy_local_time`."""

    distinct_ids: list[str]
    from_date: date
    to_date: date


@dataclass(frozen=True, kw_only=True)
class JQLResult(Report):
    """What a script returned."""


def _total(rows: Rows) -> float:
    total: float = sum(row["value"] or 0 for row in rows)
    return total


class Reports:
    """Asks for reports, one request each. `wait` allows waiting for the hourly limit, whatever the client allows.

    `exact` is as for `MixpanelClient.request_json`.

    Each method takes every parameter of its page in Mixpanel's documentation but `format`. `on` and `where` are
    expressions (Mixpanel docs: Segmentation Expressions). An `on` that is but a name (letters, digits, blanks, _, $),
    such as Order Value, is that property; any other name is properties["..."], and so is one with the words and, or,
    in between others, or with not before. Raises `ConfigError` for what Mixpanel is known to refuse, before a request
    is spent, and else as `MixpanelClient.request_json`.
    """

    def __init__(self, client: MixpanelClient, *, wait: bool = False, exact: bool = False) -> None:
        self._client = client
        self._wait = wait
        self._exact = exact

    def segmentation(
        self,
        event: str,
        from_date: Day,
        to_date: Day,
        *,
        on: str | None = None,
        math: str | None = None,
        unit: str | None = None,
        interval: int | None = None,
        where: str | None = None,
        type: str | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> SegmentationResult:
        """One event's counts, by the values of `on` if given. Mixpanel docs: Query Segmentation Report.

        With `math`, `on` is a number: "numeric" counts by ranges of it, "sum" and "average" add it up (Mixpanel docs:
        Numerically Bucket, Sum, Average). Mixpanel keeps all of these in maintenance mode.
        """
        _one_of("type", type, TYPES)
        _one_of("math", math, MATHS)
        _one_of("unit", unit, ("minute", "hour", "day", "month") if math is None else ("hour", "day"))
        if math is not None:
            _refuse_given("math", interval=interval, limit=limit)
            if on is None:
                raise ConfigError(f"math {math!r} needs a number", hint='add on, such as properties["amount"]')
            if math != "numeric":
                _refuse_given(f"math {math!r}", type=type)
        if interval is not None and (unit is not None or type in (None, "general")):
            raise ConfigError("interval stands in for unit, and only where type is unique or average")
        _bounded("interval", interval)
        _bounded("limit", limit, MAX_SEGMENTS)
        span = _span(from_date, to_date)
        params = {
            "event": event,
            **span,
            "on": _property(on),
            "unit": unit,
            "interval": interval,
            "where": where,
            "type": type,
            "limit": limit,
        }

        def read(answer: Any) -> Rows:
            return parsing.total_rows(answer, event) if math in ("sum", "average") else parsing.series_rows(answer)

        path = "segmentation" if math is None else f"segmentation/{math}"
        return SegmentationResult(
            **self._ask(path, params, read, ("segment", "date", "value")),
            event=event,
            **span,
            unit=unit or "day",
            segment_property=on,
        )

    def funnel(
        self,
        funnel_id: int,
        from_date: Day,
        to_date: Day,
        *,
        length: int | None = None,
        length_unit: str | None = None,
        interval: int | None = None,
        unit: str | None = None,
        on: str | None = None,
        where: str | None = None,
        limit: int | None = None,
        funnel_name: str | None = None,
    ) -> FunnelResult:
        """A saved funnel, by the dates of its first step.

        Mixpanel docs: Funnels, Query Saved Report (maintenance mode). `length` of `length_unit` (day if not given) is
        the time for all steps, else as saved. Raises `EntityNotFoundError` for an id that Mixpanel does not know.
        """
        _one_of("length_unit", length_unit, tuple(_LENGTH_UNITS_S))
        _one_of("unit", unit, ("day", "week", "month"))
        _refuse_both(unit=unit, interval=interval)
        _bounded("funnel_id", funnel_id)
        _bounded("interval", interval)
        _bounded("limit", limit, MAX_SEGMENTS)
        _bounded("length", length)
        if length is not None:
            length_unit = length_unit or "day"
            if length * _LENGTH_UNITS_S[length_unit] > MAX_LENGTH_S:
                raise ConfigError(f"length is at most 90 days, not {length} {length_unit}s")
        elif length_unit is not None:
            raise ConfigError("length_unit goes with length")
        span = _span(from_date, to_date)
        params = {
            "funnel_id": funnel_id,
            **span,
            "length": length,
            "length_unit": length_unit,
            "interval": interval,
            "unit": unit,
            "on": _property(on),
            "where": where,
            "limit": limit,
        }
        with _named("funnel", funnel_id):
            found = self._ask("funnels", params, parsing.funnel_rows, FUNNEL_COLUMNS)
        return FunnelResult(**found, funnel_id=funnel_id, funnel_name=funnel_name, **span)

    def retention(
        self,
        from_date: Day,
        to_date: Day,
        *,
        born_event: str | None = None,
        event: str | None = None,
        retention_type: str | None = None,
        born_where: str | None = None,
        where: str | None = None,
        interval: int | None = None,
        interval_count: int | None = None,
        unit: str | None = None,
        unbounded_retention: bool | None = None,
        on: str | None = None,
        limit: int | None = None,
    ) -> RetentionResult:
        """Who came back. Mixpanel docs: Query Retention Report.

        "birth" (if no `retention_type` is given): users by the date of their first `born_event`; "compounded": by each
        date on which they did `event`. Then how many did `event`, or anything, in each of `interval_count` intervals
        after, a `unit` or `interval` days long, and in the one before these, numbered 0. `on` is a property of `event`.
        """
        _one_of("retention_type", retention_type, ("birth", "compounded"))
        _one_of("unit", unit, ("day", "week", "month"))
        # Not in the docs, but such a request is known to end with status 500.
        _refuse_both(unit=unit, interval=interval)
        _bounded("interval", interval, MAX_INTERVAL_DAYS)
        _bounded("interval_count", interval_count)
        _bounded("limit", limit)
        if retention_type == "compounded":
            _refuse_given("retention_type 'compounded'", born_event=born_event, born_where=born_where)
        elif born_event is None:
            raise ConfigError(
                "born_event is missing: the event that users are born with",
                hint="give it (--born), or retention_type compounded (--type), which needs none",
            )
        span = _span(from_date, to_date)
        params = {
            **span,
            "retention_type": retention_type,
            "born_event": born_event,
            "event": event,
            "born_where": born_where,
            "where": where,
            "interval": interval,
            "interval_count": interval_count,
            "unit": unit,
            "unbounded_retention": unbounded_retention,
            "on": _property(on),
            "limit": limit,
        }
        columns = ("segment", "date", "first", "interval", "count")
        return RetentionResult(
            **self._ask("retention", params, parsing.retention_rows, columns),
            born_event=born_event,
            return_event=event,
            **span,
            unit=unit or "day",
        )

    def frequency(
        self,
        from_date: Day,
        to_date: Day,
        *,
        unit: str = "day",
        addiction_unit: str = "hour",
        event: str | None = None,
        where: str | None = None,
        on: str | None = None,
        limit: int | None = None,
    ) -> FrequencyResult:
        """How many users were active in at least 1, 2, 3, ... of the hours or days (`addiction_unit`) of each `unit`.

        Mixpanel docs: Query Frequency Report (retention/addiction).
        """
        _one_of("unit", unit, ("day", "week", "month"))
        _one_of("addiction_unit", addiction_unit, ("hour", "day"))
        _bounded("limit", limit)
        span = _span(from_date, to_date)
        params = {
            **span,
            "unit": unit,
            "addiction_unit": addiction_unit,
            "event": event,
            "where": where,
            "on": _property(on),
            "limit": limit,
        }
        columns = ("segment", "date", "at_least", "users")
        return FrequencyResult(
            **self._ask("retention/addiction", params, parsing.frequency_rows, columns),
            event=event,
            **span,
            unit=unit,
            addiction_unit=addiction_unit,
        )

    def insights(self, bookmark_id: int) -> InsightsResult:
        """A saved report, with the dates it was saved with. Mixpanel docs: Insights, Query Saved Report.

        Mixpanel answers for funnels and retention that were saved in the new way, too (undocumented). Raises
        `EntityNotFoundError` for an id that it does not know.
        """
        _bounded("bookmark_id", bookmark_id)
        with _named("bookmark", bookmark_id):
            found = self._ask(
                "insights", {"bookmark_id": bookmark_id}, parsing.insights_rows, ("path", "date", "value")
            )
        raw = found["raw"]
        dates = raw.get("date_range")
        dates = dates if isinstance(dates, dict) else {}
        return InsightsResult(
            **found,
            bookmark_id=bookmark_id,
            headers=list(raw.get("headers") or []),
            computed_at=raw.get("computed_at"),
            from_date=dates.get("from_date"),
            to_date=dates.get("to_date"),
        )

    def event_counts(
        self,
        events: Sequence[str],
        from_date: Day | None = None,
        to_date: Day | None = None,
        *,
        interval: int | None = None,
        type: str = "general",  # noqa: A002
        unit: str = "day",
    ) -> EventCountsResult:
        """Counts of some events, over dates or the last `interval` units. Mixpanel docs: Aggregate Event Counts."""
        if isinstance(events, str) or not events:
            raise ConfigError("events is a list of one event name or more")
        names = [_text("event", event) for event in events]
        found = self._ask(
            "events",
            {"event": names, **_counted(from_date, to_date, interval, type, unit)},
            lambda answer: parsing.series_rows(answer, "event"),
            ("event", "date", "value"),
        )
        return EventCountsResult(**found, events=names, unit=unit, type=type)

    def property_counts(
        self,
        event: str,
        name: str,
        from_date: Day | None = None,
        to_date: Day | None = None,
        *,
        interval: int | None = None,
        values: Sequence[str] | None = None,
        type: str = "general",  # noqa: A002
        unit: str = "day",
        limit: int | None = None,
    ) -> PropertyCountsResult:
        """Counts of one event by the values of the property `name`, or by some `values` of it, over dates or the last
        `interval` units. Mixpanel docs: Aggregated Event Property Values, which are 255 without `limit`."""
        _bounded("limit", limit)
        if values is not None and (isinstance(values, str) or not values):
            raise ConfigError("values is a list of one value or more; leave it out for all of them")
        params = {
            "event": event,
            "name": name,
            "values": None if values is None else list(values),
            "limit": limit,
            **_counted(from_date, to_date, interval, type, unit),
        }
        found = self._ask("events/properties", params, parsing.series_rows, ("segment", "date", "value"))
        return PropertyCountsResult(**found, event=event, name=name, unit=unit, type=type)

    def activity(self, distinct_ids: Sequence[str], from_date: Day, to_date: Day) -> ActivityResult:
        """What some users did, event by event. Mixpanel docs: Query Stream (maintenance mode)."""
        if isinstance(distinct_ids, str) or not distinct_ids:
            raise ConfigError("distinct_ids is a list of one id or more")
        span = _span(from_date, to_date)
        ids = [_text("distinct_id", one) for one in distinct_ids]
        columns = ("event", "time", "distinct_id", "properties")
        found = self._ask("stream/query", {"distinct_ids": ids, **span}, parsing.activity_rows, columns)
        return ActivityResult(**found, distinct_ids=ids, **span)

    def jql(self, script: str, params: Mapping[str, Any] | None = None) -> JQLResult:
        """What a script in JavaScript returns, `params` being its global `params`. Mixpanel docs: JQL.

        Mixpanel keeps JQL in maintenance mode and once had a date for its end: do not build on it. A script with an
        error is a `QueryError` (412).
        """
        form = {"script": _text("script", script)}
        if params is not None:
            form["params"] = compact(dict(params))
        found = self._ask("jql", {}, parsing.script_rows, (), form=form)
        return JQLResult(**{**found, "columns": tuple(found["rows"][0]) if found["rows"] else ("value",)})

    def _ask(
        self,
        path: str,
        params: Mapping[str, Any],
        read: Callable[[Any], Rows],
        columns: tuple[str, ...],
        form: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The fields of a `Report`."""
        answer = self._client.request_json(
            "query",
            "GET" if form is None else "POST",
            f"/api/query/{path}",
            _as_sent(params),
            form,
            wait=self._wait,
            timeout_s=None if form is None else settings.JQL_TIMEOUT_S,
            exact=self._exact,
        )
        try:
            rows = read(answer)
        except (TypeError, KeyError, AttributeError, ValueError):
            raise ServerError(
                f"/api/query/{path} answered with something that is no such report", hint="try again later"
            ) from None
        return {"raw": answer, "rows": rows, "columns": columns}


class UnaskedReports(Reports):
    """Checks the arguments of each report as `Reports` does, and asks nobody: each is empty."""

    def __init__(self) -> None:
        pass

    def _ask(
        self,
        path: str,
        params: Mapping[str, Any],
        read: Callable[[Any], Rows],
        columns: tuple[str, ...],
        form: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        _as_sent(params)
        return {"raw": {}, "rows": [], "columns": columns}


# --- arguments


@contextmanager
def _named(what: str, number: int) -> Iterator[None]:
    """Tells of an unknown id where Mixpanel answers 404."""
    try:
        yield
    except QueryError as error:
        if error.status != 404:
            raise
        raise EntityNotFoundError(
            f"the project has no {what} {number}: {error.message}", hint=f"mpload {what}s lists them", status=404
        ) from None


def _counted(from_date: Day | None, to_date: Day | None, interval: int | None, type_: str, unit: str) -> dict[str, Any]:
    """What counts of events and of properties take. Mixpanel docs: "either" dates or an interval; no hourly uniques."""
    _one_of("type", type_, TYPES)
    _one_of("unit", unit, ("minute", "hour", "day", "week", "month"))
    if type_ == "unique" and unit in ("minute", "hour"):
        raise ConfigError(f"Mixpanel does not count unique users by the {unit}", hint="take unit day, or type general")
    if interval is None:
        return {"type": type_, "unit": unit, **_span(from_date, to_date)}
    if from_date is not None or to_date is not None:
        raise ConfigError("either dates or interval", hint="leave one of them out")
    _bounded("interval", interval)
    return {"type": type_, "unit": unit, "interval": interval}


def _span(from_date: Day | None, to_date: Day | None) -> dict[str, Any]:
    first, last = parse_day("from_date", from_date), parse_day("to_date", to_date)
    if first is None or last is None:
        raise ConfigError(f"{'to_date' if first else 'from_date'} is missing", hint="give both days, as YYYY-MM-DD")
    if first > last:
        raise ConfigError(f"the days end ({last}) before they begin ({first})")
    return {"from_date": first, "to_date": last}


def _text(name: str, value: str) -> str:
    if not value.strip():
        raise ConfigError(f"{name} is empty", hint="give it a value, or leave it out")
    return value


def _property(on: str | None) -> str | None:
    """A bare name, which is no expression, as the one that it stands for: Mixpanel does not take one everywhere."""
    if on is None or not _BARE_NAME.fullmatch(on) or on in _LITERALS or _OPERATOR.search(on):
        return on
    return f'properties["{on}"]'


def _one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}, not {value[:40]!r}")


def _bounded(name: str, value: int | None, most: int | None = None) -> None:
    if value is not None and (value < 1 or (most is not None and value > most)):
        raise ConfigError(f"{name} is a number from 1{'' if most is None else f' to {most}'}, not {value}")


def _refuse_both(**given: object) -> None:
    if all(value is not None for value in given.values()):
        raise ConfigError(f"either {' or '.join(given)}, and not both")


def _refuse_given(why: str, **given: object) -> None:
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ConfigError(f"{' and '.join(names)} does not go with {why}")


def _as_sent(params: Mapping[str, Any]) -> dict[str, str]:
    sent: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, str):
            sent[name] = _text(name, value)
        elif isinstance(value, bool):
            sent[name] = "true" if value else "false"
        elif isinstance(value, list):
            sent[name] = compact(value)
        elif value is not None:
            sent[name] = str(value)
    return sent
