"""The tables of reports, question by question, with `report_days` beside them in the same load package."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import dlt
import pyarrow as pa
from dlt.extract import DltResource

from mixpanel_source.client import MixpanelClient
from mixpanel_source.destinations import EXACT_JSON
from mixpanel_source.engage import FAILS_ALONE
from mixpanel_source.errors import MixpanelDataError, PlanError, ServerError
from mixpanel_source.event_days import days_scope
from mixpanel_source.parsing import report_tables as parsing
from mixpanel_source.project import Project
from mixpanel_source.report_days import (
    ReportDay,
    ReportPlan,
    are_expected,
    asked_window,
    is_early,
    is_over,
    plan_of,
)
from mixpanel_source.report_questions import INSIGHTS, Question, required_questions
from mixpanel_source.reports import InsightsResult, Report, Reports
from mixpanel_source.resources.load_package import (
    InParts,
    is_held_up,
    literals,
    replace_in_one_transaction,
    replacing,
    scoped,
    with_load_id,
)
from mixpanel_source.settings import PACKAGE_S
from mixpanel_source.windows import DateRange, Window

logger = logging.getLogger(__name__)

REPORT_DAYS = "report_days"
REPORT_DAYS_SCHEMA = pa.schema(
    [
        ("table_name", pa.string()),
        ("report", pa.string()),
        ("question", pa.string()),
        ("day", pa.date32()),
        ("asked_at", pa.timestamp("us", "UTC")),
        ("complete", pa.bool_()),
    ]
)

_CAME_AGAIN = (
    "EXISTS (SELECT 1 FROM {staging_table} AS came WHERE came.table_name = {table}.table_name"
    " AND came.report = {table}.report AND (came.day = {table}.day OR came.question <> {table}.question))"
)
"""SQL that is true of the days to be replaced, and of all days of another question. It is the same for every table of
reports: they may be in one load package, for which dlt keeps one scope."""


@dataclass(frozen=True)
class _Answer:
    """The rows of one question, the SQL that is true of those they replace, and the days they are of."""

    rows: pa.Table
    scope: str
    days: pa.Table


class ReportLoads(InParts):
    """What is left to be asked for the reports of one table, package by package. `known` are the days that are loaded.

    Raises ConfigError where no report is given or the dates cannot be.
    """

    def __init__(
        self, client: MixpanelClient, project: Project, table: str, asked: DateRange, known: Sequence[ReportDay]
    ) -> None:
        super().__init__()
        self.table = table
        self.days: set[date] = set()
        """Those that were asked for."""
        self._reports = Reports(client, wait=project.wait, exact=True)
        self._client = client
        self._project = project
        now = datetime.now(UTC)
        questions = required_questions(project.questions, table)
        self._too_early = asked.from_date if table != INSIGHTS and is_early(asked, project, now) else None
        plans = [] if self._too_early else [plan_of(one, asked, known, project, now) for one in questions]
        self._left = deque(plan for plan in plans if plan is not None)

    @property
    def is_done(self) -> bool:
        return self._stopped_by is not None or not self._left

    def warnings(self) -> list[str]:
        early = f"{self._too_early} is not over yet in the project's time zone: {self.table} has no reports of it"
        return [early] * (self._too_early is not None) + [
            f"the report {name!r} of {self.table} is as before: {error.message}" for name, error in self._failed.items()
        ]

    def answers(self, limit_s: float | None) -> Iterator[_Answer]:
        """The next answers, each whole.

        With `limit_s` it ends after so long, before a long wait for the request limit, and where something fails; an
        error is kept for `raise_failed` then.
        """
        started = time.monotonic()
        is_first = True
        while self._left:
            if limit_s is not None and not is_first:
                requests = len(self._left[0].windows)
                if is_held_up(self._client, started + limit_s, requests):
                    return
            plan = self._left.popleft()
            try:
                answer = self._answer(plan)
            except MixpanelDataError as error:
                if limit_s is None:
                    raise
                if isinstance(error, FAILS_ALONE) or (isinstance(error, PlanError) and error.reaches_too_far_back):
                    self._failed[plan.question.report] = error
                    continue
                self._stopped_by = error
                return
            is_first = False
            yield answer

    def _answer(self, plan: ReportPlan) -> _Answer:
        asked_at = datetime.now(UTC)
        question = plan.question
        tables, as_expected = self._ask(plan, asked_at)
        if not as_expected:
            one_range = plan.as_one_range()
            if one_range.windows != plan.windows:
                tables, _ = self._ask(one_range, asked_at)
            plan = one_range
        days = plan.days()
        self.days.update(days)
        report = f"report = {literals([question.report])}"
        return _Answer(
            pa.concat_tables(tables),
            report if plan.replaces_all else f"{report} AND ({days_scope('day', days)})",
            pa.Table.from_pylist(
                [
                    {
                        "table_name": self.table,
                        "report": question.report,
                        "question": plan.text,
                        "day": day,
                        "asked_at": asked_at,
                        "complete": is_over(day, asked_at, self._project),
                    }
                    for day in days
                ],
                REPORT_DAYS_SCHEMA,
            ),
        )

    def _ask(self, plan: ReportPlan, now: datetime) -> tuple[list[pa.Table], bool]:
        """The rows of each window, and whether they are of the days that were expected."""
        question = plan.question
        tables: list[pa.Table] = []
        as_expected = True
        for window in plan.windows:
            sent = None if window is None else asked_window(plan, window, self._project, now)
            report = question.ask(self._reports, sent)
            rows = report.rows
            if window is not None:
                days = parsing.dated(rows)
                if sent != window:  # only so that users could come back until then: such days are not asked for yet
                    days = {text: day for text, day in days.items() if day is None or day <= window.last}
                    rows = [row for row in rows if row["date"] in days]
                if not question.is_one_range:
                    as_expected = as_expected and are_expected(days.values(), window, question.unit)
            try:
                about = _about(question, report, sent, self._project)
                tables.append(parsing.to_arrow(self.table, rows, about))
            except (ValueError, TypeError, OverflowError) as error:
                raise ServerError(
                    f"the answer for the report {question.report!r} of {self.table} is no such report: {error}",
                    hint="try again later",
                ) from None
        return tables, as_expected


def _about(question: Question, report: Report, sent: Window | None, project: Project) -> dict[str, Any]:
    """What each row says of the question and of the answer as a whole."""
    about = question.columns() | {"question": question.text(project.credentials.workspace_id)}
    if sent is not None:
        return about | {"from_date": sent.first, "to_date": sent.last}
    if isinstance(report, InsightsResult):
        about |= {
            "headers": report.headers,
            "from_date": parsing.moment_of(report.from_date)[0],
            "to_date": parsing.moment_of(report.to_date)[0],
            "computed_at": parsing.computed_at(report.computed_at),
        }
    return about


def report_table(
    open_project: Callable[[], Project],
    table: str,
    asked: DateRange = DateRange(),
    *,
    known: Callable[[str], Sequence[ReportDay]] = lambda table: (),
) -> DltResource:
    """The reports of `table` that the project has questions for, in one load package.

    `open_project` and `known` (the days of a table that the destination holds) are called when the resource is read.
    """

    @dlt.resource(name=table, write_disposition=replacing("1 = 0"))
    def read() -> Iterator[Any]:
        project = open_project()
        with project.client() as client:
            loads = ReportLoads(client, project, table, asked, known(table))
            yield from _items(loads, None)
        for warning in loads.warnings():
            logger.warning(warning)

    return read


def reports_package(loads: ReportLoads, about_to_write: Callable[[], None]) -> DltResource:
    """The next reports of `loads`, as one load package. `about_to_write` is called once it is complete."""

    @dlt.resource(name=loads.table, write_disposition=replacing("1 = 0"))
    def read() -> Iterator[Any]:
        yield from _items(loads, PACKAGE_S, about_to_write)

    return read


def _items(
    loads: ReportLoads, limit_s: float | None, about_to_write: Callable[[], None] = lambda: None
) -> Iterator[Any]:
    replace_in_one_transaction()
    schema = parsing.SCHEMAS[loads.table]
    yield scoped(REPORT_DAYS_SCHEMA, _CAME_AGAIN, REPORT_DAYS)
    yield scoped(schema, "1 = 0", columns=_columns(loads.table))
    scopes: list[str] = []
    for answer in loads.answers(limit_s):
        yield with_load_id(answer.rows)
        yield dlt.mark.with_table_name(with_load_id(answer.days), REPORT_DAYS)
        scopes.append(answer.scope)
    about_to_write()
    yield scoped(schema, " OR ".join(f"({scope})" for scope in scopes) or "1 = 0")


def _columns(table: str) -> Any:
    """Hints for what Arrow cannot say of the table's schema."""
    names = parsing.SCHEMAS[table].names
    json_columns = {name: {**EXACT_JSON} for name in parsing.JSON_COLUMNS if name in names}
    return {**json_columns, "starts_at": {"data_type": "timestamp", "timezone": False}}
