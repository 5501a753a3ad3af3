"""Discovery and live reports as the users of `mpload` meet them."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from ledger_requests import free_permit

from mixpanel_source.cli import app
from mixpanel_source.rate_limit import Permit, RequestLedger
from mixpanel_source.sandbox import Sandbox, SandboxServer

ROOT = Path(__file__).parent.parent
SECRET = "pl4nted-secret"

Run = Callable[..., Any]


def event(name: str, user: str, moment_s: int, **properties: Any) -> dict[str, Any]:
    return {"event": name, "properties": {"time": moment_s * 1000, "distinct_id": user, **properties}}


DAY = 86_400
TENTH = 1710064800  # 2024-03-10 10:00 UTC

EVENTS = [
    event("Visit", "u", TENTH, plan="pro", n=2),
    event("Visit", "w", TENTH, plan="free", n=3),
    event("Pay", "u", TENTH + 600),
    event("Visit", "u", TENTH + DAY, plan="pro", n=4),
]


@pytest.fixture
def account(
    sandbox: Sandbox, server: SandboxServer, clock: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment of a project with some of everything; it is 12:00 UTC of 2024-03-11."""
    sandbox.secret = SECRET
    sandbox.add_events(EVENTS)
    sandbox.set_funnels([{"funnel_id": 7, "name": "Buy", "steps": ["Visit", "Pay"]}])
    sandbox.set_cohorts([{"id": 5, "name": "Payers", "members": ["u"], "description": "Zoë's"}])
    query = {"events": ["Visit"], "from_date": "2024-03-10", "to_date": "2024-03-11"}
    sandbox.set_bookmarks([{"id": 3, "name": "Visits", "query": query}, {"id": 4, "type": "funnels"}])
    sandbox.set_jql("main()", [{"name": "Visit", "count": 3}])
    sandbox.set_jql("main(params)", lambda params: [params])
    values = {"USERNAME": "sandbox", "SECRET": SECRET, "PROJECT_ID": "1", "REGION": "us", "BASE_URL": server.url}
    environment = {f"MP_{name}": value for name, value in values.items()}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def run(account: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """mpload in this process."""
    monkeypatch.setenv("RUNTIME__LOG_LEVEL", "CRITICAL")

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as done:
            app.main(arguments)
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return subprocess.CompletedProcess(arguments, int(str(done.value.code)), out, err)

    return run


@pytest.fixture
def rows(run: Run) -> Callable[..., list[dict[str, Any]]]:
    """What a command that works prints as JSON."""

    def rows(*arguments: str) -> list[dict[str, Any]]:
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    return rows


Rows = Callable[..., list[dict[str, Any]]]
SPAN = ("--from", "2024-03-10", "--to", "2024-03-11")


# --- discovery


def test_exploring_twice_in_processes_of_their_own_spends_requests_once(
    account: dict[str, str], sandbox: Sandbox, tmp_path: Path
) -> None:
    def mpload(*arguments: str) -> tuple[Any, str]:
        environment = {**account, "HOME": str(tmp_path), "MP_DATA_DIR": str(tmp_path / "data")}
        done = subprocess.run(
            [sys.executable, "-m", "mixpanel_source.cli", *arguments],
            env={**environment, "PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    note = r"mpload: as it was \d+ seconds ago: --fresh asks Mixpanel again\n"
    for spent, said in ((3, ""), (3, note)):
        names, stderr = mpload("events")
        assert names == [{"event": "Pay"}, {"event": "Visit"}]
        assert re.fullmatch(said, stderr)
        assert mpload("properties", "Visit")[0] == [{"property": "n", "count": 3}, {"property": "plan", "count": 3}]
        assert mpload("values", "Visit", "plan")[0] == [{"value": "pro"}, {"value": "free"}]
        assert len(sandbox.requests) == spent
    assert mpload("events", "--fresh", "--quiet")[1] == ""
    assert len(sandbox.requests) == 4


def test_lists_have_their_columns(rows: Rows) -> None:
    assert rows("funnels") == [{"funnel_id": 7, "name": "Buy"}]
    (cohort,) = rows("cohorts")
    assert list(cohort) == ["id", "name", "description", "count", "created", "is_visible", "project_id"]
    assert (cohort["id"], cohort["description"], cohort["count"]) == (5, "Zoë's", 1)
    assert [(row["id"], row["name"], row["type"]) for row in rows("bookmarks")] == [
        (3, "Visits", "insights"),
        (4, "", "funnels"),
    ]
    assert [row["id"] for row in rows("bookmarks", "--type", "insights")] == [3]
    assert [(row["id"], row["timezone"]) for row in rows("projects")] == [("1", "UTC")]


def test_what_is_cut_off_or_unknown_is_told(run: Run) -> None:
    assert run("values", "Visit", "plan", "--limit", "1").stderr == (
        "mpload: there may be more than 1: --limit takes another number\n"
    )
    assert "no event 'Visit' has a property 'x'" in run("values", "Visit", "x").stderr
    unknown = run("properties", "Nothing", "-f", "json")
    assert unknown.returncode == 4
    error = json.loads(unknown.stderr.splitlines()[-1])
    assert (error["error"], error["code"]) == ("EntityNotFoundError", 4)
    assert run("events", "--limit", "0").returncode == 3


# --- live reports


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("segmentation", "--event", "Visit", *SPAN, "--on", "plan", "--where", 'properties["n"] > 2'),
            [["free", "2024-03-10", 1], ["free", "2024-03-11", 0], ["pro", "2024-03-10", 0], ["pro", "2024-03-11", 1]],
        ),
        (
            ("segmentation", "--event", "Visit", *SPAN, "--on", "n", "--math", "sum", "--unit", "day"),
            [["Visit", "2024-03-10", 5.0], ["Visit", "2024-03-11", 4.0]],
        ),
        (
            ("segmentation", "--event", "Visit", *SPAN, "--type", "unique", "--interval", "2"),
            [["Visit", "2024-03-10", 2]],
        ),
        (
            ("funnel", "7", "--from", "2024-03-10", "--to", "2024-03-10", "--length", "1", "--length-unit", "hour"),
            [
                ["2024-03-10", None, 1, "Visit", None, 2, 1, 1, None, None],
                ["2024-03-10", None, 2, "Pay", None, 1, 0.5, 0.5, 600, 600],
            ],
        ),
        (
            ("retention", "--born", "Visit", "--return", "Visit", *SPAN, "--intervals", "2", "--unit", "day"),
            [
                [None, "2024-03-10", 2, 0, 0],
                [None, "2024-03-10", 2, 1, 1],
                [None, "2024-03-10", 2, 2, 0],
                [None, "2024-03-11", 0, 0, 0],
                [None, "2024-03-11", 0, 1, 0],
                [None, "2024-03-11", 0, 2, 0],
            ],
        ),
        (
            ("retention", "--type", "compounded", "--return", "Pay", *SPAN, "--interval", "2", "--unbounded"),
            [[None, "2024-03-10", 1, 0, 0], [None, "2024-03-10", 1, 1, 0]],
        ),
        (
            ("frequency", *SPAN, "--unit", "week", "--addiction-unit", "day", "--event", "Visit"),
            [[None, "2024-03-04", n, users] for n, users in enumerate([2, 0, 0, 0, 0, 0, 0], 1)]
            + [[None, "2024-03-11", n, users] for n, users in enumerate([1, 0, 0, 0, 0, 0, 0], 1)],
        ),
        (
            ("insights", "3"),
            [[["Visit"], "2024-03-10T00:00:00+00:00", 2], [["Visit"], "2024-03-11T00:00:00+00:00", 1]],
        ),
        (
            ("event-counts", "--event", "Visit", "--event", "Pay", *SPAN),
            [["Visit", "2024-03-10", 2], ["Visit", "2024-03-11", 1], ["Pay", "2024-03-10", 1]],
        ),
        (("event-counts", "--event", "Visit", "--last", "1", "--unit", "month"), [["Visit", "2024-03-01", 3]]),
        (
            ("property-counts", "Visit", "plan", *SPAN, "--value", "pro", "--type", "unique"),
            [["pro", "2024-03-10", 1], ["pro", "2024-03-11", 1]],
        ),
        (
            ("activity", "w", *SPAN),
            [["Visit", TENTH, "w", {"plan": "free", "n": 3, "time": TENTH, "$distinct_id": "w"}]],
        ),
        (("jql", "--code", "main()"), [["Visit", 3]]),
        (
            ("jql", "--code", "main(params)", "--param", "from=2024-03-10", "--param", "n=5", "--param", 'l=["a"]'),
            [["2024-03-10", 5, ["a"]]],
        ),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, tuple) else "",
)
def test_a_report_is_its_rows(arguments: tuple[str, ...], expected: list[list[Any]], rows: Rows) -> None:
    # Segments of as many events come in the order of their names.
    assert [list(row.values()) for row in rows(*arguments)] == expected


def test_days_may_be_words_in_the_projects_own_zone(
    run: Run, sandbox: Sandbox, clock: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, account: dict[str, str]
) -> None:
    config = tmp_path / "config.toml"
    zone = 'project_timezone = "Pacific/Auckland"'  # where it is 2024-03-12 already
    table = f'username = "sandbox"\nsecret = "{SECRET}"\nproject_id = "1"\nregion = "us"\n{zone}\n'
    config.write_text(f"[accounts.nz]\n{table}")
    config.chmod(0o600)
    monkeypatch.setenv("MP_CONFIG_PATH", str(config))
    for name in ("MP_USERNAME", "MP_SECRET", "MP_PROJECT_ID", "MP_REGION"):
        monkeypatch.delenv(name)
    run("event-counts", "--event", "Visit", "--from", "yesterday", "--to", "today")
    (request,) = sandbox.requests
    assert (request.params["from_date"], request.params["to_date"]) == ("2024-03-11", "2024-03-12")


@pytest.mark.parametrize("arguments", [("events",), ("segmentation", "--event", "Visit", *SPAN), ("insights", "3")])
def test_every_format_holds_the_same_rows(arguments: tuple[str, ...], run: Run) -> None:
    found = json.loads(run(*arguments, "-f", "json").stdout)
    assert [json.loads(line) for line in run(*arguments, "-f", "jsonl").stdout.splitlines()] == found
    as_csv = list(csv.DictReader(io.StringIO(run(*arguments, "-f", "csv").stdout)))
    assert [row.keys() for row in as_csv] == [row.keys() for row in found]
    table = run(*arguments, "-f", "table").stdout
    for row in as_csv:
        for cell in row.values():
            assert cell in table


def test_without_rows_there_is_a_header_and_a_note(run: Run) -> None:
    done = run("event-counts", "--event", "Nothing", *SPAN, "-f", "csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "event,date,value\r\n", "mpload: nothing was found\n")


def test_a_script_comes_from_a_file_or_stdin(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "report.js"
    script.write_text("main()\n")
    expected = [{"name": "Visit", "count": 3}]
    assert json.loads(run("jql", str(script)).stdout) == expected
    assert json.loads(run("jql", "-", stdin="main()").stdout) == expected
    assert run("jql", str(tmp_path / "missing.js")).returncode == 3


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (3, ("segmentation", "--event", "Visit")),
        (3, ("segmentation", "--event", "Visit", "--from", "", "--to", "today")),
        (3, ("segmentation", "--event", "Visit", "--from", "10.3.", "--to", "today")),
        (3, ("segmentation", "--event", "Visit", *SPAN, "--unit", "year")),
        (3, ("segmentation", "--event", "Visit", *SPAN, "--where", "")),
        (3, ("retention", *SPAN)),
        (3, ("retention", "--born", "Visit", *SPAN, "--unit", "day", "--interval", "1")),
        (3, ("funnel", "x", *SPAN)),
        (3, ("event-counts", "--event", "Visit")),
        (3, ("event-counts", "--event", "Visit", "--last", "2", "--unit", "hour", "--type", "unique")),
        (3, ("jql",)),
        (3, ("jql", "file.js", "--code", "x")),
        (3, ("jql", "--code", "main()", "--param", "novalue")),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    code: int, arguments: tuple[str, ...], run: Run, sandbox: Sandbox
) -> None:
    assert run(*arguments).returncode == code
    assert sandbox.requests == []


def test_errors_have_their_exit_codes(run: Run, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("funnel", "8", *SPAN).returncode == 4
    assert run("insights", "8").returncode == 4
    assert run("jql", "--code", "function(").returncode == 1
    assert run("segmentation", "--event", "Visit", *SPAN, "--where", "1 +").returncode == 1
    sandbox.plan_402 = ["segmentation"]
    assert run("segmentation", "--event", "Visit", *SPAN).returncode == 1
    monkeypatch.setenv("MP_PROJECT_ID", "2")
    assert run("events").returncode == 2


def test_a_report_does_not_wait_for_the_hour_unless_told_to(
    run: Run, server: SandboxServer, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = RequestLedger(tmp_path / "data" / "ledger.sqlite", origin=server.url, project_id="1")
    ledger.penalize("query", 1800)
    for command in (("event-counts", "--event", "Visit", "--last", "1"), ("events",)):
        done = run(*command)
        assert (done.returncode, sandbox.requests) == (5, [])
        assert "the request limit of project 1 is used up" in done.stderr
    monkeypatch.setattr("mixpanel_source.rate_limit.RequestLedger.permit", _told_to_wait)
    done = run("event-counts", "--event", "Visit", "--last", "1", "--wait")
    assert (done.returncode, json.loads(done.stdout)) == (0, [{"event": "Visit", "date": "2024-03-11", "value": 1}])


def _told_to_wait(ledger: RequestLedger, family: str, *, wait: bool, **_: object) -> AbstractContextManager[Permit]:
    assert wait
    return free_permit()


# --- starting fast


@pytest.mark.parametrize("name", ["events", "segmentation", "jql"])
def test_help_imports_nothing_heavy_and_discovery_no_dlt(name: str, account: dict[str, str]) -> None:
    code = (
        "import sys\nfrom mixpanel_source.cli.app import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as done: assert not done.code, done.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )

    def imported(*arguments: str) -> set[str]:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return set(done.stderr.split())

    assert imported(name, "--help") & {"dlt", "duckdb", "pyarrow", "pandas", "requests", "rich"} == set()
    if name == "events":
        assert imported("events") & {"dlt", "pyarrow", "pandas", "rich"} == set()
