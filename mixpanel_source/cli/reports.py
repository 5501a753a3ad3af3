"""Live reports: `mpload segmentation`, `funnel`, `retention` and others. One request of the 60 an hour each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixpanel_source.cli.completion import DAY, one_of
from mixpanel_source.cli.global_options import GlobalOptions, commands_of
from mixpanel_source.errors import ConfigError

if TYPE_CHECKING:
    from mixpanel_source.reports import Report, Reports

group = typer.Typer(rich_markup_mode=None)
command = commands_of(group)

_FROM = typer.Option("--from", metavar="DAY", help="First day: YYYY-MM-DD, yesterday or today.", autocompletion=DAY)
_TO = typer.Option("--to", metavar="DAY", help="Last day, included.", autocompletion=DAY)
_From = Annotated[str, _FROM]
_To = Annotated[str, _TO]
_MaybeFrom = Annotated[str | None, _FROM]
_MaybeTo = Annotated[str | None, _TO]
_On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="PROPERTY",
        help="Split by a property, or by an expression in Mixpanel's language. A name with more in it than letters,"
        """ digits, blanks, _ and $, or with and, or, in, not as words, has to be given as properties["..."].""",
    ),
]
_Where = Annotated[
    str | None,
    typer.Option(metavar="EXPRESSION", help="Only events that match, in Mixpanel's expression language."),
]
_Type = Annotated[
    str | None,
    typer.Option(
        "--type",
        metavar="TYPE",
        help="general (events), unique (users), average (per user).",
        autocompletion=one_of("general", "unique", "average"),
    ),
]


def _unit(*values: str, what: str = "") -> Any:
    return typer.Option(
        metavar="UNIT", help=f"{what}{', '.join(values[:-1])} or {values[-1]}.", autocompletion=one_of(*values)
    )


_Limit = Annotated[int | None, typer.Option(metavar="N", help="So many segments at most.")]
_Wait = Annotated[bool, typer.Option("--wait", help="Wait for the hourly limit, instead of exiting with 5.")]
_LastUnits = Annotated[int | None, typer.Option(metavar="N", help="The last N units, instead of --from and --to.")]


@command
def segmentation(
    options: GlobalOptions,
    event: Annotated[str, typer.Option(metavar="NAME", help="The event.")],
    from_date: _From,
    to_date: _To,
    on: _On = None,
    math: Annotated[
        str | None,
        typer.Option(
            metavar="MATH",
            help="Of the number --on: numeric (counts by its ranges), sum, average.",
            autocompletion=one_of("numeric", "sum", "average"),
        ),
    ] = None,
    unit: Annotated[str | None, _unit("minute", "hour", "day", "month")] = None,
    interval: Annotated[int | None, typer.Option(metavar="DAYS", help="Days in a bucket, instead of --unit.")] = None,
    where: _Where = None,
    type_: _Type = None,
    limit: _Limit = None,
    wait: _Wait = False,
) -> None:
    """Counts of one event over time, by a property if wanted. Rows: segment, date, value.

    \b
    mpload segmentation --event 'Order Placed' --from 2024-01-01 --to yesterday --on plan
    mpload segmentation --event 'Order Placed' --from 2024-01-01 --to 2024-01-31 --on amount --math sum
    """
    with _reports(options, wait) as reports:
        result = reports.segmentation(
            event,
            _day("--from", from_date, options),
            _day("--to", to_date, options),
            on=on,
            math=math,
            unit=unit,
            interval=interval,
            where=where,
            type=type_,
            limit=limit,
        )
    _write(result, options)


@command
def funnel(
    options: GlobalOptions,
    funnel_id: Annotated[int, typer.Argument(metavar="ID", help="As mpload funnels lists it.")],
    from_date: _From,
    to_date: _To,
    unit: Annotated[str | None, _unit("day", "week", "month")] = None,
    interval: Annotated[int | None, typer.Option(metavar="DAYS", help="Days in a bucket, instead of --unit.")] = None,
    on: _On = None,
    where: _Where = None,
    length: Annotated[
        int | None, typer.Option(metavar="N", help="The time for all steps; without it as the funnel was saved.")
    ] = None,
    length_unit: Annotated[str | None, _unit("day", "hour", "minute", "second", what="Of --length: ")] = None,
    limit: _Limit = None,
    wait: _Wait = False,
) -> None:
    """How far users got in a saved funnel. A row for each step of each date (and segment).

    \b
    mpload funnel 7 --from 2024-01-01 --to 2024-01-31 --unit week
    """
    with _reports(options, wait) as reports:
        result = reports.funnel(
            funnel_id,
            _day("--from", from_date, options),
            _day("--to", to_date, options),
            unit=unit,
            interval=interval,
            on=on,
            where=where,
            length=length,
            length_unit=length_unit,
            limit=limit,
        )
    _write(result, options)


@command
def retention(
    options: GlobalOptions,
    from_date: _From,
    to_date: _To,
    born: Annotated[
        str | None, typer.Option("--born", metavar="NAME", help="The event that users are born with.")
    ] = None,
    return_event: Annotated[
        str | None, typer.Option("--return", metavar="NAME", help="The event of coming back; without it any.")
    ] = None,
    retention_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="birth, or compounded (recurring: no --born).  [default: birth]",
            autocompletion=one_of("birth", "compounded"),
        ),
    ] = None,
    unit: Annotated[str | None, _unit("day", "week", "month", what="Of an interval: ")] = None,
    interval: Annotated[
        int | None, typer.Option(metavar="DAYS", help="Days in an interval, instead of --unit.")
    ] = None,
    intervals: Annotated[
        int | None, typer.Option(metavar="N", help="How many, besides the first, 0.  [default: 1]")
    ] = None,
    born_where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Only births that match, in Mixpanel's language.")
    ] = None,
    where: _Where = None,
    unbounded: Annotated[
        bool, typer.Option("--unbounded", help="Count who came back in an interval or in a later one.")
    ] = False,
    on: _On = None,
    limit: _Limit = None,
    wait: _Wait = False,
) -> None:
    """Who came back. Rows: segment, date, first (users born), interval, count (of them came back).

    \b
    mpload retention --born 'Sign Up' --return 'Order Placed' --from 2024-01-01 --to 2024-01-31 --unit week
    """
    with _reports(options, wait) as reports:
        result = reports.retention(
            _day("--from", from_date, options),
            _day("--to", to_date, options),
            born_event=born,
            event=return_event,
            retention_type=retention_type,
            born_where=born_where,
            where=where,
            interval=interval,
            interval_count=intervals,
            unit=unit,
            unbounded_retention=True if unbounded else None,
            on=on,
            limit=limit,
        )
    _write(result, options)


@command
def frequency(
    options: GlobalOptions,
    from_date: _From,
    to_date: _To,
    event: Annotated[str | None, typer.Option(metavar="NAME", help="The event; without it any.")] = None,
    unit: Annotated[str, _unit("day", "week", "month")] = "day",
    addiction_unit: Annotated[str, _unit("hour", "day", what="What is counted of it: ")] = "hour",
    where: _Where = None,
    on: _On = None,
    limit: _Limit = None,
    wait: _Wait = False,
) -> None:
    """How many users were active in at least 1, 2, 3 ... hours (or days). Rows: segment, date, at_least, users.

    \b
    mpload frequency --event 'Order Placed' --from 2024-01-01 --to 2024-01-31 --unit month --addiction-unit day
    """
    with _reports(options, wait) as reports:
        result = reports.frequency(
            _day("--from", from_date, options),
            _day("--to", to_date, options),
            unit=unit,
            addiction_unit=addiction_unit,
            event=event,
            where=where,
            on=on,
            limit=limit,
        )
    _write(result, options)


@command
def insights(
    options: GlobalOptions,
    bookmark_id: Annotated[int, typer.Argument(metavar="BOOKMARK", help="As mpload bookmarks lists it.")],
    wait: _Wait = False,
) -> None:
    """A saved report, with the dates that it was saved with. Rows: path, date, value.

    \b
    mpload insights 12345
    """
    with _reports(options, wait) as reports:
        result = reports.insights(bookmark_id)
    _write(result, options)


@command
def event_counts(
    options: GlobalOptions,
    event: Annotated[list[str], typer.Option(metavar="NAME", help="An event; may be repeated.")],
    from_date: _MaybeFrom = None,
    to_date: _MaybeTo = None,
    last: _LastUnits = None,
    unit: Annotated[str, _unit("minute", "hour", "day", "week", "month")] = "day",
    type_: _Type = "general",
    wait: _Wait = False,
) -> None:
    """Counts of several events over time. Rows: event, date, value.

    \b
    mpload event-counts --event 'Sign Up' --event 'Order Placed' --from 2024-01-01 --to 2024-01-31 --unit week
    mpload event-counts --event 'Sign Up' --last 7
    """
    with _reports(options, wait) as reports:
        result = reports.event_counts(
            event,
            _maybe_day("--from", from_date, options),
            _maybe_day("--to", to_date, options),
            interval=last,
            type=type_ or "general",
            unit=unit,
        )
    _write(result, options)


@command
def property_counts(
    options: GlobalOptions,
    event: Annotated[str, typer.Argument(help="An event.")],
    name: Annotated[str, typer.Argument(metavar="PROPERTY", help="One of its properties.")],
    from_date: _MaybeFrom = None,
    to_date: _MaybeTo = None,
    last: _LastUnits = None,
    value: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Only this value; may be repeated.")] = None,
    unit: Annotated[str, _unit("minute", "hour", "day", "week", "month")] = "day",
    type_: _Type = "general",
    limit: _Limit = None,
    wait: _Wait = False,
) -> None:
    """Counts of an event by the values of a property. Rows: segment (the value), date, value (the count).

    \b
    mpload property-counts 'Order Placed' plan --from 2024-01-01 --to 2024-01-31
    """
    with _reports(options, wait) as reports:
        result = reports.property_counts(
            event,
            name,
            _maybe_day("--from", from_date, options),
            _maybe_day("--to", to_date, options),
            interval=last,
            values=value or None,
            type=type_ or "general",
            unit=unit,
            limit=limit,
        )
    _write(result, options)


@command
def activity(
    options: GlobalOptions,
    distinct_ids: Annotated[list[str], typer.Argument(metavar="DISTINCT_ID...", help="One user or more.")],
    from_date: _From,
    to_date: _To,
    wait: _Wait = False,
) -> None:
    """What some users did, event by event. Rows: event, time, distinct_id, properties.

    \b
    mpload activity u-17 --from 2024-01-01 --to today
    """
    with _reports(options, wait) as reports:
        result = reports.activity(distinct_ids, _day("--from", from_date, options), _day("--to", to_date, options))
    _write(result, options)


@command
def jql(
    options: GlobalOptions,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The script; - reads it from stdin.")] = None,
    code: Annotated[str | None, typer.Option(metavar="SCRIPT", help="The script itself.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A parameter; JSON, or else text. May be repeated."),
    ] = None,
    wait: _Wait = False,
) -> None:
    """What a script in JavaScript returns. Mixpanel keeps JQL in maintenance mode: do not build on it.

    Objects are rows as they are; anything else is a row with the column value.

    \b
    mpload jql report.js --param from_date=2024-01-01 --param to_date=2024-01-31
    mpload jql --code 'function main() { return Events(params).groupBy(["name"], mixpanel.reducer.count()) }'
    """
    script = _script(file, code)
    params = _params(param) if param else None
    with _reports(options, wait) as reports:
        result = reports.jql(script, params)
    _write(result, options)


@contextmanager
def _reports(options: GlobalOptions, wait: bool) -> Iterator[Reports]:
    from mixpanel_source.reports import Reports

    with options.find_project().client() as client:
        yield Reports(client, wait=wait)


def _day(flag: str, text: str, options: GlobalOptions) -> date:
    """A day, or `today` and `yesterday` in the zone of the account's project."""
    from mixpanel_source.project import day_in_words

    day = day_in_words(flag, text, options.find_project().report_calendar)
    if day is None:
        raise ConfigError(f"{flag} is empty", hint="give it a day, such as 2024-01-31")
    return day


def _maybe_day(flag: str, text: str | None, options: GlobalOptions) -> date | None:
    return None if text is None else _day(flag, text, options)


def _script(file: Path | None, code: str | None) -> str:
    if file is None and code is not None:
        return code
    if file is None or code is not None:
        raise ConfigError("either FILE or --code is needed, and not both")
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the script: {error}") from None


def _params(given: Sequence[str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise ConfigError(f"--param is NAME=VALUE, not {one[:40]!r}")
        try:
            params[name] = json.loads(value)
        except (ValueError, RecursionError):
            params[name] = value
    return params


def _write(result: Report, options: GlobalOptions) -> None:
    rows = [[row[column] for column in result.columns] for row in result.rows]
    options.write(result.columns, rows)
    if not rows:
        options.say("nothing was found")
