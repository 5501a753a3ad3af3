"""`mpload verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mixpanel_source.cli.completion import DAY, one_of
from mixpanel_source.cli.exit_codes import GENERAL
from mixpanel_source.cli.global_options import GlobalOptions, refuse_empty
from mixpanel_source.cli.load_options import (
    Dataset,
    EventNames,
    LegacyLocalTime,
    ProjectTimezone,
    ToDay,
    find_target,
)

if TYPE_CHECKING:
    from mixpanel_source.verify import Verification

COLUMNS = ("day", "event", "loaded", "mixpanel", "difference", "verdict", "reason")


def verify(
    options: GlobalOptions,
    from_date: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DAY",
            help="First day: YYYY-MM-DD, yesterday or today; without it the first one loaded.",
            autocompletion=DAY,
        ),
    ] = None,
    to_date: ToDay = None,
    event: EventNames = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Load the days again that differ or are missing, and compare anew.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="Show equal counts, too.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the hourly limit, instead of exiting with 5.")] = False,
    project_timezone: ProjectTimezone = None,
    legacy_local_time: LegacyLocalTime = None,
    destination: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What is loaded into ducklake, as dlt's config has it, instead of the file.",
            autocompletion=one_of("ducklake"),
        ),
    ] = None,
    dataset: Dataset = None,
) -> None:
    """Compare the events that are loaded with Mixpanel's own counts, by day and event, and with what loads recorded.

    Rows are what is not equal: explained by what is known to differ, different, missing, or not comparable (as a day
    that is not over, or not whole). Exits with 1 where something is different or missing. It takes one request for all
    counts, and one for the names of events unless they are kept from the last hour, of the 60 an hour.

    \b
    mpload verify --from 2024-01-01 --to 2024-01-31
    mpload verify --from 2024-01-01 --event 'Order Placed' --all
    mpload verify --repair --wait
    mpload verify --destination ducklake
    """
    from mixpanel_source.cli.progress import LoadDisplay
    from mixpanel_source.project import day_in_words, project_of
    from mixpanel_source.verify import verify as verify_events

    refuse_empty(("--from", from_date), ("--to", to_date), *(("--event", name) for name in event or ()))
    account = options.find_account()
    display = LoadDisplay(options.quiet)
    project = project_of(
        account,
        wait=wait,
        on_wait=display.waiting,
        project_timezone=project_timezone,
        legacy_local_time=legacy_local_time,
    )
    first, last = (
        day_in_words(flag, text, project.report_calendar) for flag, text in (("--from", from_date), ("--to", to_date))
    )
    if wait:
        display.ledger = project.ledger()
    with display.shown():
        found = verify_events(
            project,
            find_target(options, destination, dataset, account, to_read=not repair),
            from_date=first,
            to_date=last,
            events=tuple(event or ()),
            repair=repair,
            progress=display,
        )
    for warning in found.warnings:
        options.say(f"warning: {warning}")
    shown = [count for count in found.counts if all_ or count.verdict != "equal"]
    options.write(COLUMNS, [[getattr(count, column) for column in COLUMNS] for count in shown])
    _say(options, found)
    if found.wrong:
        raise typer.Exit(GENERAL)


def _say(options: GlobalOptions, found: Verification) -> None:
    if found.repaired:
        days = ", ".join(map(str, found.repaired[:10])) + (" and others" if len(found.repaired) > 10 else "")
        left = f"{found.wrong_before:,} counts were different or missing, and {len(found.wrong):,} are now"
        options.say(f"loaded again: {days}; {left}")
    verdicts = ", ".join(f"{number:,} {verdict}" for verdict, number in sorted(found.verdicts.items()))
    options.say(f"{found.days}: {verdicts or 'no events'}")
