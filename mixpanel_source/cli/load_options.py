"""The options that several commands have for the events they ask for, and for the project they are of."""

from __future__ import annotations

from typing import Annotated

import typer

from mixpanel_source.cli.completion import DAY

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
