"""`mpload plan`: what a load of events would ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixpanel_source.cli.global_options import GlobalOptions, refuse_empty
from mixpanel_source.cli.load_options import (
    Dataset,
    Destination,
    EventNames,
    FromDay,
    LegacyLocalTime,
    LookbackDays,
    MaxWindowDays,
    MaxWindowEvents,
    ProjectTimezone,
    Refresh,
    RequestShare,
    StartDay,
    SweepDays,
    ToDay,
    Where,
    WindowDays,
    find_target,
)
from mixpanel_source.cli.output import Format, write_record
from mixpanel_source.cli.simulation import Asked, Supposed, write_simulation
from mixpanel_source.cli.words import counted, requests_in_words, time_in_words
from mixpanel_source.errors import ConfigError

if TYPE_CHECKING:
    from mixpanel_source.load_plan import LoadPlan

_SHOWN_WINDOWS = 5
_SIMULATED = "With --simulate"


def plan(
    options: GlobalOptions,
    from_date: FromDay = None,
    to_date: ToDay = None,
    event: EventNames = None,
    where: Where = None,
    refresh: Refresh = False,
    count: Annotated[
        bool,
        typer.Option(
            "--count",
            help="Where nothing is loaded that tells of the days' sizes, ask Mixpanel how many events they have: two"
            " requests of the Query API at most, none of the export's.",
        ),
    ] = False,
    start_date: StartDay = None,
    lookback_days: LookbackDays = None,
    sweep_days: SweepDays = None,
    window_days: WindowDays = None,
    max_window_days: MaxWindowDays = None,
    max_window_events: MaxWindowEvents = None,
    request_share: RequestShare = None,
    project_timezone: ProjectTimezone = None,
    legacy_local_time: LegacyLocalTime = None,
    destination: Destination = None,
    dataset: Dataset = None,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate",
            help="Play loads of the size that the options below give on a clock that jumps: requests, hours, CPU, disk."
            " Needs no account.",
        ),
    ] = False,
    events_per_day: Annotated[
        int | None, typer.Option(metavar="EVENTS", help="Of each project.", rich_help_panel=_SIMULATED)
    ] = None,
    days: Annotated[int | None, typer.Option(metavar="DAYS", help="To load.", rich_help_panel=_SIMULATED)] = None,
    projects: Annotated[
        int | None, typer.Option(metavar="N", help="All alike.  [default: 1]", rich_help_panel=_SIMULATED)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Loads at a time, each of one project.  [default: 1]", rich_help_panel=_SIMULATED
        ),
    ] = None,
    bytes_per_event: Annotated[
        float | None,
        typer.Option(metavar="BYTES", help="Of a line of the export.  [default: 800]", rich_help_panel=_SIMULATED),
    ] = None,
    profiles: Annotated[
        int | None, typer.Option(metavar="N", help="Of each project.  [default: 0]", rich_help_panel=_SIMULATED)
    ] = None,
    cores: Annotated[
        float | None,
        typer.Option(metavar="N", help="Of the machine.  [default: those of this one]", rich_help_panel=_SIMULATED),
    ] = None,
    event_us: Annotated[
        float | None,
        typer.Option(
            metavar="US",
            help="Microseconds of a CPU for each event, typed tables included.  [default: 30]",
            rich_help_panel=_SIMULATED,
        ),
    ] = None,
    package_s: Annotated[
        float | None,
        typer.Option(metavar="S", help="Of a CPU for each load package.  [default: 0.3]", rich_help_panel=_SIMULATED),
    ] = None,
    start_s: Annotated[
        float | None,
        typer.Option(metavar="S", help="Of a CPU for the start of a load.  [default: 2]", rich_help_panel=_SIMULATED),
    ] = None,
    first_byte_s: Annotated[
        float | None,
        typer.Option(metavar="S", help="Until an export begins to come.  [default: 5]", rich_help_panel=_SIMULATED),
    ] = None,
    mb_per_s: Annotated[
        float | None,
        typer.Option(
            metavar="MB", help="Of an export as it is sent, compressed.  [default: 10]", rich_help_panel=_SIMULATED
        ),
    ] = None,
    failing: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of the exports, that end half way and are asked for again.  [default: 0]",
            rich_help_panel=_SIMULATED,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure this machine first, by some small loads of made-up events.",
            rich_help_panel=_SIMULATED,
        ),
    ] = False,
) -> None:
    """What mpload load events would ask for with the same options: requests, events, bytes, and the time it takes.

    Nothing is loaded, and without --count nothing is asked. Small days share a request, big ones have one each; what
    is expected of them is what was loaded of them before, or of the days near them.

    \b
    mpload plan --from 2024-01-01
    mpload plan --from 2024-01-01 --count --format json | jq .requests
    mpload plan --simulate --events-per-day 200000 --days 365 --projects 50 --workers 4
    """
    from mixpanel_source.exports import EventFilter
    from mixpanel_source.load import dates_of
    from mixpanel_source.load_plan import plan_load
    from mixpanel_source.project import parse_day, project_of

    of_loads = (
        ("--from", from_date),
        ("--to", to_date),
        ("--event", event),
        ("--where", where),
        ("--refresh", refresh),
        ("--count", count),
        ("--start-date", start_date),
        ("--lookback-days", lookback_days),
        ("--sweep-days", sweep_days),
        ("--project-timezone", project_timezone),
        ("--legacy-local-time", legacy_local_time),
        ("--destination", destination),
        ("--dataset", dataset),
    )
    of_simulations = (
        ("--events-per-day", events_per_day),
        ("--days", days),
        ("--projects", projects),
        ("--workers", workers),
        ("--bytes-per-event", bytes_per_event),
        ("--profiles", profiles),
        ("--cores", cores),
        ("--event-us", event_us),
        ("--package-s", package_s),
        ("--start-s", start_s),
        ("--first-byte-s", first_byte_s),
        ("--mb-per-s", mb_per_s),
        ("--failing", failing),
        ("--measure", measure),
    )
    for flag, value in of_loads if simulate else of_simulations:
        if value not in (None, False, []):
            raise ConfigError(
                f"{flag} goes {'not with' if simulate else 'with'} --simulate",
                hint="a simulation is of the numbers that are given, not of what is loaded; see mpload plan --help",
            )
    if simulate:
        write_simulation(
            options,
            Asked(events_per_day, days, projects, workers, bytes_per_event, profiles),
            Supposed(cores, event_us, package_s, start_s, first_byte_s, mb_per_s, failing, measure),
            window_days=window_days,
            max_window_days=max_window_days,
            max_window_events=max_window_events,
            request_share=request_share,
        )
        return
    refuse_empty(("--from", from_date), ("--to", to_date), ("--start-date", start_date))
    account = options.find_account()
    project = project_of(
        account,
        start_date=parse_day("--start-date", start_date),
        lookback_days=lookback_days,
        sweep_days=sweep_days,
        window_days=window_days,
        max_window_days=max_window_days,
        max_window_events=max_window_events,
        request_share=request_share,
        project_timezone=project_timezone,
        legacy_local_time=legacy_local_time,
    )
    found = plan_load(
        project,
        find_target(options, destination, dataset, account),
        asked=dates_of(project, from_date, to_date, refresh),
        filter_=EventFilter(event or (), where),
        count=count,
    )
    write_record(_in_words(found) if options.output is Format.TABLE else _record(found), options.output)


def _record(found: LoadPlan) -> dict[str, Any]:
    from mixpanel_source.cli.pages import ranges

    forecast = found.forecast
    return {
        "database": found.where,
        "days": forecast.days,
        "days_to_load": ranges(found.days),
        "days_there": ranges(found.there),
        "days_kept": ranges(found.kept),
        "requests": forecast.requests,
        "requests_at_most": forecast.requests_at_most,
        "sweep_requests": found.sweep_requests,
        "seconds": round(found.seconds, 1),
        "seconds_at_most": round(found.seconds_at_most, 1),
        "events": forecast.events,
        "bytes": forecast.bytes,
        "sizes": found.sizes,
        "spent": found.spent.used,
        "allowed": found.spent.allowed,
        "next_free_s": round(found.spent.next_free_s, 1),
        "windows": [
            {**window, "events": planned.events}
            for planned, window in zip(forecast.windows, ranges([one.window for one in forecast.windows]), strict=True)
        ],
    }


def _in_words(found: LoadPlan) -> dict[str, str]:
    """For eyes: a line each."""
    from rich.filesize import decimal

    from mixpanel_source.cli.pages import days_in_words

    forecast = found.forecast
    words = {
        "database": found.where,
        "to load": days_in_words(found.days),
        "there": days_in_words(found.there),
        "requests": requests_in_words(forecast.requests, forecast.requests_at_most),
        "time": f"{time_in_words(found.seconds, found.seconds_at_most)}: {found.spent.used} of {found.spent.allowed}"
        " export requests are spent this hour",
    }
    if found.kept:
        words["on the disk"] = f"{days_in_words(found.kept)}: exported by a load that was stopped, not asked for again"
    if found.sweep_requests:
        words["late events"] = f"{counted(found.sweep_requests, 'request')} to look for them; their days come on top"
    if forecast.windows:
        if forecast.events is None:
            words["events"] = "not known" + ("" if found.is_counted else ": --count asks Mixpanel")
        else:
            known = [f"{counted(days, 'day')} {_KNOWN_BY[by]}" for by, days in found.sizes.items() if days]
            words["events"] = f"about {forecast.events:,}: {', '.join(known)}"
        if forecast.bytes is not None:
            words["size"] = f"about {decimal(forecast.bytes)} of properties"
        words["windows"] = _windows_in_words(found)
    return words


_KNOWN_BY = {
    "loaded": "as loaded before",
    "counted": "as Mixpanel counts the events it has names of",
    "neighbours": "like the nearest of those",
    "unknown": "not known",
}


def _windows_in_words(found: LoadPlan) -> str:
    shown = [
        f"{planned.window}" + ("" if planned.events is None else f": about {counted(planned.events, 'event')}")
        for planned in found.forecast.windows[:_SHOWN_WINDOWS]
    ]
    more = found.forecast.requests - len(shown)
    return "\n".join([*shown, *([f"and {more:,} more"] if more else [])])
