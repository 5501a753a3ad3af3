"""The options that several commands have for the events they ask for, and for the project they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mixpanel_source.cli.completion import DAY, one_of
from mixpanel_source.cli.global_options import GlobalOptions, refuse_empty
from mixpanel_source.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from mixpanel_source.credentials import Account
    from mixpanel_source.destinations import Target

DESTINATIONS = one_of("postgres", "ducklake", "motherduck", "sqlalchemy", "filesystem")

FromDay = Annotated[
    str | None,
    typer.Option("--from", metavar="DAY", help="First day: YYYY-MM-DD, yesterday or today.", autocompletion=DAY),
]
ToDay = Annotated[
    str | None,
    typer.Option("--to", metavar="DAY", help="Last day, included; without it yesterday.", autocompletion=DAY),
]
EventNames = Annotated[
    list[str] | None, typer.Option("--event", metavar="NAME", help="Only events of this name; may be repeated.")
]
Where = Annotated[
    str | None,
    typer.Option(metavar="EXPRESSION", help="Only events that match, in Mixpanel's expression language."),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Ask for days anew that are complete, too.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the hourly limit: exit with 5 instead.")]
StartDay = Annotated[
    str | None, typer.Option(metavar="DAY", help="First day of a load without dates; without it 30 days back.")
]
LookbackDays = Annotated[
    int | None, typer.Option(metavar="DAYS", help="Days after its end until a day is settled.  [default: 5]")
]
SweepDays = Annotated[
    int | None,
    typer.Option(
        metavar="DAYS",
        help="Without dates: look for late events in settled days so far back, too, and load their days again."
        " Not verified on a live project.  [default: 0, not at all]",
    ),
]
WindowDays = Annotated[
    int | None, typer.Option(metavar="DAYS", help="Days of every request; without it as many as fit.")
]
MaxWindowDays = Annotated[int | None, typer.Option(metavar="DAYS", help="Days in one request at most.  [default: 30]")]
MaxWindowEvents = Annotated[
    int | None, typer.Option(metavar="EVENTS", help="Events in one request, as expected.  [default: 1000000]")
]
RequestShare = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Share of the 60 requests an hour to use at most.  [default: 1]"),
]
ProjectTimezone = Annotated[
    str | None, typer.Option(metavar="ZONE", help="The project's time zone, such as America/New_York.")
]
LegacyLocalTime = Annotated[
    bool | None,
    typer.Option(
        "--legacy-local-time/--no-legacy-local-time",
        help="Whether the project was made before 2023: its days and times are those of its time zone.",
    ),
]
Destination = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What is loaded into postgres, ducklake or another destination that dlt's config tells of, instead of the"
        " DuckDB file.",
        autocompletion=DESTINATIONS,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With --destination: the dataset (schema) there.  [default: mixpanel]"),
]


def find_target(
    options: GlobalOptions,
    destination: str | None,
    dataset: str | None,
    account: Account | None = None,
    *,
    to_read: bool = True,
) -> Path | Target:
    """What to look into, and with `to_read` not to load into. Raises ConfigError as `target_of`."""
    refuse_dataset_alone(destination, dataset)
    if destination is None:
        return options.find_database(account)
    from mixpanel_source.destinations import target_of
    from mixpanel_source.settings import DATASET

    return target_of(destination, dataset or DATASET, to_read=to_read)


def refuse_dataset_alone(destination: str | None, dataset: str | None) -> None:
    refuse_empty(("--destination", destination), ("--dataset", dataset))
    if dataset is not None and destination is None:
        raise ConfigError("--dataset goes with --destination", hint="the dataset of a DuckDB file is mixpanel")
