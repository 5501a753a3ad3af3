"""What there is to ask for: `mpload events`, `properties`, `values`, `funnels`, `cohorts`, `bookmarks`, `projects`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixpanel_source.cli.completion import one_of
from mixpanel_source.cli.global_options import GlobalOptions, commands_of

if TYPE_CHECKING:
    from mixpanel_source.discovery import Discovery

group = typer.Typer(rich_markup_mode=None)
command = commands_of(group)

_Fresh = Annotated[
    bool, typer.Option("--fresh", help="Ask Mixpanel, and not what it said within the last hour (MP_CACHE_S seconds).")
]
_Limit = Annotated[int, typer.Option(min=1, metavar="N", help="So many at most, the most common ones.")]
_Event = Annotated[str, typer.Argument(help="A name that mpload events lists.")]


@command
def events(options: GlobalOptions, limit: _Limit = 5000, fresh: _Fresh = False) -> None:
    """The names of the events of the last 31 days.

    \b
    mpload events
    mpload events --format jsonl --fresh
    """
    with _discovery(options, fresh) as discovery:
        found = discovery.events(limit)
    _write_texts("event", found, limit, options)


@command
def properties(options: GlobalOptions, event: _Event, limit: _Limit = 255, fresh: _Fresh = False) -> None:
    """The properties of an event, with the number of events that have them, in the last days.

    \b
    mpload properties 'Order Placed'
    """
    from mixpanel_source.discovery import PROPERTY_COLUMNS

    with _discovery(options, fresh) as discovery:
        found = discovery.properties(event, limit)
    _write(PROPERTY_COLUMNS, found, options)
    _tell_of_more(found, limit, options)


@command
def values(
    options: GlobalOptions,
    event: _Event,
    name: Annotated[str, typer.Argument(metavar="PROPERTY", help="A name that mpload properties lists.")],
    limit: _Limit = 100,
    fresh: _Fresh = False,
) -> None:
    """The most common values of an event's property, as text.

    \b
    mpload values 'Order Placed' plan
    mpload values 'Order Placed' plan --limit 1000 --format csv
    """
    with _discovery(options, fresh) as discovery:
        found = discovery.values(event, name, limit)
    _write_texts("value", found, limit, options)
    if not found:
        options.say(f"no event {event!r} has a property {name!r}: mpload properties lists them")


@command
def funnels(options: GlobalOptions, fresh: _Fresh = False) -> None:
    """The saved funnels, for mpload funnel.

    \b
    mpload funnels
    """
    from mixpanel_source.listings import LISTINGS

    with _discovery(options, fresh) as discovery:
        _write(list(LISTINGS["funnels"].columns), discovery.funnels(), options)


@command
def cohorts(options: GlobalOptions, fresh: _Fresh = False) -> None:
    """The saved cohorts, with the number of their members.

    \b
    mpload cohorts
    """
    from mixpanel_source.listings import LISTINGS

    with _discovery(options, fresh) as discovery:
        _write(list(LISTINGS["cohorts"].columns), discovery.cohorts(), options)


@command
def bookmarks(
    options: GlobalOptions,
    type_: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Only insights, funnels, retention, flows, ...",
            autocompletion=one_of("insights", "funnels", "retention", "flows"),
        ),
    ] = None,
    fresh: _Fresh = False,
) -> None:
    """The saved reports, for mpload insights. Mixpanel does not document this list.

    \b
    mpload bookmarks --type insights
    """
    from mixpanel_source.discovery import BOOKMARKS

    with _discovery(options, fresh) as discovery:
        _write(list(BOOKMARKS.columns), discovery.bookmarks(type_), options)


@command
def projects(options: GlobalOptions, fresh: _Fresh = False) -> None:
    """The projects of the account, with their time zones. Mixpanel does not document this list.

    \b
    mpload projects
    """
    from mixpanel_source.discovery import PROJECT_COLUMNS

    with _discovery(options, fresh) as discovery:
        _write(PROJECT_COLUMNS, discovery.projects(), options)


@contextmanager
def _discovery(options: GlobalOptions, fresh: bool) -> Iterator[Discovery]:
    from mixpanel_source.discovery import Discovery

    def tell_age(seconds: float) -> None:
        age = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
        options.say(f"as it was {age} ago: --fresh asks Mixpanel again")

    with options.find_project().client() as client:
        yield Discovery(client, fresh=fresh, on_cached=tell_age)


def _write(columns: Sequence[str], rows: Sequence[dict[str, Any]], options: GlobalOptions) -> None:
    options.write(columns, [[row.get(column) for column in columns] for row in rows])


def _write_texts(column: str, texts: Sequence[str], limit: int, options: GlobalOptions) -> None:
    options.write([column], [[text] for text in texts])
    _tell_of_more(texts, limit, options)


def _tell_of_more(found: Sequence[Any], limit: int, options: GlobalOptions) -> None:
    if len(found) >= limit:
        options.say(f"there may be more than {limit}: --limit takes another number")
