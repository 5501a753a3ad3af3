"""What is asked for the tables of reports: each question has a name, and the parameters of one report of `Reports`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from math import ceil
from types import NoneType
from typing import Any, Final, get_args, get_type_hints

from mixpanel_source.client import compact
from mixpanel_source.errors import ConfigError
from mixpanel_source.reports import MAX_LENGTH_S, Report, Reports, UnaskedReports
from mixpanel_source.windows import Window

RETENTION: Final = "retention_cohorts"
FREQUENCY: Final = "frequency"
"""As `retention_type`: the report that Mixpanel calls frequency, or addiction."""

INSIGHTS: Final = "insights"
"""The table of reports that have no days of their own: they are as they were saved."""

_METHODS: Final[dict[str, Callable[..., Report]]] = {
    "segmentation": Reports.segmentation,
    "event_counts": Reports.event_counts,
    "funnel_steps": Reports.funnel,
    RETENTION: Reports.retention,
    INSIGHTS: Reports.insights,
}
_TYPE: Final = "retention_type"
_FROM_THE_LOAD: Final = {"from_date", "to_date"}
_NOT_FOR_TABLES: Final = {
    "event_counts": {"interval"},  # counts back from now, in place of dates
    "funnel_steps": {"funnel_name"},  # no parameter of Mixpanel's
}
_KINDS: Final[dict[Any, tuple[str, Callable[[Any], bool]]]] = {
    str: ("text", lambda value: isinstance(value, str)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    Sequence[str]: (
        "a list of texts",
        lambda value: isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value),
    ),
}
_DAY: Final = (date(2000, 1, 1), date(2000, 1, 1))
_UNIT_DAYS: Final = {"day": 1, "week": 7, "month": 31}
"""At most."""
_LENGTH_UNITS_A_DAY: Final = {"day": 1, "hour": 24, "minute": 1440, "second": 86_400}
NEVER_DAYS: Final = 36_500


@dataclass(frozen=True)
class Question:
    """One report of a table. `params` are arguments of its method in `Reports`, checked but for the dates.

    `report` is its name, which its rows are known by: given, as one made from the parameters would change with them,
    and the rows of before would stay under the old one.
    """

    table: str
    report: str
    params: Mapping[str, Any] = field(hash=False)

    @property
    def has_days(self) -> bool:
        return self.table != INSIGHTS

    @property
    def _retention_type(self) -> str | None:
        return self.params.get(_TYPE, "birth") if self.table == RETENTION else None

    @property
    def unit(self) -> str:
        """What a date of the answer stands for, where it is not some days (`interval_days`)."""
        unit: str = self.params.get("unit", "day")
        return unit

    @property
    def interval_days(self) -> int:
        interval: int = self.params.get("interval", 1)
        return interval

    @property
    def is_one_range(self) -> bool:
        """Whether all its days have to come from one answer, as what is said of a day depends on the first day asked.

        Buckets of several days are counted from somewhere, and the users of a birth report are born once: whether
        in the range that is asked for, or ever, Mixpanel's documentation does not say.
        """
        return self._retention_type == "birth" or self.interval_days > 1

    @property
    def open_days(self) -> int:
        """How many days what is said of a day still changes after its end, late events aside."""
        if self.table == "funnel_steps":
            if "length" not in self.params:  # as saved, which no answer tells
                return _days(MAX_LENGTH_S, "second")
            return _days(self.params["length"], self.params.get("length_unit", "day"))
        if self._retention_type in (None, FREQUENCY):
            return 0
        if self.params.get("unbounded_retention"):
            return NEVER_DAYS
        # The intervals are numbered from 0, which is one more. Mixpanel docs: Query Retention Report.
        intervals: int = self.params.get("interval_count", 1) + 1
        return min(intervals * self.interval_days * _UNIT_DAYS[self.unit], NEVER_DAYS)

    def text(self, workspace_id: str | None) -> str:
        """The question as JSON: two with the same text have the same answer. A workspace shows a part of the data."""
        params = dict(self.params) if workspace_id is None else {**self.params, "workspace_id": workspace_id}
        return compact(dict(sorted(params.items())), ascii_only=False)

    def ask(self, reports: Reports, window: Window | None) -> Report:
        """The answer for the days of `window`, None where `has_days` is not so. Raises as the method of `Reports`."""
        days = {} if window is None else {"from_date": window.first, "to_date": window.last}
        method, params = _call(self.table, self.params)
        return method(reports, **params, **days)

    def columns(self) -> dict[str, Any]:
        """What each row of the answer says of the question, where its table has such a column."""
        params = self.params
        adds_up = params.get("math") in ("sum", "average")
        return {
            "report": self.report,
            "unit": self.unit if self.interval_days == 1 else f"{self.interval_days} days",
            "segment_property": params.get("on"),
            "type": None if adds_up else params.get("type", "general"),
            _TYPE: self._retention_type,
            **{name: params.get(name) for name in ("event", "math", "funnel_id", "born_event", "bookmark_id")},
        }


def questions_of(table: str, given: Sequence[Mapping[str, Any] | Question]) -> tuple[Question, ...]:
    """The questions of a table, from a list of objects: `report` and parameters. Raises ConfigError for a wrong one."""
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise ConfigError(f"the reports of {table} are a list", hint=example(table))
    questions = [
        one if isinstance(one, Question) else _question(table, one, number) for number, one in enumerate(given, 1)
    ]
    names = [question.report for question in questions]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{table} has two reports named {name!r}", hint="give each a name of its own")
    return tuple(questions)


def required_questions(questions: Sequence[Question], table: str) -> list[Question]:
    """Those of `table`. Raises ConfigError where there are none."""
    found = [question for question in questions if question.table == table]
    if not found:
        raise ConfigError(f"{table} needs to know what to ask for: no report is given", hint=example(table))
    return found


def example(table: str) -> str:
    """How a question is given."""
    params = {
        "segmentation": "event = ...",
        "event_counts": "events = [...]",
        "funnel_steps": "funnel_id = ...",
        RETENTION: "born_event = ..., event = ...",
        INSIGHTS: "bookmark_id = ...",
    }
    return (
        f"give the account a [[accounts.NAME.{table}]] with report = ... (its name), {params[table]};"
        f" or reports = [...] in [sources.mixpanel.{table}] of dlt's config"
    )


def _question(table: str, given: Mapping[str, Any], number: int) -> Question:
    if not isinstance(given, Mapping):
        raise ConfigError(f"report {number} of {table} is no table of parameters", hint=example(table))
    params = {name: value for name, value in given.items() if value is not None}
    report = params.pop("report", None)
    if not isinstance(report, str) or not report.strip():
        raise ConfigError(f"report {number} of {table} has no name", hint='add one, such as report = "sign-ups"')
    place = f"report {report!r} of {table}"
    method, arguments = _call(table, params)
    parameters = inspect.signature(method).parameters
    hints = get_type_hints(method)
    known = [name for name in parameters if name not in {"self", *_FROM_THE_LOAD, *_NOT_FOR_TABLES.get(table, ())}]
    for name, value in arguments.items():
        if name in _FROM_THE_LOAD:
            raise ConfigError(f"{place}: {name} is not its own", hint="the days are those of the load: --from and --to")
        if name not in known:
            raise ConfigError(f"{place}: {name} is not a known parameter", hint=f"known: report, {', '.join(known)}")
        kind, fits = _KINDS[_without_none(hints[name])]
        if not fits(value):
            raise ConfigError(f"{place}: {name} is {kind}, not {_shown(value)}")
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError(f"{place}: {name} is missing")
    question = Question(table, report, params)
    try:
        question.ask(UnaskedReports(), Window(*_DAY) if question.has_days else None)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}", hint=error.hint) from None
    return question


def _call(table: str, params: Mapping[str, Any]) -> tuple[Callable[..., Report], dict[str, Any]]:
    """The method that is asked, and its arguments but for the dates."""
    if table == RETENTION and params.get(_TYPE) == FREQUENCY:
        return Reports.frequency, {name: value for name, value in params.items() if name != _TYPE}
    return _METHODS[table], dict(params)


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    return kinds[0]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]} ..."


def _days(length: int, unit: str) -> int:
    return ceil(length / _LENGTH_UNITS_A_DAY[unit])
