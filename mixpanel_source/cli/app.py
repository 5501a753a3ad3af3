"""`mpload`: options -> one library call -> output. What a command needs is imported when it runs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import astuple
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from mixpanel_source.cli import auth, discovery, exit_codes, fetch, plan, reports
from mixpanel_source.cli.global_options import GlobalOptions, commands_of, refuse_empty, takes_global_options
from mixpanel_source.cli.messages import PROGRAM, note, redacted, report
from mixpanel_source.cli.output import (
    Format,
    NobodyReadsError,
    write_record,
    write_records,
    write_rows,
    write_value,
)
from mixpanel_source.errors import AuthenticationError, ConfigError, MixpanelDataError

# Typer's panels would cost more than everything else that `--help` does.
app = typer.Typer(name=PROGRAM, rich_markup_mode=None, context_settings={"help_option_names": ["--help", "-h"]})

# Typer may bring its own copy of Click, whose classes are not those of the click package.
_ClickError: type[Any] = typer.BadParameter.__mro__[2]


command = commands_of(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from mixpanel_source import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _root(
    options: GlobalOptions,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Data out of Mixpanel, into a DuckDB file, and answers from it.

    Data go to stdout, everything else to stderr. Exit codes: 0 success, 1 error, 2 authentication, 3 wrong arguments,
    4 not found, 5 rate limit, 130 interrupted.

    \b
    mpload demo                                  see it work, without an account
    mpload auth add --help                       keep credentials; mpload auth test tries them
    mpload load --from 2024-01-01                load events and profiles
    mpload sql 'SELECT count(*) FROM events'     ask what was loaded
    """


app.callback()(takes_global_options(_root, after_command=False))


@command
def load(
    options: GlobalOptions,
    resources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RESOURCE]...",
            help="events, profiles: both if none is named; group_profiles, cohort_members, cohorts, funnels,"
            " annotations, event_definitions, property_definitions, lookup_tables, experiments, feature_flags.",
        ),
    ] = None,
    from_date: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="First day: YYYY-MM-DD, yesterday or today.")
    ] = None,
    to_date: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day, included; without it yesterday.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only events of this name; may be repeated.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="Only events that match, in Mixpanel's expression language."),
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Export days anew that are complete, too.")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait for the hourly limit: exit with 5 instead.")
    ] = False,
    start_date: Annotated[
        str | None, typer.Option(metavar="DAY", help="First day of a load without dates; without it 30 days back.")
    ] = None,
    lookback_days: Annotated[
        int | None, typer.Option(metavar="DAYS", help="Days after its end until a day is settled.  [default: 5]")
    ] = None,
    max_rejected: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of unreadable lines that fails.  [default: 0.01]")
    ] = None,
    window_days: Annotated[
        int | None, typer.Option(metavar="DAYS", help="Days of every request; without it as many as fit.")
    ] = None,
    max_window_days: Annotated[
        int | None, typer.Option(metavar="DAYS", help="Days in one request at most.  [default: 30]")
    ] = None,
    max_window_events: Annotated[
        int | None, typer.Option(metavar="EVENTS", help="Events in one request, as expected.  [default: 1000000]")
    ] = None,
    count_events: Annotated[
        bool | None,
        typer.Option(
            "--count-events/--no-count-events",
            help="Whether to ask Mixpanel for the events by day where nothing tells of them.  [default: count-events]",
        ),
    ] = None,
    project_timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="The project's time zone, such as America/New_York.")
    ] = None,
    legacy_local_time: Annotated[
        bool | None,
        typer.Option(
            "--legacy-local-time/--no-legacy-local-time",
            help="Whether the project was made before 2023: its days and times are those of its time zone.",
        ),
    ] = None,
    profiles_where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="With profiles: only those that match; the others stay.")
    ] = None,
    profiles_cohort: Annotated[
        int | None, typer.Option(metavar="ID", help="With profiles: only those in this cohort; the others stay.")
    ] = None,
    profiles_property: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With profiles: only this property, into profiles_partial; may be repeated."),
    ] = None,
    profiles_since: Annotated[
        str | None,
        typer.Option(
            metavar="DAY|last",
            help="With profiles: only those whose $last_seen is not before; last goes on from the last load. It misses"
            " deleted profiles, and updates that leave $last_seen as it is.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="With group_profiles: the data_group_id of a group type; may be repeated."),
    ] = None,
    cohort: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", help="With cohort_members: only this cohort; may be repeated."),
    ] = None,
    history: Annotated[
        bool,
        typer.Option("--history", help="With profiles or cohort_members: keep what was, in a table of its own."),
    ] = False,
) -> None:
    """Load events and profiles into the DuckDB file, or the tables that are named.

    Without dates it goes on from what is loaded: every day that is missing or not settled yet, up to yesterday.
    With --from it loads the days of the range that are not complete, so that a stopped load goes on where it stopped.

    \b
    mpload load --from 2024-01-01 --to 2024-01-31
    mpload load events --event 'Sign Up' --event 'Purchase' --from 2024-01-01
    mpload load profiles --profiles-where 'properties["plan"] == "pro"'
    mpload load cohort_members --cohort 501 --history
    """
    from mixpanel_source.cli.progress import LoadDisplay
    from mixpanel_source.engage import MembersAsked, ProfilesAsked
    from mixpanel_source.exports import EventFilter
    from mixpanel_source.load import DEFAULT_RESOURCES, RESOURCES, WITH_DAYS, dates_of
    from mixpanel_source.load import load as load_tables
    from mixpanel_source.project import parse_day, parse_since, project_of

    days = (
        ("--from", from_date),
        ("--to", to_date),
        ("--start-date", start_date),
        ("--profiles-since", profiles_since),
    )
    wheres = (("--where", where and where.strip()), ("--profiles-where", profiles_where and profiles_where.strip()))
    refuse_empty(*days, *wheres, *(("--event", name) for name in event or ()))
    refuse_empty(*(("--profiles-property", name) for name in profiles_property or ()))
    names = resources or DEFAULT_RESOURCES
    _refuse_without(names, ("--event", event), ("--where", where), resources=("events",))
    of_profiles = (
        ("--profiles-where", profiles_where),
        ("--profiles-cohort", profiles_cohort),
        ("--profiles-property", profiles_property),
        ("--profiles-since", profiles_since),
    )
    # A part of what would be loaded as a whole: that has to be meant.
    _refuse_without(resources or (), *of_profiles, resources=("profiles",))
    _refuse_without(resources or (), ("--group", group), resources=("group_profiles",))
    _refuse_without(resources or (), ("--cohort", cohort), resources=("cohort_members",))
    _refuse_without(resources or (), ("--history", history or None), resources=("profiles", "cohort_members"))
    account = options.find_account()
    display = LoadDisplay(options.quiet)
    project = project_of(
        account,
        start_date=parse_day("--start-date", start_date),
        lookback_days=lookback_days,
        max_rejected=max_rejected,
        window_days=window_days,
        max_window_days=max_window_days,
        max_window_events=max_window_events,
        count_events=count_events,
        project_timezone=project_timezone,
        legacy_local_time=legacy_local_time,
        wait=not no_wait,
        on_wait=display.waiting,
        data_group_ids=group or None,
    )
    asked = dates_of(project, from_date, to_date, refresh)
    profiles = ProfilesAsked(
        profiles_where,
        tuple(profiles_property or ()),
        profiles_cohort,
        parse_since("--profiles-since", profiles_since),
        history and "profiles" in names,
    )
    database = options.find_database(account)
    without_days = [name for name in resources or () if name in RESOURCES and name not in WITH_DAYS]
    if without_days and (from_date or to_date):
        options.say(f"the dates do not apply to {', '.join(without_days)}: loaded as they are now")
    if not no_wait:
        display.ledger = project.ledger()
    with display.shown():
        result = load_tables(
            project,
            database,
            names,
            asked=asked,
            filter_=EventFilter(tuple(event or ()), where),
            profiles=profiles,
            members=MembersAsked(tuple(cohort or ()), history),
            progress=display,
        )
    for warning in result.warnings:
        options.say(f"warning: {warning}")
    write_records(
        [
            {
                "table": table.table,
                "rows": table.rows,
                "days": table.days if table.table in WITH_DAYS else None,
                "seconds": round(table.seconds, 1),
                "error": None if table.error is None else redacted(table.error.message),
            }
            for table in result.tables
        ],
        options.output,
    )
    if result.error is not None:
        raise result.error
    loaded = [
        table for table in result.tables if not table.is_left_out and (table.days or table.table not in WITH_DAYS)
    ]
    if any(table.table in WITH_DAYS and not table.days for table in result.tables):
        options.say(f"{'no new events' if loaded else 'nothing new'}: every day asked for is there and complete")
    if loaded:
        options.say(f"loaded into {database}")


def _refuse_without(names: Sequence[str], *given: tuple[str, object], resources: Sequence[str]) -> None:
    """An option of `resources` that none of `names` takes would change nothing."""
    for flag, value in given:
        if value not in (None, []) and not set(resources) & set(names):
            raise ConfigError(
                f"{flag} goes with {' or '.join(resources)}, which this load does not name",
                hint=f"mpload load {resources[0]} {flag} ...",
            )


command(plan.plan)


@command
def demo(options: GlobalOptions) -> None:
    """See it work without an account: a local Mixpanel, a month of one airline's flights, some answers.

    It loads 28 days of real flights out of New York over HTTP into demo.duckdb in the data folder, made anew each
    time. It needs the sandbox extra: pip install 'mixpanel-source[sandbox]'.

    \b
    mpload demo
    mpload demo --format json | jq .landed
    """
    from mixpanel_source.cli.demo import demo_database, run_demo
    from mixpanel_source.cli.pages import demo_record, write_demo
    from mixpanel_source.cli.progress import LoadDisplay

    if options.db is not None:
        options.say(f"--db and MP_DB do not apply: the demo has a file of its own, {demo_database()}")
    display = LoadDisplay(options.quiet)
    with display.shown():
        done = run_demo(display, display.waiting)
    if options.output is Format.TABLE:
        write_demo(done)
    else:
        write_record(demo_record(done), options.output)


@command
def sandbox(
    options: GlobalOptions,
    folder: Annotated[
        Path | None, typer.Argument(help="events/*.jsonl, profiles.jsonl, saved.json; without it the demo data.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    project_timezone: Annotated[str, typer.Option(metavar="ZONE", help="The project's time zone.")] = "UTC",
    legacy_local_time: Annotated[
        bool, typer.Option("--legacy-local-time", help="Be a project that was made before 2023.")
    ] = False,
    now: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop the clock here, such as 2013-03-29T12:00:00Z.")
    ] = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Without Mixpanel's rate limits.")] = False,
) -> None:
    """Serve a local Mixpanel until Ctrl-C. Its address and its credentials are told on stderr.

    \b
    mpload sandbox --port 8080
    MP_BASE_URL=http://127.0.0.1:8080 MP_USERNAME=sandbox MP_SECRET=sandbox MP_PROJECT_ID=1 MP_REGION=us \\
        mpload load --from 2013-03-01 --to 2013-03-28
    """
    from mixpanel_source.cli.sandbox import environment, open_sandbox, parse_moment
    from mixpanel_source.sandbox import demo_folder

    server = open_sandbox(
        folder or demo_folder(),
        port,
        project_id=options.project or "1",
        project_timezone=project_timezone,
        legacy_local_time=legacy_local_time,
        now=parse_moment("--now", now),
        limits=not no_limits,
    )
    with server:
        note(f"a local Mixpanel at {server.url}; Ctrl-C ends it. To use it:")
        for name, value in environment(server).items():
            print(f"export {name}={value}", file=sys.stderr, flush=True)
        server.wait()


@command
def status(options: GlobalOptions) -> None:
    """What is loaded, what is missing, and how many requests are left. Answers while a load is running, too.

    \b
    mpload status
    mpload status --format json | jq .days_behind
    """
    from mixpanel_source.cli.pages import write_status
    from mixpanel_source.project import project_of
    from mixpanel_source.status import status as status_of

    try:
        project = project_of(options.find_account())
    except AuthenticationError as error:
        options.say(f"{error.message}: the requests that are left are not known")
        project = None
    found = status_of(options.find_database(), project)
    if found.problem:
        options.say(found.problem)
    write_status(found, options.output)


@command
def sql(
    options: GlobalOptions,
    query: Annotated[str | None, typer.Argument(help="SQL in DuckDB's dialect; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the SQL from a file.")] = None,
    scalar: Annotated[bool, typer.Option("--scalar", help="Print the one value of the answer as it is.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Allow the SQL to change the database.")] = False,
) -> None:
    """Ask the loaded data in SQL. The tables are found by their bare names; nothing is changed without --write.

    In JSON, columns of type JSON are nested, numbers keep every digit, moments are ISO 8601, BLOBs are base64, and NaN
    and Infinity are null.

    \b
    mpload sql 'SELECT event_name, count(*) AS events FROM events GROUP BY ALL'
    mpload sql --scalar 'SELECT max(event_time) FROM events'
    mpload sql --file report.sql --format csv > report.csv
    """
    from mixpanel_source.warehouse import only_value, opened, query_stream

    text = _sql_text(query, file)
    with opened(options.find_database(), write=write) as connection:
        answer = query_stream(connection, text)
        if scalar:
            write_value(*only_value(answer))
        else:
            options.write(answer.columns, answer.rows, answer.types)


def _sql_text(query: str | None, file: Path | None) -> str:
    if (query is None) == (file is None):
        raise ConfigError("either SQL or --file is needed, and not both", hint="mpload sql 'SELECT 1'")
    if query is not None and query != "-":
        return query
    try:
        return sys.stdin.read() if file is None or str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the SQL: {error}") from None


@command
def tables(options: GlobalOptions) -> None:
    """The tables that are loaded, with their rows and columns.

    \b
    mpload tables
    """
    from mixpanel_source.warehouse import opened
    from mixpanel_source.warehouse import tables as tables_of

    with opened(options.find_database()) as connection:
        write_rows(["table", "rows", "columns"], map(astuple, tables_of(connection)), options.output)


@command
def schema(
    options: GlobalOptions, table: Annotated[str, typer.Argument(help="A name that mpload tables lists.")]
) -> None:
    """The columns of a table, with their types.

    \b
    mpload schema events
    """
    from mixpanel_source.warehouse import opened
    from mixpanel_source.warehouse import schema as schema_of

    with opened(options.find_database()) as connection:
        write_rows(["column", "type"], schema_of(connection, table), options.output)


@command
def info(options: GlobalOptions) -> None:
    """Where everything is: the file, the data folder, what dlt keeps; and the versions in use.

    \b
    mpload info
    """
    from mixpanel_source.status import info as info_of

    write_record(info_of(options.find_database(), options.find_project_id()), options.output)


app.add_typer(discovery.group)  # without a name: its commands are the app's own
app.add_typer(reports.group)
app.add_typer(auth.group)
app.add_typer(fetch.group)
command(fetch.drop)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command and exits with its code. Every error is told here."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _open_closed_streams() -> None:
    """Where the shell closed a stream (`>&-`), nobody reads it, or it is empty.

    Else the next file opened, the database for one, gets its number, and whatever writes to it writes into the file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


def _run(arguments: list[str]) -> int:
    as_json = _wants_json(arguments)
    options = GlobalOptions(errors_as_json=as_json)
    try:
        # Not in Typer's standalone mode: it reports errors in its own way, and with its own codes.
        code = get_command(app).main(arguments or ["--help"], prog_name=PROGRAM, standalone_mode=False, obj=options)
        sys.stdout.flush()
        if code != exit_codes.INTERRUPTED:  # Typer's way to tell of Ctrl-C
            return code or exit_codes.SUCCESS
    except MixpanelDataError as error:
        code = exit_codes.exit_code(error)
        report(type(error).__name__, error.message, error.hint, code, as_json=as_json)
        return code
    except (NobodyReadsError, BrokenPipeError):
        _write_nothing_more()
        return exit_codes.SUCCESS
    except (KeyboardInterrupt, typer.Abort):
        pass
    except _ClickError as error:
        hint = f"see {error.ctx.command_path} --help" if getattr(error, "ctx", None) else f"see {PROGRAM} --help"
        report("UsageError", error.format_message(), hint, exit_codes.USAGE, as_json=as_json)
        return exit_codes.USAGE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _write_nothing_more()
            message = f"cannot write {error.filename or 'the output'}: {error.strerror}"
            report(type(error).__name__, message, "free some space", exit_codes.GENERAL, as_json=as_json)
            return exit_codes.GENERAL
        if options.verbose:
            import traceback

            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        message = f"internal error: {type(error).__name__}: {error}"
        report("InternalError", message, "--verbose tells where", exit_codes.GENERAL, as_json=as_json)
        return exit_codes.GENERAL
    report("Interrupted", "interrupted", None, exit_codes.INTERRUPTED, as_json=as_json)
    return exit_codes.INTERRUPTED


def _write_nothing_more() -> None:
    """For Python's own flush at its end, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether json was asked for by name: known even where the arguments cannot be understood."""
    format_ = os.environ.get("MP_FORMAT", "")
    for argument, following in pairwise([*arguments, ""]):
        if argument in ("--format", "-f"):
            format_ = following
        elif argument.startswith("--format="):
            format_ = argument.removeprefix("--format=")
        elif argument.startswith("-f"):
            format_ = argument.removeprefix("-f")
    return format_.lower() == Format.JSON
