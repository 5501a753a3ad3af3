"""The parameters of a request, read and checked. One that is missing, of another type or out of bounds is a 400.

An empty text counts as none; an empty number, truth or choice is one of another type. The texts of most refusals are
not known; those in quotes in the docs and in reports of clients are as quoted there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .expressions import ExpressionError, Row, parse, parse_value
from .reply import ApiError

if TYPE_CHECKING:
    from .app import Sandbox

T = TypeVar("T")

Params = Mapping[str, str]
Test = Callable[[Row], bool]
Value = Callable[[Row], Any]

_FIRST_YEAR = 2000
_TRUTHS = {"true": True, "false": False}
"""As a specification has them: not True, which is what Python makes of it, nor 1."""


def text(params: Params, name: str) -> str:
    """A parameter that has to be there."""
    if not params.get(name):
        raise ApiError(400, f"{name} is a required parameter")
    return params[name]


def day(params: Params, name: str) -> date:
    """A required date, as yyyy-mm-dd."""
    given = text(params, name)
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", given):
        raise ApiError(400, f"Error in {name}: invalid date, expected yyyy-mm-dd")
    if int(given[:4]) < _FIRST_YEAR:
        raise ApiError(400, f"Error in {name}: invalid date, bad year")
    try:
        return date.fromisoformat(given)
    except ValueError as error:
        raise ApiError(400, f"Error in {name}: invalid date, {error}") from None


def days(sandbox: Sandbox, params: Params, *, export: bool = False) -> tuple[date, date]:
    """from_date and to_date, both required, by the calendar of reports or of raw export.

    A to_date after today is refused, by an export in plain text with a blank before it. What reports do with one is not
    known.
    """
    from_day, to_day = day(params, "from_date"), day(params, "to_date")
    today = sandbox.local_time.today(sandbox.current_time()) if export else project_today(sandbox)
    if to_day > today:
        raise ApiError(400, f"{' ' if export else ''}to_date cannot be later than today", plain=export)
    if from_day > to_day:
        raise ApiError(400, "from_date cannot be later than to_date")
    check_history(sandbox, from_day, today)
    return from_day, to_day


def check_history(sandbox: Sandbox, from_day: date, today: date) -> None:
    """The plan's limit. Clients have met it on events/names, annotations and stream/query."""
    if sandbox.history_days is not None and from_day < today - timedelta(days=sandbox.history_days):
        raise ApiError(403, f"Date range exceeds {sandbox.history_days} days into the past")


def project_today(sandbox: Sandbox) -> date:
    """Today in the project's time zone: what reports go by, in old and new projects alike."""
    return sandbox.current_time().astimezone(sandbox.local_time.zone).date()


def truth(params: Params, name: str, default: bool = False) -> bool:
    if name not in params:
        return default
    if params[name] not in _TRUTHS:
        raise ApiError(400, f"Error in {name}: not a boolean")
    return _TRUTHS[params[name]]


def whole(params: Params, name: str, default: T, least: int = 1, most: int | None = None) -> int | T:
    """A whole number; with a default of None, None where it is not given."""
    given = params.get(name)
    if given is None:
        return default
    if not re.fullmatch("[0-9]{1,18}", given) or int(given) < least or (most is not None and int(given) > most):
        raise ApiError(400, f"Error in {name}: not a whole number from {least}{'' if most is None else f' to {most}'}")
    return int(given)


def number(params: Params, name: str) -> int:
    """A required whole number: the id of something."""
    text(params, name)
    return whole(params, name, 0)


def choice(params: Params, name: str, choices: Sequence[str], default: str | None = None) -> str:
    """One of an enum's values; required without a default."""
    given = text(params, name) if default is None else params.get(name, default)
    if given not in choices:
        raise ApiError(400, f"Error in {name}: {given!r} is none of {', '.join(choices)}")
    return given


def names(params: Params, name: str) -> list[str] | None:
    """A JSON array of strings; None where it is not given."""
    if not params.get(name):
        return None
    given = json_value(params[name], name)
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise ApiError(400, f"Invalid JSON Format: {name}")
    return given


def json_value(given: str, name: str) -> Any:
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise ApiError(400, f"Invalid JSON Format: {name}") from None


def where(params: Params, name: str = "where") -> Test | None:
    """An expression as a test of rows; None without one."""
    return _expression(params, name, parse)


def value(params: Params, name: str = "on") -> Value | None:
    """An expression as a value of rows; None without one."""
    return _expression(params, name, parse_value)


def _expression(params: Params, name: str, parsed: Callable[[str], Callable[[Row], T]]) -> Callable[[Row], T] | None:
    given = params.get(name)
    if not given:
        return None
    try:
        expression = parsed(given)
    except (ExpressionError, RecursionError) as error:
        raise ApiError(400, f"Invalid expression in {name}: {error}") from None

    def apply(row: Row) -> T:
        try:
            return expression(row)
        except ExpressionError as error:
            raise ApiError(400, f"Invalid expression in {name}: {error}") from None

    return apply
