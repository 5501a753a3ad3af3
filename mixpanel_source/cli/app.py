"""`mpload`: options -> one library call -> output. What a command needs is imported when it runs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from mixpanel_source import settings
from mixpanel_source.cli import auth, completion, discovery, exit_codes, fetch, plan, reports
from mixpanel_source.cli.forget import forget
from mixpanel_source.cli.global_options import GlobalOptions, commands_of, takes_global_options
from mixpanel_source.cli.load import load
from mixpanel_source.cli.load_options import Dataset, Destination, find_target
from mixpanel_source.cli.messages import PROGRAM, log_exception, logs_json_to_stderr, note, redacted, report
from mixpanel_source.cli.output import (
    Format,
    NobodyReadsError,
    write_record,
    write_rows,
    write_value,
)
from mixpanel_source.cli.verify import verify
from mixpanel_source.errors import AuthenticationError, ConfigError, MixpanelDataError, TableNotFoundError

if TYPE_CHECKING:
    import duckdb

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


command(load)
command(plan.plan)
command(verify)


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
def init(
    options: GlobalOptions,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Made where there is none.")] = Path(),
    airflow: Annotated[bool, typer.Option("--airflow", help="With DAGs for Airflow.")] = False,
    dagster: Annotated[bool, typer.Option("--dagster", help="With assets for Dagster.")] = False,
) -> None:
    """Write a dlt project: a pipeline script, its settings and requirements. It loads the sandbox's data as it is.

    What is there already is never overwritten: then nothing is written.

    \b
    mpload init my_project
    mpload sandbox --port 8321                              in another terminal
    cd my_project && python mixpanel_pipeline.py && dlt pipeline mixpanel info
    """
    from mixpanel_source.new_project import SCRIPT, init_project

    written = init_project(folder, airflow=airflow, dagster=dagster)
    write_rows(["file", "holds"], ((str(file.path), file.holds) for file in written), options.output)
    options.say(
        f"to see it work: mpload sandbox --port {settings.SANDBOX_PORT}; in another terminal, in {folder.absolute()}: "
        f"python {SCRIPT}"
    )


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

    with open_sandbox(
        folder or demo_folder(),
        port,
        project_id=options.project or "1",
        project_timezone=project_timezone,
        legacy_local_time=legacy_local_time,
        now=parse_moment("--now", now),
        limits=not no_limits,
    ) as server:
        note(f"a local Mixpanel at {server.url}; Ctrl-C ends it. To use it:")
        for name, value in environment(server).items():
            print(f"export {name}={value}", file=sys.stderr, flush=True)
        server.wait()


@command
def status(
    options: GlobalOptions,
    max_days_behind: Annotated[
        int, typer.Option(metavar="DAYS", min=0, help="So many days without events at the end are not wrong.")
    ] = settings.MAX_DAYS_BEHIND,
    destination: Destination = None,
    dataset: Dataset = None,
) -> None:
    """What is loaded, what is missing, and how many requests are left. Answers while a load is running, too.

    Exits with 1 where something is wrong: a load that failed, days missing between others or at the end, loaded before
    they were over, or changed since. For a monitor.

    \b
    mpload status
    mpload status --format json | jq .days_behind
    mpload status --destination postgres
    """
    from mixpanel_source.cli.pages import write_status
    from mixpanel_source.project import project_of
    from mixpanel_source.status import status as status_of

    try:
        project = project_of(options.find_account())
    except AuthenticationError as error:
        options.say(f"{error.message}: the requests that are left are not known")
        project = None
    found = status_of(find_target(options, destination, dataset), project, max_days_behind=max_days_behind)
    if found.problem:
        options.say(found.problem)
    write_status(found, options.output)
    if found.wrong:
        raise typer.Exit(exit_codes.GENERAL)


LakeOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Ask ducklake, as dlt's config has it, instead of the file.")
]
DatasetOption = Annotated[str, typer.Option(metavar="NAME", help="With --destination: the dataset there.")]


@command
def sql(
    options: GlobalOptions,
    query: Annotated[str | None, typer.Argument(help="SQL in DuckDB's dialect; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the SQL from a file.")] = None,
    scalar: Annotated[bool, typer.Option("--scalar", help="Print the one value of the answer as it is.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Allow the SQL to change the database.")] = False,
    destination: LakeOption = None,
    dataset: DatasetOption = settings.DATASET,
) -> None:
    """Ask the loaded data in SQL. The tables are found by their bare names; nothing is changed without --write.

    In JSON, columns of type JSON are nested, numbers keep every digit, moments are ISO 8601, BLOBs are base64, and NaN
    and Infinity are null.

    \b
    mpload sql 'SELECT event_name, count(*) AS events FROM events GROUP BY ALL'
    mpload sql --scalar 'SELECT max(event_time) FROM events'
    mpload sql --file report.sql --format csv > report.csv
    """
    from mixpanel_source.warehouse import only_value, query_stream

    text = _sql_text(query, file)
    with _asked(options, destination, dataset, write) as (connection, _):
        answer = query_stream(connection, text)
        if scalar:
            write_value(*only_value(answer))
        else:
            options.write(answer.columns, answer.rows, answer.types)


@contextmanager
def _asked(
    options: GlobalOptions, destination: str | None, dataset: str, write: bool = False
) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """A connection to the file or the lake, and the schema there."""
    if destination is None:
        from mixpanel_source.warehouse import opened

        with opened(options.find_database(), write=write) as connection:
            yield connection, settings.DATASET
        return
    from mixpanel_source.destination_sql import lake_asked

    if write:
        raise ConfigError("--write is for DuckDB files", hint="leave out --write, or --destination")
    with lake_asked(destination, dataset) as asked:
        yield asked


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
def tables(
    options: GlobalOptions,
    typed: Annotated[
        bool, typer.Option("--typed", help="Those of each event, with a column for each property.")
    ] = False,
    destination: LakeOption = None,
    dataset: DatasetOption = settings.DATASET,
) -> None:
    """The tables that are loaded, with their rows and columns.

    \b
    mpload tables
    mpload tables --typed
    """
    from mixpanel_source.warehouse import tables as tables_of

    with _asked(options, destination, dataset) as (connection, schema_name):
        if typed:
            from mixpanel_source.typed import typed_tables

            write_rows(["table", "event", "rows"], typed_tables(connection, schema_name), options.output)
            return
        write_rows(["table", "rows", "columns"], map(astuple, tables_of(connection, schema_name)), options.output)


@command
def schema(
    options: GlobalOptions,
    table: Annotated[
        str, typer.Argument(help="A name that mpload tables lists, or an event's.", autocompletion=completion.tables)
    ],
    destination: LakeOption = None,
    dataset: DatasetOption = settings.DATASET,
) -> None:
    """The columns of a table, with their types; or the properties of an event, with their columns in its typed table.

    \b
    mpload schema events
    mpload schema 'Order Placed'
    """
    from mixpanel_source.warehouse import schema as schema_of

    with _asked(options, destination, dataset) as (connection, schema_name):
        try:
            columns = schema_of(connection, table, schema_name)
        except TableNotFoundError as missing:
            _write_typed_schema(connection, schema_name, table, missing, options)
        else:
            write_rows(["column", "type"], columns, options.output)


def _write_typed_schema(
    connection: duckdb.DuckDBPyConnection,
    schema_name: str,
    event: str,
    missing: TableNotFoundError,
    options: GlobalOptions,
) -> None:
    """Of an event; where there is none either, it is as if a table was asked for."""
    from mixpanel_source.property_columns import EVENT_COLUMNS, table_name
    from mixpanel_source.typed import typed_columns

    try:
        found = typed_columns(connection, event, schema_name)
    except TableNotFoundError:
        raise missing from None
    options.say(f"the columns of {table_name(event)}, the typed table of {event!r}")
    shared = [(name, type_, None, None, None) for name, type_ in EVENT_COLUMNS]
    of_properties = [(one.column, one.type, one.name, ", ".join(one.json_types), one.rows) for one in found]
    write_rows(["column", "type", "property", "json_types", "rows"], [*shared, *of_properties], options.output)


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
command(forget)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command and exits with its code. Every error is told here."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
    if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:
        # Typer folds what it says of an option to the terminal's width, and fish takes each line for a value.
        os.environ["COLUMNS"] = "1000"
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if code == exit_codes.INTERRUPTED and arguments is None:
        # Python would wait for what another thread is writing, and whatever is stopped there is undone.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


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

            if logs_json_to_stderr():
                log_exception("an internal error")
            else:
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
    """Whether json was asked for by name, of data or the log: known even where the arguments cannot be understood."""
    return Format.JSON in (
        _given(arguments, "MP_FORMAT", "--format", "-f"),
        _given(arguments, "MP_LOG_FORMAT", "--log-format"),
    )


def _given(arguments: Sequence[str], variable: str, flag: str, short: str | None = None) -> str:
    """The last value of an option, in lower case."""
    value = os.environ.get(variable, "")
    for argument, following in pairwise([*arguments, ""]):
        if argument in (flag, short):
            value = following
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        elif short is not None and argument.startswith(short):
            value = argument.removeprefix(short)
    return value.lower()
