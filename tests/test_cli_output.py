"""What each command writes in each format, read by what users pipe it into: jq, Python's csv module, DuckDB."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import NO_LIMITS, NOW
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from mpload_here import Done, run
from rich.cells import cell_len
from typer.main import get_command

from mixpanel_source import settings
from mixpanel_source.cli import app, demo
from mixpanel_source.cli.output import Format, write_rows
from mixpanel_source.progress import NoProgress
from mixpanel_source.sandbox import Sandbox, SandboxServer

pytestmark = pytest.mark.long

TENTH = 1710064800  # 2024-03-10 10:00 UTC
SPAN = ("--from", "2024-03-10", "--to", "2024-03-11")

SECRET = "pl4nted-secret"
ODD = 'Pay, "now"\nor later; é'
"""A name that every format has to take care of."""


def event(name: str, user: str, moment_s: int, **properties: Any) -> dict[str, Any]:
    return {"event": name, "properties": {"time": moment_s * 1000, "distinct_id": user, **properties}}


EVENTS = [
    event("Visit", "u", TENTH, plan="pro", n=2, nested={"a": [1, 2.5, None, True], "b": {"c": 'x,"y"\n'}}),
    event("Visit", "w", TENTH, plan="a, b", n=3),
    event("Visit", "v", TENTH, plan="", n=3.5),
    event(ODD, "u", TENTH + 600, plan="\t tab; 'quoted' ` $x \\"),
    event("Visit", "u", TENTH + 86_400, plan="pro", n=4),
]

PROFILES = [
    {"$distinct_id": "u", "$properties": {"$name": 'Zoë "Z", O\'Neil', "$last_seen": "2024-03-10T10:00:00"}},
    {"$distinct_id": "w", "$properties": {"tags": ["a", None, {"b": 1}]}},
]

JQL_ROWS = [
    {"name": ODD, "count": 3, "share": 0.5, "list": [1, "a", None], "object": {"k": {"l": []}}, "none": None},
    {"name": "", "count": 2**53, "other": True},
    "bare",
]

TYPES_SQL = """
    SELECT NULL AS nothing, true AS yes, 7 AS n, 1.20::DECIMAL(9, 2) AS price, '' AS empty,
           'a\\xFF'::BLOB AS blob, DATE '2024-01-31' AS day, TIMESTAMPTZ '2024-01-31 12:00:00.5+02' AS moment,
           INTERVAL '-36 hours' AS span, '{"a": [1, {"b": null}]}'::JSON AS json, [1, NULL] AS list, {'a': 'x,y'} AS
           struct, 1 AS twice, 2 AS twice, ' "odd", ' || chr(10) || chr(9) || 'é' AS "odd, ""name"" é"
"""


@dataclass(frozen=True)
class Case:
    """A way to call a command, with {format} where its format is named.

    `rows` is how many it writes, None for one object. `same` is false where a run differs from the next one, `in_words`
    where a table says it in other words.
    """

    arguments: Sequence[str]
    rows: int | None
    same: bool = True
    in_words: bool = False
    stdin: str = ""


CASES = {
    "load": Case(("events", "cohorts", *SPAN), 2, same=False),
    "plan": Case(SPAN, None, same=False, in_words=True),
    "verify": Case((*SPAN, "--all"), 3),
    "demo": Case((), None, in_words=True),
    "init": Case(("{home}/project_{format}",), 5, same=False),
    "status": Case(("--max-days-behind", "99999"), None, same=False, in_words=True),
    "sql": Case((TYPES_SQL,), 1),
    "tables": Case((), 16, same=False),
    "schema": Case(("events",), 12),
    "info": Case((), None),
    "events": Case((), 2),
    "properties": Case(("Visit",), 3),
    "values": Case((ODD, "plan"), 1),
    "funnels": Case((), 1),
    "cohorts": Case((), 1),
    "bookmarks": Case((), 2),
    "projects": Case((), 1),
    "segmentation": Case(("--event", "Visit", *SPAN, "--on", "plan"), 6),
    "funnel": Case(("7", *SPAN, "--on", "plan"), 12),
    "retention": Case(("--born", "Visit", *SPAN), 4),
    "frequency": Case(("--event", "Visit", *SPAN), 48),
    "insights": Case(("3",), 4),
    "event-counts": Case(("--event", "Visit", "--event", ODD, *SPAN), 3),
    "property-counts": Case((ODD, "plan", *SPAN), 1),
    "activity": Case(("u", *SPAN), 3),
    "jql": Case(("--code", "main()"), 3),
    "auth list": Case((), 6, same=False),
    "auth add": Case(
        ("new_{format}", "--username", "sandbox", "--project", "1", "--region", "us", "--secret-stdin"),
        None,
        same=False,
        stdin=SECRET,
    ),
    "auth show": Case((), None),
    "auth switch": Case(("main",), None),
    "auth test": Case((), None),
    "auth remove": Case(("old_{format}",), None, same=False),
    "fetch events": Case(("events_{format}", *SPAN, "--event", ODD), None, same=False),
    "fetch profiles": Case(("profiles_{format}",), None, same=False),
    "drop": Case(("old_{format}", "older_{format}", "--force"), 2, same=False),
    "forget": Case(("nobody", "--force"), None, same=False),
}

WITHOUT_OUTPUT = {"sandbox": "serves until it is stopped, and tells its address on stderr"}


def commands(group: Any, *names: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name))


COMMANDS = list(commands(get_command(app.app)))


def prepare(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        patch.setenv(name, value)
    patch.setattr(logging, "lastResort", logging.lastResort)  # mpload sets both
    patch.setenv("RUNTIME__LOG_LEVEL", "CRITICAL")
    for family in NO_LIMITS:
        patch.setitem(settings.LIMITS, family, NO_LIMITS[family])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """That of an account, two days of whose project are loaded, with some snapshots."""
    home = tmp_path_factory.mktemp("home")
    sandbox = Sandbox(secret=SECRET, now=NOW, limits=False)
    sandbox.add_events(EVENTS)
    sandbox.set_profiles(PROFILES)
    sandbox.set_funnels([{"funnel_id": 7, "name": ODD, "steps": [{"event": "Visit", "label": ODD}, ODD]}])
    sandbox.set_cohorts([{"id": 5, "name": ODD, "members": ["u"]}])
    query = {"events": ["Visit", ODD], "from_date": "2024-03-10", "to_date": "2024-03-11"}
    sandbox.set_bookmarks([{"id": 3, "name": ODD, "query": query}, {"id": 4, "type": "funnels"}])
    sandbox.set_jql("main()", JQL_ROWS)
    account = f'username = "sandbox"\nsecret = "{SECRET}"\nproject_id = "1"\nregion = "us"\n'
    config = home / "config.toml"
    names = ("main", *(f"old_{format_}" for format_ in Format))
    accounts = "".join(f"[accounts.{name}]\n{account}" for name in names)
    wrong = f"[accounts.wrong]\n{account}".replace(SECRET, "wr0ng-secret")
    config.write_text(f'default = "main"\n{accounts}{wrong}')
    config.chmod(0o600)
    with SandboxServer(sandbox) as server, pytest.MonkeyPatch.context() as patch:
        environment = {
            "HOME": str(home),
            "MP_DATA_DIR": str(home / "data"),
            "MP_CONFIG_PATH": str(config),
            "MP_BASE_URL": server.url,
        }
        prepare(patch, environment)
        for arguments in (
            ("load", *SPAN),
            ("fetch", "profiles", "taken"),
            *(("fetch", "profiles", f"{age}_{format_}") for format_ in Format for age in ("old", "older")),
        ):
            done = run(arguments)
            assert done.code == 0, done.err
        # One load of a month is enough for all formats.
        run_demo = demo.run_demo
        once = functools.cache(lambda: run_demo(NoProgress(), lambda *_: None))
        patch.setattr(demo, "run_demo", lambda *_: once())
        yield environment


@pytest.fixture
def mpload(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    prepare(monkeypatch, environment)
    return run


Files = Mapping[Format, Path]


@pytest.fixture(scope="module")
def written(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """The files that hold what a command wrote, which is run once in each format."""
    folder = tmp_path_factory.mktemp("written")

    @functools.cache
    def write(command: str) -> Files:
        case, files = CASES[command], {}
        with pytest.MonkeyPatch.context() as patch:
            prepare(patch, environment)
            for format_ in Format:
                named = {"{format}": format_, "{home}": environment["HOME"]}
                arguments = [
                    functools.reduce(lambda text, name: text.replace(name, named[name]), named, argument)
                    for argument in case.arguments
                ]
                done = run([*command.split(), *arguments, "--format", format_], case.stdin)
                assert done.code == 0, done.err
                files[format_] = folder / f"{command}.{format_}"
                files[format_].write_bytes(done.out.encode())
        return files

    return write


def strict_json(text: str) -> Any:
    """Without NaN and Infinity, which Python takes; a key that comes twice is an error."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), f"a key comes twice: {pairs}"
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def text_of(path: Path) -> str:
    return path.read_bytes().decode()


def objects_of(files: Files) -> list[dict[str, Any]]:
    """What the JSON holds; the object alone where it is one."""
    found = strict_json(text_of(files[Format.JSON]))
    return found if isinstance(found, list) else [found]


def says(text: str | None, value: Any) -> bool:
    """Whether a cell of CSV, None for NULL, holds a value of JSON."""
    if value is None or isinstance(value, str):
        return text == value
    return text is not None and strict_json(text) == value  # every number, too: 1.20 and 1.2 are the same


def test_every_command_has_a_case_here_or_a_reason_why_not() -> None:
    assert set(COMMANDS) == {*CASES, *WITHOUT_OUTPUT}


@pytest.mark.parametrize("command", CASES)
def test_jsonl_is_the_json_line_by_line(command: str, written: Callable[[str], Files]) -> None:
    files, case = written(command), CASES[command]
    found = strict_json(text_of(files[Format.JSON]))
    assert (isinstance(found, list), len(objects_of(files))) == (case.rows is not None, case.rows or 1)
    lines = text_of(files[Format.JSONL]).removesuffix("\n").split("\n")
    objects = [strict_json(line) for line in lines]
    if case.same:
        assert objects == objects_of(files)
    assert [one.keys() for one in objects] == [one.keys() for one in objects_of(files)]


@pytest.mark.parametrize("command", CASES)
def test_jq_reads_json_and_jsonl(command: str, written: Callable[[str], Files]) -> None:
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("there is no jq: apt-get install jq, or brew install jq")

    def read(program: str, path: Path) -> list[Any]:
        done = subprocess.run([jq, "-c", program, str(path)], capture_output=True, encoding="utf-8", check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    files, case = written(command), CASES[command]
    assert read("." if case.rows is None else ".[]", files[Format.JSON]) == objects_of(files)
    lines = text_of(files[Format.JSONL]).splitlines()
    assert read(".", files[Format.JSONL]) == [json.loads(line) for line in lines]


@pytest.mark.parametrize("command", CASES)
def test_the_csv_module_reads_csv(command: str, written: Callable[[str], Files]) -> None:
    files, case = written(command), CASES[command]
    expected = objects_of(files)
    with files[Format.CSV].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, restkey="more", restval="less", strict=True))
    assert [list(row) for row in rows] == [list(one) for one in expected]
    if case.same:
        for row, one in zip(rows, expected, strict=True):
            for text, value in zip(row.values(), one.values(), strict=True):
                assert says(text, "" if value is None else value)


NUMBERS = {"BIGINT", "UBIGINT", "HUGEINT", "DOUBLE"}


def right_type(values: Iterable[Any], type_: str, *, of_json: bool) -> bool:
    """Whether DuckDB took a column, by itself, for what its values are."""
    kinds = {bool if isinstance(value, bool) else type(value) for value in values if value is not None}
    if kinds == {bool}:
        return type_ == "BOOLEAN"
    if kinds and kinds <= {int, float}:
        return type_ in NUMBERS
    if not of_json or kinds != {str}:
        return True  # of mixed kinds, or what CSV can only hold as text
    return type_ not in NUMBERS


@pytest.mark.parametrize("command", CASES)
def test_duckdb_reads_json_jsonl_and_csv(command: str, written: Callable[[str], Files]) -> None:
    files, case = written(command), CASES[command]
    expected = objects_of(files)
    json_columns = ", ".join(f"{quoted(name)}: 'JSON'" for name in expected[0])
    to_the_letter = {
        Format.JSON: f"columns={{{json_columns}}}",
        Format.JSONL: f"columns={{{json_columns}}}",
        Format.CSV: "all_varchar=true, allow_quoted_nulls=false",
    }
    for format_, options in to_the_letter.items():
        of_json = format_ is not Format.CSV
        source = f"{'read_json' if of_json else 'read_csv'}('{files[format_]}'"
        with duckdb.connect() as connection:
            by_itself = connection.sql(f"FROM {source})")
            assert by_itself.columns == list(expected[0])
            assert len(by_itself.fetchall()) == len(expected)
            for name, type_ in zip(by_itself.columns, by_itself.types, strict=True):
                assert right_type((one[name] for one in expected), str(type_), of_json=of_json), (name, type_)
            if case.same:
                rows = connection.sql(f"FROM {source}, {options})").fetchall()
                for row, one in zip(rows, expected, strict=True):
                    for text, value in zip(row, one.values(), strict=True):
                        assert (strict_json(text or "null") == value) if of_json else says(text, value)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("command", CASES)
def test_a_table_is_for_eyes(command: str, written: Callable[[str], Files]) -> None:
    files, case = written(command), CASES[command]
    text = text_of(files[Format.TABLE])
    assert all(line.isprintable() for line in text.splitlines())
    if case.in_words:
        return
    assert max(map(cell_len, text.splitlines())) <= 160
    for one in objects_of(files) if case.same else ():
        for name, value in one.items():
            shown = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for line in (*name.splitlines(), *shown.splitlines()):
                if len(line) <= 25:
                    assert line.strip() in text


TEXTS = st.text(st.sampled_from(list(",;|\t\"'\\#\r\n :-$[{a1é")), max_size=8)


@examples(max_examples=40)
@given(
    rows=st.lists(st.lists(st.none() | TEXTS, min_size=3, max_size=3), min_size=1, max_size=4),
    columns=st.integers(1, 3),
)
def test_csv_of_any_text_is_read_back_to_the_letter(rows: list[list[str | None]], columns: int) -> None:
    names = ["value", "a name", "c"][:columns]
    rows = [row[:columns] for row in rows]
    with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="", encoding="utf-8") as file:
        with contextlib.redirect_stdout(file):
            write_rows(names, rows, Format.CSV)
        with Path(file.name).open(encoding="utf-8", newline="") as again:
            assert list(csv.reader(again, strict=True)) == [names, *([text or "" for text in row] for row in rows)]
        with duckdb.connect() as connection:
            answer = connection.sql(f"FROM {csv_for_duckdb(file.name)}")
            assert answer.columns == names
            # Of one column, NULL has to be "": an empty line would be no row.
            expected = rows if columns > 1 else [[text or ""] for (text,) in rows]
            assert [list(row) for row in answer.fetchall()] == expected


def csv_for_duckdb(path: str) -> str:
    """As README says, and all as text."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    (query,) = (line.strip() for line in readme.splitlines() if "read_csv('events.csv'" in line)
    return query.partition("FROM ")[2].replace("events.csv", path).removesuffix(")") + ", all_varchar=true)"


def test_of_one_column_null_is_a_row_and_of_none_there_is_no_line(mpload: Callable[..., Done]) -> None:
    assert mpload(["sql", "SELECT unnest([NULL, 'a', ''])", "-f", "csv"]).out.split("\r\n")[1:] == ['""', "a", '""', ""]
    assert mpload(["sql", "-- nothing", "-f", "csv"]).out == ""


def test_what_json_has_no_number_for_is_null_there_and_itself_in_csv(mpload: Callable[..., Done]) -> None:
    query = "SELECT 'nan'::DOUBLE AS a, '-inf'::DOUBLE AS b, ['inf'::FLOAT] AS c"
    assert mpload(["sql", query, "-f", "jsonl"]).out == '{"a": null, "b": null, "c": [null]}\n'
    assert mpload(["sql", query, "-f", "csv"]).out == "a,b,c\r\nnan,-inf,[null]\r\n"


@pytest.mark.parametrize("length", ["1 microsecond", "-1 second", "36 hours", "-36 hours", "0 days", "400 days"])
def test_duckdb_reads_an_interval_back(length: str, mpload: Callable[..., Done]) -> None:
    written = mpload(["sql", "--scalar", f"SELECT INTERVAL '{length}'"]).out.strip()
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT INTERVAL '{written}' = INTERVAL '{length}'").fetchall() == [(True,)]


# --- mistakes

MISTAKES = [
    ("load nothing", 3, "ConfigError"),
    ("load group_profiles", 3, "ConfigError"),
    ("load cohort_members --cohort 99", 4, "EntityNotFoundError"),
    ("load cohorts --cohort 5", 3, "ConfigError"),
    ("load cohorts --db .", 3, "ConfigError"),
    ("load cohorts --db {config}", 1, "WarehouseError"),
    ("load --lookback-days few", 3, "UsageError"),
    ("load --accounts nobody", 4, "AccountNotFoundError"),
    ("load --all-accounts --project 7", 3, "ConfigError"),
    ("load --all-accounts --accounts main", 3, "ConfigError"),
    ("plan --from never", 3, "ConfigError"),
    ("plan --db {config}", 1, "WarehouseError"),
    ("plan --simulate --days 7", 3, "ConfigError"),
    ("plan --simulate --events-per-day 1 --days 0", 3, "ConfigError"),
    ("plan --simulate --events-per-day 1 --days 7 --failing 1", 3, "ConfigError"),
    ("plan --simulate --events-per-day 1 --days 7 --start-s -1", 3, "ConfigError"),
    ("plan --simulate --events-per-day 1 --days 7 --from 2024-03-10", 3, "ConfigError"),
    ("plan --days 7", 3, "ConfigError"),
    ("plan --destination clickhouse", 3, "ConfigError"),
    ("plan --simulate --destination postgres", 3, "ConfigError"),
    ("verify --from 2024-03-11 --to 2024-03-10", 3, "ConfigError"),
    ("verify --event=", 3, "ConfigError"),
    ("verify {span} --account wrong", 2, "AuthenticationError"),
    ("verify --db {missing}", 1, "WarehouseError"),
    ("verify --dataset other", 3, "ConfigError"),
    ("demo now", 3, "UsageError"),
    ("init {config}", 1, "WarehouseError"),
    ("sandbox {missing}", 3, "ConfigError"),
    ("sandbox --now noon", 3, "ConfigError"),
    ("sandbox --port 99999", 3, "UsageError"),
    ("sandbox --port {port}", 1, "MixpanelDataError"),
    ("status --account nobody", 4, "AccountNotFoundError"),
    ("status --db {config}", 1, "WarehouseError"),
    ("status --dataset other", 3, "ConfigError"),
    ("status --destination clickhouse", 3, "ConfigError"),
    ("sql --db {missing} x", 1, "WarehouseError"),
    ("sql", 3, "ConfigError"),
    ("sql --file {missing}", 3, "ConfigError"),
    ("sql --scalar VALUES(1),(2)", 1, "QueryError"),
    ("sql SELECT(", 1, "QueryError"),
    ("tables --db {missing}", 1, "WarehouseError"),
    ("tables events", 3, "UsageError"),
    ("schema", 3, "UsageError"),
    ("schema nothing", 4, "TableNotFoundError"),
    ("info --project x", 3, "ConfigError"),
    ("events --limit 0", 3, "UsageError"),
    ("events --account nobody", 4, "AccountNotFoundError"),
    ("properties Nothing", 4, "EntityNotFoundError"),
    ("values Nothing plan", 4, "EntityNotFoundError"),
    ("values Visit", 3, "UsageError"),
    ("funnels --fresh --account wrong", 2, "AuthenticationError"),
    ("cohorts --fresh --account wrong", 2, "AuthenticationError"),
    ("bookmarks --fresh --account wrong", 2, "AuthenticationError"),
    ("projects --fresh --account wrong", 2, "AuthenticationError"),
    ("segmentation --event Visit {span} --math sum", 3, "ConfigError"),
    ("segmentation --event Visit {span} --limit many", 3, "UsageError"),
    ("funnel 99 {span}", 4, "EntityNotFoundError"),
    ("funnel 7", 3, "UsageError"),
    ("retention --born Visit --from 2024-03-11 --to 2024-03-10", 3, "ConfigError"),
    ("frequency {span} --unit year", 3, "ConfigError"),
    ("insights 99", 4, "EntityNotFoundError"),
    ("insights Visits", 3, "UsageError"),
    ("event-counts --last 7", 3, "UsageError"),
    ("event-counts --event Visit --last 0", 3, "ConfigError"),
    ("property-counts Visit plan {span} --last 7", 3, "ConfigError"),
    ("activity {span}", 3, "UsageError"),
    ("jql --code throw", 1, "QueryError"),
    ("jql {missing}", 3, "ConfigError"),
    ("auth list main", 3, "UsageError"),
    ("auth add new --project 1", 3, "ConfigError"),
    ("auth add main --username x --project 1 --region us --secret-stdin", 1, "AccountExistsError"),
    ("auth add new --project 1 --kind password", 3, "ConfigError"),
    ("auth add new --username x --region us --secret-stdin", 3, "ConfigError"),
    ("auth remove nobody", 4, "AccountNotFoundError"),
    ("auth switch nobody", 4, "AccountNotFoundError"),
    ("auth show nobody", 4, "AccountNotFoundError"),
    ("auth test nobody", 4, "AccountNotFoundError"),
    ("auth test wrong", 2, "AuthenticationError"),
    ("fetch events taken {span}", 1, "TableExistsError"),
    ("fetch events", 3, "ConfigError"),
    ("fetch events a-b {span}", 3, "ConfigError"),
    ("fetch profiles taken", 1, "TableExistsError"),
    ("fetch profiles events", 3, "ConfigError"),
    ("drop", 3, "ConfigError"),
    ("drop taken", 3, "ConfigError"),
    ("drop taken --all --force", 3, "ConfigError"),
    ("drop events --force", 3, "ConfigError"),
    ("drop nothing --force", 4, "TableNotFoundError"),
    ("drop --all --type cohorts --force", 3, "UsageError"),
    ("forget", 3, "ConfigError"),
    ("forget nobody", 3, "ConfigError"),
    ("forget --file {missing} --force", 3, "ConfigError"),
    ("forget nobody --force --db {missing}", 1, "WarehouseError"),
]


@pytest.mark.parametrize(("line", "code", "error"), MISTAKES)
def test_a_mistake_is_told_as_one_json_object(
    line: str, code: int, error: str, mpload: Callable[..., Done], environment: dict[str, str]
) -> None:
    words = {
        "config": environment["MP_CONFIG_PATH"],
        "missing": f"{environment['HOME']}/missing",
        "port": environment["MP_BASE_URL"].rpartition(":")[2],
        "span": " ".join(SPAN),
    }
    done = mpload([*line.format_map(words).split(), "--format", "json"], SECRET)
    told = strict_json(done.err.splitlines()[-1])
    assert (done.code, told["code"], told["error"]) == (code, code, error)
    assert list(told) == ["error", "code", "message", "hint"]
    assert "\n" not in told["message"]
    assert SECRET not in done.out + done.err


def test_every_command_has_a_mistake_here() -> None:
    assert {command for command in COMMANDS if not any(line.startswith(command) for line, *_ in MISTAKES)} == set()
