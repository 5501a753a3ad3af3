"""`mpload fetch` and `mpload drop`: snapshots."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixpanel_source.cli.completion import DAY, snapshots
from mixpanel_source.cli.global_options import GlobalOptions, commands_of, takes_global_options
from mixpanel_source.cli.load_options import (
    EventNames,
    FromDay,
    NoWait,
)
from mixpanel_source.cli.messages import confirm_removal
from mixpanel_source.cli.output import write_record, write_rows
from mixpanel_source.errors import ConfigError

if TYPE_CHECKING:
    from mixpanel_source.fetch import FetchResult

group = typer.Typer(name="fetch", rich_markup_mode=None)
command = commands_of(group)


def _fetch(options: GlobalOptions) -> None:
    """Snapshots: events or profiles as they are now, in a table of their own.

    mpload load keeps the tables events and profiles up to date; a snapshot stays as it is, and fetches tells of it.

    \b
    mpload fetch events signups --from 2024-01-01 --to 2024-01-31 --event 'Sign Up'
    mpload fetch profiles payers --where 'properties["plan"] == "pro"'
    mpload drop signups --force
    """


group.callback()(takes_global_options(_fetch))

_Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the table; without it as what is fetched.")]


@command
def events(
    options: GlobalOptions,
    name: _Name = None,
    from_date: FromDay = None,
    to_date: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day, included.", autocompletion=DAY)
    ] = None,
    event: EventNames = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Only events that match, in Mixpanel's expressions.")
    ] = None,
    no_wait: NoWait = False,
) -> None:
    """The events of some days, with the columns of the table events.

    \b
    mpload fetch events january --from 2024-01-01 --to 2024-01-31
    """
    from mixpanel_source.cli.progress import LoadDisplay
    from mixpanel_source.exports import EventFilter
    from mixpanel_source.fetch import fetch_events
    from mixpanel_source.load import dates_of
    from mixpanel_source.project import project_of

    account = options.find_account()
    display = LoadDisplay(options.quiet)
    project = project_of(account, wait=not no_wait, on_wait=display.waiting)
    days = dates_of(project, from_date, to_date)
    if days.from_date is None or days.to_date is None:
        raise ConfigError("a snapshot needs its days", hint="add --from DAY --to DAY")
    if not no_wait:
        display.ledger = project.ledger()
    with display.shown():
        result = fetch_events(
            project,
            options.find_database(account),
            name,
            from_date=days.from_date,
            to_date=days.to_date,
            filter_=EventFilter(event or (), where),
            progress=display,
        )
    _tell(options, result)


@command
def profiles(
    options: GlobalOptions,
    name: _Name = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Only profiles that match, in Mixpanel's expressions.")
    ] = None,
    no_wait: NoWait = False,
) -> None:
    """The profiles as they are now, with the columns of the table profiles.

    \b
    mpload fetch profiles payers --where 'properties["plan"] == "pro"'
    """
    from mixpanel_source.cli.progress import LoadDisplay
    from mixpanel_source.fetch import fetch_profiles
    from mixpanel_source.project import project_of

    account = options.find_account()
    display = LoadDisplay(options.quiet)
    project = project_of(account, wait=not no_wait, on_wait=display.waiting)
    with display.shown():
        result = fetch_profiles(project, options.find_database(account), name, where=where, progress=display)
    _tell(options, result)


def _tell(options: GlobalOptions, result: FetchResult) -> None:
    for warning in result.warnings:
        options.say(f"warning: {warning}")
    record: dict[str, Any] = asdict(result)
    record["duration_seconds"] = round(result.duration_seconds, 1)
    write_record(record, options.output)


def drop(
    options: GlobalOptions,
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]...", help="Snapshots to remove.", autocompletion=snapshots)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every snapshot.")] = False,
    type_: Annotated[
        Literal["events", "profiles"] | None, typer.Option("--type", help="With --all: only those of this type.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False,
) -> None:
    """Remove snapshots that fetch made. Tables of loads are kept.

    \b
    mpload drop january signups
    mpload drop --all --type events --force
    """
    from mixpanel_source.fetch import drop_all, drop_tables

    if bool(tables) == all_ or (type_ and not all_):
        raise ConfigError("either names of tables or --all is needed, and not both", hint="mpload drop january")
    what = ", ".join(tables) if tables else f"every snapshot{f' of {type_}' if type_ else ''}"
    if not force:
        confirm_removal("drop", what)
    database = options.find_database()
    if tables:
        drop_tables(database, tables)
    dropped = tables if tables else drop_all(database, type_)
    write_rows(["dropped"], [[name] for name in dropped], options.output)
