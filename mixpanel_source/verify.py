"""Loaded events against Mixpanel's own counts, day by day and event by event, and against what their loads recorded.

Mixpanel counts in the project's time zone (Managing Projects), after it has removed duplicates (Event Deduplication).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote_plus

import duckdb

from mixpanel_source import settings
from mixpanel_source.client import compact
from mixpanel_source.discovery import Discovery
from mixpanel_source.errors import ConfigError, ServerError, TableNotFoundError, WarehouseError
from mixpanel_source.event_days import LOADED_DAYS_SQL, event_of, loaded_days, recorded_otherwise
from mixpanel_source.exports import EventFilter
from mixpanel_source.parsing.report_tables import moment_of
from mixpanel_source.progress import LoadProgress
from mixpanel_source.project import Project
from mixpanel_source.reports import Reports
from mixpanel_source.warehouse import (
    LOCK_WAIT_S,
    fetched_tables,
    file_and_other,
    first_line,
    literal,
    opened,
    table_names,
)
from mixpanel_source.windows import FIRST_DAY, ONE_DAY, DateRange, LoadedDay, Window, settles_at, windows_over

if TYPE_CHECKING:
    from mixpanel_source.destinations import Target

Verdict = Literal["equal", "explained", "different", "missing", "not comparable"]
WRONG: Final = ("different", "missing")

_ALL_DAYS: Final = date.max.toordinal()
_UNFINISHED_SQL: Final = """
SELECT DISTINCT day FROM event_days LEFT JOIN _dlt_loads ON load_id = event_days._dlt_load_id
WHERE _dlt_loads.status IS DISTINCT FROM 0
"""

_HOTSHARD: Final = "$hotshard_events"
"""Stands for the events of an id that has too many; each tells its original name. Mixpanel docs: Hot Shard Limits."""


@dataclass(frozen=True)
class DayCount:
    """One event of one day of reports. Without an event, what is said of the whole day, with the counts of all that it
    is said of. `mixpanel` is None for what Mixpanel cannot be asked for."""

    day: date
    event: str | None
    loaded: int
    mixpanel: int | None
    verdict: Verdict
    reason: str | None = None

    @property
    def difference(self) -> int | None:
        return None if self.mixpanel is None else self.loaded - self.mixpanel


@dataclass(frozen=True)
class Verification:
    """What was found, after the repair where there was one; by day, the whole day first."""

    days: Window
    counts: tuple[DayCount, ...]
    repaired: tuple[date, ...] = ()
    """The export days that were exported again."""
    wrong_before: int = 0
    """How many counts were wrong before that."""
    warnings: tuple[str, ...] = ()
    """Of the loads of the repair, and of events that are named and nowhere."""

    @property
    def wrong(self) -> list[DayCount]:
        return [count for count in self.counts if count.verdict in WRONG]

    @property
    def verdicts(self) -> Counter[Verdict]:
        return Counter(count.verdict for count in self.counts)


def verify(
    project: Project,
    into: Path | Target,
    *,
    from_date: date | None = None,
    to_date: date | None = None,
    events: Sequence[str] = (),
    repair: bool = False,
    progress: LoadProgress | None = None,
) -> Verification:
    """Compare the days of reports from `from_date` (else the first loaded one) to `to_date` (else yesterday).

    One request for the counts, more where the names are too long for one; and without `events` one for the names of the
    last 31 days, unless Discovery has kept them. `repair` exports the days that are wrong again and compares anew.
    Raises ConfigError for days that cannot be, WarehouseError or TableNotFoundError where nothing is loaded, and what
    requests and loads raise.

    `into` is a DuckDB file or a DuckLake (one to load into, with `repair`): ConfigError for another destination.
    """
    asked = _Asked(from_date, to_date, EventFilter(events).events)
    found, loaded = _compare(project, into, asked)
    if not repair or not found.wrong:
        return found
    parts = loaded.to_repair(found.wrong)
    warnings = _export_again(project, into, parts, progress)
    again, _ = _compare(project, into, replace(asked, from_date=found.days.first, to_date=found.days.last))
    return replace(
        again,
        repaired=tuple(sorted(set().union(*parts.values()))),
        wrong_before=len(found.wrong),
        warnings=(*warnings, *again.warnings),
    )


@dataclass(frozen=True)
class _Asked:
    from_date: date | None
    to_date: date | None
    events: Sequence[str]
    """All where none are named."""


@contextmanager
def _reading(into: Path | Target) -> Iterator[tuple[duckdb.DuckDBPyConnection, Set[str]]]:
    """A connection to the file or the lake, and the names of the loaded tables there."""
    database, target = file_and_other(into)
    if target is None:
        with opened(database) as connection:
            yield connection, table_names(connection) - fetched_tables(connection).keys()
        return
    from mixpanel_source.destination_sql import lake_opened

    if not target.is_lake:
        raise ConfigError(
            "verify is for DuckDB files and ducklake alone",
            hint="mpload status tells of days that were changed; mpload load --refresh loads them again",
        )
    with lake_opened(target) as connection:
        try:
            # While a package is written, its days are neither there nor missing; later ones do not come into this.
            is_written = target.is_written(LOCK_WAIT_S)
            connection.execute("BEGIN")
            names = table_names(connection, target.schema)
            if is_written or target.is_written(0):
                raise WarehouseError(f"another load writes to {target.where}", hint="run the same command again")
            yield connection, names
        except duckdb.Error as error:
            raise WarehouseError(f"cannot read {target}: {first_line(error)}") from None


def _compare(project: Project, into: Path | Target, asked: _Asked) -> tuple[Verification, _Loaded]:
    now = datetime.now(UTC)
    with _reading(into) as (connection, tables):
        loaded = _Loaded(project, _days(connection, tables, asked, project, now), asked.events, now)
        loaded.read(connection)
    mixpanel, listed = _ask_mixpanel(project, loaded)
    pairs = sorted({*loaded.counts, *mixpanel})
    comparable = [(day, name) for day, name in pairs if name.strip() and not loaded.why_not(day, name)]
    unequal = [pair for pair in comparable if loaded.counts[pair] != mixpanel[pair]]
    causes = _Causes(loaded, mixpanel, listed)
    if unequal:
        with _reading(into) as (connection, tables):
            causes.read(connection, tables, {day for day, _ in unequal}, {name for _, name in unequal})
    rows: list[DayCount] = []
    by_day: dict[date, list[str]] = defaultdict(list)
    for day, name in pairs:
        by_day[day].append(name)
    for day in loaded.span.days:
        names = by_day[day]
        rows += _of_day(loaded, mixpanel, day, [name for name in names if loaded.why_not(day, name)], names)
        for name in names:
            pair = day, name
            if not name.strip():
                reason = "Mixpanel cannot be asked for an event without a name"
                rows.append(DayCount(day, name, loaded.counts[pair], None, "not comparable", reason))
            elif not loaded.why_not(day, name):
                verdict, reason_ = causes.of(pair)
                rows.append(DayCount(day, name, loaded.counts[pair], mixpanel[pair], verdict, reason_))
    met = {name for _, name in pairs}
    nowhere = [f"no event {name!r} is loaded, or counted by Mixpanel" for name in asked.events if name not in met]
    return Verification(loaded.span, tuple(rows), warnings=tuple(nowhere)), loaded


def _of_day(
    loaded: _Loaded, mixpanel: Counter[tuple[date, str]], day: date, apart: Sequence[str], names: Sequence[str]
) -> Iterator[DayCount]:
    """What is to be said of the whole day; `apart` are the `names` that cannot be compared."""
    verdict: Verdict
    if problem := loaded.problem(day):
        verdict, reason = problem
    elif reasons := loaded.why_nothing(day) or [reason for name in apart for reason in loaded.why_not(day, name)]:
        verdict, reason, names = "not comparable", "; ".join(dict.fromkeys(reasons)), apart
    else:
        return
    here, there = (sum(counts[day, name] for name in names) for counts in (loaded.counts, mixpanel))
    yield DayCount(day, None, here, there, verdict, reason)


def _days(
    connection: duckdb.DuckDBPyConnection, tables: Set[str], asked: _Asked, project: Project, now: datetime
) -> Window:
    """Raises ConfigError, and TableNotFoundError where no events are loaded."""
    first_loaded = None
    if {"event_days", "events", "_dlt_loads"} <= tables:
        first_loaded = min((row[0] for row in _rows(connection, LOADED_DAYS_SQL)), default=None)
    if first_loaded is None:
        raise TableNotFoundError("no events are loaded", hint="load some first: mpload load events --from DAY")
    calendar = project.report_calendar
    today = now.astimezone(calendar).date()
    first, last = asked.from_date or first_loaded, asked.to_date or today - ONE_DAY
    given = [day for day in (asked.from_date, asked.to_date) if day is not None]
    if max(given, default=today) > today:
        raise ConfigError(
            f"{max(given)} is in the future: today is {today} in the project's time zone ({calendar.key})",
            hint="ask for days up to today",
        )
    if first < FIRST_DAY:
        raise ConfigError(f"Mixpanel has no days before {FIRST_DAY}", hint="begin with a later one")
    if first > last:
        hint = "swap the dates" if len(given) == 2 else f"give both days: the first one loaded is {first_loaded}"
        raise ConfigError(f"the range ends ({last}) before it begins ({first})", hint=hint)
    return Window(first, last)


class _Loaded:
    """What the database holds of some days of reports, and of the export days that these lie across."""

    def __init__(self, project: Project, span: Window, events: Sequence[str], now: datetime) -> None:
        self.project = project
        self.span = span
        self.events = events
        self.counts: Counter[tuple[date, str]] = Counter()
        """Rows by day of reports and event."""
        self.names: set[str] = set(events)
        """The events asked for; where none are, those of all loaded rows, whatever their day."""
        self._now = now
        self._rows: list[tuple[Any, ...]] = []
        """Of LOADED_DAYS_SQL."""
        self._recorded: dict[date, dict[str | None, int]] = defaultdict(dict)
        """The rows that the load of an export day recorded, by label."""
        self._unfinished: set[date] = set()
        self._there: dict[date, Counter[str]] = defaultdict(Counter)
        """Rows by export day and event."""
        self._days_of_event: dict[str | None, dict[date, LoadedDay]] = {}
        self._why_not: dict[tuple[date, str | None], list[str]] = {}

    def read(self, connection: duckdb.DuckDBPyConnection) -> None:
        exported = self.export_days
        self._rows = _rows(connection, f"{LOADED_DAYS_SQL} AND day {_between(exported)}")
        for day, label, _, _, count, _ in self._rows:
            self._recorded[day][label] = count
        if not self.names:
            self.names = {name for (name,) in _rows(connection, "SELECT DISTINCT event_name FROM events")}
        self._unfinished = {day for (day,) in _rows(connection, _UNFINISHED_SQL)}
        chosen = _chosen(self.events)
        self.counts.update(
            {
                (day, name): count
                for day, name, count in _rows(
                    connection,
                    f"SELECT {self.report_day} AS day, event_name, count(*) FROM events"
                    f" WHERE {self.happened} AND {chosen} GROUP BY ALL",
                )
            }
        )
        for day, name, count in _rows(
            connection,
            f"SELECT event_date, event_name, count(*) FROM events WHERE event_date {_between(exported)} GROUP BY ALL",
        ):
            self._there[day][name] = count

    # --- days of reports, and of exports

    @property
    def report_day(self) -> str:
        """SQL for the day of reports that a row of `events` belongs to."""
        return f"CAST(timezone({literal(self.project.report_calendar.key)}, event_time) AS DATE)"

    @property
    def happened(self) -> str:
        """SQL that is true of the rows of the days of reports."""
        begin, end = (_midnight(day, self.project) for day in (self.span.first, self.span.last + ONE_DAY))
        return f"event_time >= TIMESTAMPTZ '{begin.isoformat()}' AND event_time < TIMESTAMPTZ '{end.isoformat()}'"

    @property
    def export_days(self) -> Window:
        return Window(self.across(self.span.first).first, self.across(self.span.last).last)

    def across(self, day: date) -> Window:
        """The export days that a day of reports lies across."""
        begin, end = _midnight(day, self.project), _midnight(day + ONE_DAY, self.project)
        calendar = self.project.calendar
        last = end - timedelta(microseconds=1)
        return Window(begin.astimezone(calendar).date(), last.astimezone(calendar).date())

    # --- what is loaded of them

    @cached_property
    def parts(self) -> dict[date, dict[str, str | None]]:
        """By export day, the labels of what was loaded of it by itself, with the event; None for an expression."""
        parts: dict[date, dict[str, str | None]] = defaultdict(dict)
        for day, label, *_ in self._rows:
            if label is not None:
                parts[day][label] = event_of(label)
        return parts

    @cached_property
    def named(self) -> set[str]:
        """The events that were loaded by themselves."""
        return {name for of_day in self.parts.values() for name in of_day.values() if name is not None}

    def days_of(self, event: str | None) -> dict[date, LoadedDay]:
        """The export days that hold an event, or every one for None."""
        event = event if event in self.named else None
        if event not in self._days_of_event:
            label = None if event is None else EventFilter((event,)).labels[0]
            self._days_of_event[event] = {day.day: day for day in loaded_days(self._rows, [label])}
        return self._days_of_event[event]

    def why_not(self, day: date, event: str | None) -> list[str]:
        """Why the counts of a day of reports cannot be compared; nothing where they can."""
        key = day, event if event in self.named else None
        if key not in self._why_not:
            self._why_not[key] = self._reasons(*key)
        return self._why_not[key]

    def _reasons(self, day: date, event: str | None) -> list[str]:
        held, reasons = self.days_of(event), []
        for exported in self.across(day).days:
            known = held.get(exported)
            if known is not None and known.complete:
                continue
            if not self._is_over(exported):
                reasons.append(f"{exported} is not over yet in the calendar of exports")
            elif known is not None:
                reasons.append(f"{exported} was loaded before it was over")
            elif self.parts.get(exported):
                reasons.append(f"only a part of {exported} is loaded")
            else:
                reasons.append(f"{exported} is not loaded")
        return reasons

    def why_nothing(self, day: date) -> list[str]:
        """As `why_not` for all that was asked for at once, where that is so."""
        events: Sequence[str | None] = self.events or (None, *self.named)
        reasons = [self.why_not(day, event) for event in events]
        return [reason for one in reasons for reason in one] if all(reasons) else []

    def is_settled(self, day: date, event: str) -> bool:
        held = self.days_of(event)
        lookback_days, calendar = self.project.lookback_days, self.project.calendar
        return all(held[one].is_settled(lookback_days, calendar) for one in self.across(day).days)

    def problem(self, day: date) -> tuple[Verdict, str] | None:
        """What is wrong with an export day, whatever Mixpanel counts."""
        if not self._is_over(day):
            return None
        known = [self.days_of(event).get(day) for event in self.events or (None,)]
        if None in known and (self.events or not self.parts.get(day)):
            reason = f"the export day {day} is not loaded"
            if day in self._unfinished:
                reason += ": its load package never became complete"
            rows = self._there[day].total()
            return "missing", f"{reason}, though {_rows_are(rows)} there" if rows and not self.events else reason
        if any(one is not None and not one.complete for one in known):
            return "missing", f"the export day {day} was loaded before it was over, and not since"
        return self._recorded_otherwise(day)

    def _recorded_otherwise(self, day: date) -> tuple[Verdict, str] | None:
        wrong = [
            f"{rows:,} rows{f' of {name}' if name else ''}, and {there:,} are there"
            for name, rows, there in recorded_otherwise(self._recorded[day], self._there[day])
            if not self.events or name in self.events
        ]
        return ("different", f"the load of the export day {day} recorded {'; '.join(wrong)}") if wrong else None

    def _is_over(self, day: date) -> bool:
        return self._now >= settles_at(day, 0, self.project.calendar)

    # --- what is to be loaded again

    def to_repair(self, wrong: Iterable[DayCount]) -> dict[tuple[str, ...], set[date]]:
        """The export days to ask for again, by the events to ask for; none for whole days."""
        whole: set[date] = set()
        by_name: dict[date, set[str]] = defaultdict(set)
        for count in wrong:
            if count.event is None:
                names = {*self.events} or {name for name in self.parts.get(count.day, {}).values() if name is not None}
                days = [count.day]
            else:
                names, days = {count.event}, self.across(count.day).days
            for day in days:
                if None in self._recorded[day] or not names or not (self.events or self.parts.get(day)):
                    whole.add(day)
                else:
                    by_name[day] |= names
        parts: dict[tuple[str, ...], set[date]] = defaultdict(set)
        for day in whole:
            parts[()].add(day)
        for day in by_name.keys() - whole:
            parts[tuple(sorted(by_name[day]))].add(day)
        return parts


def _ask_mixpanel(project: Project, loaded: _Loaded) -> tuple[Counter[tuple[date, str]], set[str]]:
    """Mixpanel's counts by day and event, and the events that it lists (those of the last 31 days)."""
    counts: Counter[tuple[date, str]] = Counter()
    with project.client() as client:
        listed = set() if loaded.events else set(Discovery(client, wait=project.wait).events())
        names = {*loaded.names, *listed, *loaded.named} if not loaded.events else loaded.names
        reports = Reports(client, wait=project.wait)
        for some in _in_urls(name for name in sorted(names) if name.strip()):
            for row in reports.event_counts(some, loaded.span.first, loaded.span.last).rows:
                day, value = moment_of(row["date"])[0], row["value"]
                if day is None or not isinstance(value, int):
                    raise ServerError("/api/query/events answered with no counts by day", hint="try again later")
                if value and day in loaded.span:
                    counts[day, row["event"]] += value
    return counts, listed


def _in_urls(names: Iterable[str]) -> Iterator[list[str]]:
    """As many `names` together as one address may hold."""
    some: list[str] = []
    length = 0
    for name in names:
        size = len(quote_plus(f"{compact(name)},"))
        if some and length + size > settings.EVENT_NAMES_CHARS:
            yield some
            some, length = [], 0
        some.append(name)
        length += size
    if some:
        yield some


@dataclass(frozen=True)
class _Cause:
    """A known reason for a difference: of so many rows at most, None being any number."""

    rows: int | None
    text: str


class _Causes:
    """The known reasons for differences, as far as the rows tell: they are read for the days and events that differ."""

    def __init__(self, loaded: _Loaded, mixpanel: Counter[tuple[date, str]], listed: set[str]) -> None:
        self._loaded = loaded
        self._mixpanel = mixpanel
        self._listed = listed
        self._counted = {name for _, name in mixpanel}
        self._more: dict[tuple[date, str], tuple[int, ...]] = {}
        self._hidden: Counter[tuple[date, str]] = Counter()
        self._untimed: Counter[tuple[date, str]] = Counter()
        self._unreadable: Counter[date] = Counter()

    def read(self, connection: duckdb.DuckDBPyConnection, tables: Set[str], days: set[date], names: set[str]) -> None:
        loaded = self._loaded
        day = loaded.report_day
        of_days = f"{loaded.happened} AND {day} IN ({', '.join(literal(str(one)) for one in sorted(days))})"
        for one, name, *more in _rows(
            connection,
            f"""
            SELECT {day} AS day, event_name,
                count(insert_id) - count(DISTINCT row(distinct_id, event_time, insert_id))
                    FILTER (WHERE insert_id IS NOT NULL),
                count(DISTINCT row(distinct_id, event_time, insert_id)) FILTER (WHERE insert_id IS NOT NULL)
                    - count(DISTINCT insert_id),
                count(*) FILTER (WHERE insert_id IS NULL)
                    - count(DISTINCT row(distinct_id, event_time, CAST(properties AS VARCHAR)))
                    FILTER (WHERE insert_id IS NULL),
                count(*) FILTER (WHERE contains(CAST(properties AS VARCHAR), '"$mp_is_forwarded"'))
            FROM events WHERE {of_days} AND {_chosen(sorted(names))} GROUP BY ALL
            """,
        ):
            self._more[one, name] = tuple(more)
        for one, name, count in _rows(
            connection,
            f"SELECT {day} AS day, properties->>'mp_original_event_name' AS name, count(*) FROM events"
            f" WHERE {of_days} AND event_name = {literal(_HOTSHARD)} GROUP BY ALL",
        ):
            self._hidden[one, name] += count
        exported = _between(loaded.export_days)
        for one, name, count in _rows(
            connection,
            "SELECT event_date, event_name, count(*) FROM events"
            f" WHERE event_time IS NULL AND event_date {exported} GROUP BY ALL",
        ):
            self._untimed[one, name] += count
        if "rejected_lines" in tables:
            for one, count in _rows(
                connection,
                "SELECT from_date, count(*) FROM rejected_lines"
                f" WHERE NOT loaded AND from_date {exported} GROUP BY ALL",
            ):
                self._unreadable[one] += count

    def of(self, pair: tuple[date, str]) -> tuple[Verdict, str | None]:
        difference = self._loaded.counts[pair] - self._mixpanel[pair]
        if not difference:
            return "equal", None
        causes = [*self._either_way(pair), *(self._fewer_there(pair) if difference > 0 else self._fewer_here(pair))]
        causes = [cause for cause in causes if cause.rows != 0]
        bounds = [cause.rows for cause in causes]
        text = "; ".join(cause.text for cause in causes)
        if None in bounds or sum(bound or 0 for bound in bounds) >= abs(difference):
            return "explained", text
        reason = f"{abs(difference):,} {'more' if difference > 0 else 'fewer'} here than Mixpanel counts"
        verdict: Verdict = "different" if self._loaded.counts[pair] else "missing"
        return verdict, f"{reason}; of these, some may be because {text}" if causes else reason

    def _either_way(self, pair: tuple[date, str]) -> Iterator[_Cause]:
        if not self._loaded.is_settled(*pair):
            yield _Cause(None, "the day is not settled: it may have changed since it was loaded")
        if pair[1] in settings.BOOKKEEPING_EVENTS:
            yield _Cause(None, "it is an event of Mixpanel's own, which its reports may not count")

    def _fewer_there(self, pair: tuple[date, str]) -> Iterator[_Cause]:
        repeated, merged, copies, forwarded = self._more[pair]
        yield _Cause(repeated, f"{_rows_are(repeated)} the same event, which came with another export day")
        yield _Cause(merged, f"{_rows_are(merged)} of a $insert_id that others have, and Mixpanel may have merged them")
        yield _Cause(
            copies, f"{_rows_are(copies)} without $insert_id and like another one, which are never merged here"
        )
        yield _Cause(forwarded, f"{_rows_are(forwarded)} forwarded to the EU, which reports may not count")
        name = pair[1]
        known = {*self._counted, *self._listed, *settings.BOOKKEEPING_EVENTS}
        if not self._loaded.events and name not in known:
            yield _Cause(None, "Mixpanel counts and lists no such event: it may be hidden or deleted there")

    def _fewer_here(self, pair: tuple[date, str]) -> Iterator[_Cause]:
        day, name = pair
        exported = self._loaded.across(day).days
        hidden = self._hidden[pair]
        yield _Cause(hidden, f"{_rows_are(hidden)} here as {_HOTSHARD}")
        untimed = sum(self._untimed[one, name] for one in exported)
        yield _Cause(untimed, f"{_rows_are(untimed)} without a usable time, and so on no day")
        unreadable = sum(self._unreadable[one] for one in exported)
        yield _Cause(unreadable, f"{unreadable:,} of the lines could not be read: see rejected_lines")


def _export_again(
    project: Project, into: Path | Target, parts: dict[tuple[str, ...], set[date]], progress: LoadProgress | None
) -> list[str]:
    """Their warnings. What was loaded stays if a later one fails."""
    from mixpanel_source.load import load

    warnings: list[str] = []
    for events, days in sorted(parts.items()):
        for window in windows_over(days, _ALL_DAYS):
            asked = DateRange(window.first, window.last, refresh=True)
            result = load(project, into, ("events",), asked=asked, filter_=EventFilter(events), progress=progress)
            warnings += result.warnings
            if result.error is not None:
                raise result.error
    return warnings


def _midnight(day: date, project: Project) -> datetime:
    """When a day of reports begins, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=project.report_calendar).astimezone(UTC)


def _chosen(names: Sequence[str]) -> str:
    return f"event_name IN ({', '.join(map(literal, names))})" if names else "true"


def _between(days: Window) -> str:
    return f"BETWEEN DATE '{days.first}' AND DATE '{days.last}'"


def _rows_are(rows: int) -> str:
    return f"{rows:,} {'row is' if rows == 1 else 'rows are'}"


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql).fetchall()
