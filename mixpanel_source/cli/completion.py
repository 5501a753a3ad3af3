"""What TAB gives where Typer cannot know it: accounts, tables, fixed values. Asks Mixpanel nothing, imports no dlt.

Typer calls these in a process of its own for each TAB, and leaves out what does not begin like what is typed. Where
something is wrong there is nothing to complete: the command itself tells of it when it runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

import typer

from mixpanel_source.errors import MixpanelDataError

if TYPE_CHECKING:
    import duckdb

    from mixpanel_source.cli.global_options import GlobalOptions

Complete = Callable[..., list[str]]


def one_of(*values: str) -> Complete:
    def complete() -> list[str]:
        return list(values)

    return complete


DAY = one_of("yesterday", "today")


def accounts() -> list[str]:
    from mixpanel_source.accounts import read_config

    try:
        return _plain(read_config().accounts)
    except MixpanelDataError:
        return []


def tables(context: typer.Context) -> list[str]:
    from mixpanel_source.warehouse import table_names

    return _in_database(context, lambda connection: sorted(table_names(connection)))


def snapshots(context: typer.Context) -> list[str]:
    from mixpanel_source.warehouse import fetched_tables

    return _in_database(context, fetched_tables)


def _in_database(context: typer.Context, names: Callable[[duckdb.DuckDBPyConnection], Iterable[str]]) -> list[str]:
    """Names in the database that the command would work on, unless somebody holds it."""
    import duckdb

    from mixpanel_source.warehouse import connect

    options: GlobalOptions = context.obj
    options.take_parsed(context)
    options.quiet, options.verbose = True, False
    options.begin()
    try:
        with closing(connect(options.find_database(), wait_s=0.0)) as connection:
            return [name for name in _plain(names(connection)) if not name.startswith("_dlt")]
    except (MixpanelDataError, duckdb.Error):
        return []


def _plain(names: Iterable[str]) -> list[str]:
    """Those that a shell takes as they are: what is completed is not quoted."""
    return [name for name in names if shlex.quote(name) == name]
