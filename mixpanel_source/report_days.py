"""Which days of which report are loaded, as `report_days` says, and which are asked for next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

from mixpanel_source import settings
from mixpanel_source.event_days import day_of, moment_of
from mixpanel_source.project import Project
from mixpanel_source.report_questions import RETENTION, Question
from mixpanel_source.windows import (
    FIRST_DAY,
    ONE_DAY,
    DateRange,
    LoadedDay,
    Window,
    days_to_load,
    settles_at,
    windows_over,
)

REPORT_DAYS_SQL = """
SELECT report_days.table_name, report_days.report, report_days.question, report_days.day, report_days.asked_at,
    report_days.complete, _dlt_loads.status
FROM report_days LEFT JOIN _dlt_loads ON _dlt_loads.load_id = report_days._dlt_load_id
"""

_ALL_DAYS = date.max.toordinal()


@dataclass(frozen=True)
class ReportDay:
    """A day of one report: when it was asked for last, and whether it was over then and its load package complete."""

    report: str
    question: str
    day: date
    asked_at: datetime
    complete: bool


def report_days(rows: Iterable[Sequence[Any]], table: str) -> list[ReportDay]:
    """The days of `table` in rows of REPORT_DAYS_SQL."""
    return [
        ReportDay(report, question, day_of(day), moment_of(asked_at), bool(complete) and status == 0)
        for table_name, report, question, day, asked_at, complete, status in rows
        if table_name == table
    ]


@dataclass(frozen=True)
class ReportPlan:
    """What is asked for one question, `windows` of days; None for a report that has no days of its own.

    `text` is what `report_days` has for the question. `replaces_all`: the rows there are of all other days go, too.
    """

    question: Question
    text: str
    windows: tuple[Window | None, ...]
    hull: Window | None = None
    """From the first day to the last, of those that are loaded and those that are asked for."""
    replaces_all: bool = True

    def as_one_range(self) -> ReportPlan:
        """For an answer whose dates are not those that were expected: nobody knows which of its buckets are whole.

        It has a text of its own, so that the next load asks for all days again.
        """
        return replace(self, text=f"{self.text} as one range", windows=(self.hull,), replaces_all=True)

    def days(self) -> list[date]:
        return [day for window in self.windows if window is not None for day in window.days]


def plan_of(
    question: Question, asked: DateRange, known: Iterable[ReportDay], project: Project, now: datetime
) -> ReportPlan | None:
    """What is to be asked now; None where nothing is. `known` are the days of the table.

    By the rules of `days_to_load`, in the calendar of reports, and with the time that a day's numbers still change
    added to its lookback. The days of a question that was another one when they were loaded are to be loaded again.
    Raises ConfigError as `days_to_load`.
    """
    text = question.text(project.credentials.workspace_id)
    if not question.has_days:
        return ReportPlan(question, text, (None,))
    own = [day for day in known if day.report == question.report]
    same = all(day.question == text for day in own)
    calendar = project.report_calendar
    wanted = days_to_load(
        _by_reports(asked, project, now),
        [LoadedDay(day.day, day.asked_at, day.complete and same) for day in own],
        start_date=project.start_date,
        first_load_days=settings.FIRST_LOAD_DAYS,
        lookback_days=project.lookback_days + question.open_days,
        now=now,
        calendar=calendar,
    )
    if not wanted:
        return None
    last = max(wanted[-1], now.astimezone(calendar).date() - ONE_DAY)
    days = {day for one in wanted for day in bucket_of(one, question.unit).days if FIRST_DAY <= day <= last}
    every = days | {day.day for day in own}
    hull = Window(min(every), max(every))
    if question.is_one_range:
        rest = -len(hull) % question.interval_days
        hull = Window(hull.first, max(hull.last, min(hull.last + timedelta(days=rest), last)))
        return ReportPlan(question, text, (hull,), hull)
    return ReportPlan(question, text, tuple(windows_over(days, _ALL_DAYS)), hull, replaces_all=not same)


def bucket_of(day: date, unit: str) -> Window:
    """The week or month that `day` is in; else the day.

    Weeks begin on Monday: they do in the examples of Mixpanel's docs, which do not say so.
    """
    if unit == "week":
        monday = day - timedelta(days=day.weekday())
        return Window(monday, monday + timedelta(days=6))
    if unit == "month":
        first = day.replace(day=1)
        return Window(first, (first + timedelta(days=31)).replace(day=1) - ONE_DAY)
    return Window.of(day)


def are_expected(days: Iterable[date | None], window: Window, unit: str) -> bool:
    """Whether `days`, those of an answer, are first days of buckets of `window`. None is one that is not known."""
    return all(day is not None and day in window and bucket_of(day, unit).first == day for day in days)


def is_over(day: date, asked_at: datetime, project: Project) -> bool:
    return asked_at >= settles_at(day, 0, project.report_calendar)


def asked_window(plan: ReportPlan, window: Window, project: Project, now: datetime) -> Window:
    """`window` as it is sent. Whether users who come back after `to_date` count is said of funnels only."""
    if plan.question.table != RETENTION:
        return window
    open_until = window.last + timedelta(days=plan.question.open_days)
    return Window(window.first, max(window.last, min(open_until, now.astimezone(project.report_calendar).date())))


def is_early(asked: DateRange, project: Project, now: datetime) -> bool:
    """Whether the first day asked for is over in the calendar of exports, but not yet in that of reports."""
    ahead, today = _todays(project, now)
    return asked.to_date is None and asked.from_date == today < ahead


def _by_reports(asked: DateRange, project: Project, now: datetime) -> DateRange:
    """Where it is still yesterday in the calendar of reports, the exports' today is that day."""
    ahead, today = _todays(project, now)
    if ahead <= today:
        return asked
    from_date, to_date = (today if day == ahead else day for day in (asked.from_date, asked.to_date))
    return replace(asked, from_date=from_date, to_date=to_date)


def _todays(project: Project, now: datetime) -> tuple[date, date]:
    """The present day of the calendar of exports, and of that of reports."""
    return now.astimezone(project.calendar).date(), now.astimezone(project.report_calendar).date()
