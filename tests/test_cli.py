"""`mpload` as its users meet it: a process with arguments, two streams and an exit code."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pytest
import requests
from ledger_requests import spend

from mixpanel_source import errors
from mixpanel_source.cli import app, exit_codes, messages, output
from mixpanel_source.cli.progress import LoadDisplay
from mixpanel_source.planner import Plan, WindowLimits
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer, demo_folder
from mixpanel_source.windows import Window, days_between

ROOT = Path(__file__).parent.parent
MPLOAD = [sys.executable, "-m", "mixpanel_source.cli"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Nothing of the user's own: home, data and settings are the test's."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    return {**kept, "HOME": str(home), "MP_DATA_DIR": str(home / "data"), "PYTHONPATH": str(ROOT), **(extra or {})}


def mpload(
    home: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MPLOAD, *arguments],
        env=environment(home, env),
        cwd=home,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs mpload with a home of its own."""
    return lambda *arguments, **options: mpload(tmp_path, *arguments, **options)


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """As `run`, in this process: for what no stream, signal or import can change."""
    for name in [name for name in os.environ if name.startswith("MP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNTIME__LOG_LEVEL", "CRITICAL")
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as done:
                app.main(arguments)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(str(done.value.code)), out, err)

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox(demo_folder(), now=datetime(2013, 3, 29, tzinfo=UTC), limits=False)) as server:
        yield server


ACCOUNT = {"MP_USERNAME": "sandbox", "MP_SECRET": "sandbox", "MP_PROJECT_ID": "1", "MP_REGION": "us"}


def account(server: SandboxServer, **changes: str) -> dict[str, str]:
    return {"MP_BASE_URL": server.url, **ACCOUNT, **changes}


@pytest.fixture(scope="module")
def loaded(server: SandboxServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a real load of three days."""
    home = tmp_path_factory.mktemp("loaded")
    done = mpload(home, "load", "--from", "2013-03-01", "--to", "2013-03-03", env=account(server))
    assert done.returncode == 0, done.stderr
    return home / "data" / "1.duckdb"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A database that no load has made."""
    path = tmp_path / "small.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE people AS SELECT 'Zoë' AS name, 7 AS age")
    return path


def in_a_terminal(
    home: Path, *arguments: str, env: Mapping[str, str] | None = None, typed: str = ""
) -> tuple[int, str]:
    """The exit code, and all that a terminal shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*MPLOAD, *arguments],
        env=environment(home, {"TERM": "xterm-256color", **(env or {})}),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    os.write(master, typed.encode())
    shown = b""
    while True:
        ready, _, _ = select.select([master], [], [], 30)
        try:
            data = os.read(master, 65536) if ready else b""
        except OSError:  # how Linux tells that the other end is closed
            data = b""
        if not data:
            break
        shown += data
    os.close(master)
    return process.wait(30), shown.decode("utf-8", "replace")


STATUS_KEYS = {
    "database", "problem", "running", "last_run", "days", "first_day", "last_day", "missing_days", "incomplete_days",
    "unsettled_days", "suspect_days", "parts", "wrong", "days_behind", "rows", "newest_event", "rejected_lines",
    "profiles", "profiles_loaded_at", "last_load", "kept_bytes", "requests", "requests_problem",
}  # fmt: skip


def test_every_key_of_status_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("`mpload status --format json`")[2].partition("DuckDB reads")[0]
    assert {key for key in STATUS_KEYS if f"`{key}`" not in section} == set()


# --- load and status


def test_a_load_prints_a_row_for_each_table_and_says_the_rest_on_stderr(
    server: SandboxServer, tmp_path: Path, run: Run
) -> None:
    done = run("load", "--from", "2013-03-10", "--to", "2013-03-11", env=account(server))
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert [(row["table"], row["rows"], row["days"], row["error"]) for row in rows] == [
        ("events", 637, 2, None),
        ("profiles", 190, None, None),
    ]
    figures, into = done.stderr.splitlines()
    assert re.fullmatch(r"mpload: 827 rows, \d requests, .* kB received, .* s \(download .*, typed [0-9.]+\)", figures)
    assert into == f"mpload: loaded into {tmp_path / 'data' / '1.duckdb'}"
    named = run("load", "events", "profiles", "--from", "2013-03-10", "--to", "2013-03-11", env=account(server))
    assert [line for line in named.stderr.splitlines() if "received" not in line] == [
        "mpload: the dates do not apply to profiles: loaded as they are now",
        "mpload: no new events: every day asked for is there and complete",
        f"mpload: loaded into {tmp_path / 'data' / '1.duckdb'}",
    ]
    nothing = run("load", "events", "--from", "2013-03-10", "--to", "2013-03-11", env=account(server))
    assert nothing.stderr == "mpload: nothing new: every day asked for is there and complete\n"


def test_a_day_that_is_loaded_is_not_asked_for_again_and_quiet_is_quiet(
    server: SandboxServer, loaded: Path, run: Run
) -> None:
    arguments = ("load", "events", "--from", "2013-03-02", "--to", "2013-03-03", "--db", str(loaded))
    done = run("--quiet", "-f", "csv", *arguments, env=account(server, MP_DATA_DIR=str(loaded.parent)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "table,rows,days,seconds,error"
    assert done.stdout.splitlines()[1].startswith("events,0,0,")


def test_an_account_of_the_config_file_is_used_and_project_takes_its_projects_place(
    tmp_path: Path, run_here: Run
) -> None:
    config = tmp_path / ".mp" / "config.toml"
    config.parent.mkdir()
    table = 'username = "sandbox"\nsecret = "sandbox"\nregion = "us"'
    config.write_text(
        f'default = "a"\n[accounts.a]\nproject_id = "98"\n{table}\n[accounts.b]\nproject_id = "99"\n{table}\n'
    )
    config.chmod(0o600)
    for arguments, project in [([], "98"), (["-a", "b"], "99"), (["-p", "1"], "1")]:
        info = json.loads(run_here("info", *arguments).stdout)
        assert (info["project_id"], info["database"]) == (project, str(tmp_path / "data" / f"{project}.duckdb"))
    assert run_here("status", "--account", "nobody").returncode == 4
    environment_wins = run_here("info", "-a", "b", env=ACCOUNT)
    assert json.loads(environment_wins.stdout)["project_id"] == "1"
    assert environment_wins.stderr.count("using the credentials of the environment") == 1
    assert run_here("info", "-p", "../x").returncode == 3


def test_the_secret_is_never_told_whatever_goes_wrong(server: SandboxServer, run: Run) -> None:
    secret = "pl4nted$ecret/+="
    done = run(
        "load", "events", "--from", "2013-03-05", "--to", "2013-03-05", "-v", env=account(server, MP_SECRET=secret)
    )
    assert done.returncode == 2
    assert "mixpanel_source" in done.stderr
    assert "dlt" in done.stderr
    for form in (secret, quote(secret, safe=""), b64encode(f"sandbox:{secret}".encode()).decode()):
        assert form not in done.stdout + done.stderr


def test_one_table_that_fails_does_not_stop_the_other_and_gives_the_exit_code(tmp_path: Path, run: Run) -> None:
    sandbox = Sandbox(demo_folder(), now=datetime(2013, 3, 29, tzinfo=UTC), limits=False, plan_402=["engage"])
    with SandboxServer(sandbox) as server:
        done = run("load", "--from", "2013-03-05", "--to", "2013-03-05", "-f", "json", env=account(server))
    assert done.returncode == 1
    events, profiles = json.loads(done.stdout)
    assert (events["rows"], events["error"]) == (308, None)
    assert "402" in profiles["error"]
    run_, error = map(json.loads, done.stderr.splitlines())
    assert (run_["run"]["rows"], run_["run"]["requests"]) == (308, len(sandbox.requests))
    assert (error["error"], error["code"]) == ("PlanError", 1)


def test_no_wait_ends_with_5_where_the_hour_is_used_up_and_status_tells_of_it(tmp_path: Path, run: Run) -> None:
    sandbox = Sandbox(demo_folder(), now=datetime(2013, 3, 29, tzinfo=UTC))
    with SandboxServer(sandbox) as server:
        ledger = RequestLedger(tmp_path / "data" / "ledger.sqlite", origin=server.url, project_id="1")
        ledger.penalize("export", 1800)
        spend(ledger, "query")
        done = run("load", "events", "--from", "2013-03-05", "--to", "2013-03-05", "--no-wait", env=account(server))
        assert (done.returncode, sandbox.requests) == (5, [])
        assert "the request limit of project 1 is used up" in done.stderr
        status = json.loads(run("status", env=account(server)).stdout)
    export, query = status["requests"]
    assert (export["api"], export["spent"], export["allowed"]) == ("export", 0, 60)
    assert 1700 < export["next_free_s"] <= 1800
    assert (query["api"], query["spent"], query["allowed"], query["next_free_s"]) == ("query", 1, 60, 0.0)


def test_status_tells_what_is_loaded_and_what_is_missing(server: SandboxServer, loaded: Path, run: Run) -> None:
    env = account(server, MP_DATA_DIR=str(loaded.parent))
    done = run("status", "--db", str(loaded), env=env)
    status = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert status["wrong"] == [f"the last {status['days_behind']} days are not loaded"]
    assert run("status", "--db", str(loaded), "--max-days-behind", "99999", env=env).returncode == 0
    assert (status["days"], status["first_day"], status["last_day"]) == (3, "2013-03-01", "2013-03-03")
    assert (status["rows"], status["rejected_lines"], status["profiles"]) == (911, 0, 190)
    assert (status["running"], status["last_run"]["outcome"], status["last_run"]["error"]) == (None, "done", None)
    [missing] = status["missing_days"]
    assert (missing["from"], missing["days"]) == ("2013-03-04", status["days_behind"])
    assert status["newest_event"] == "2013-03-03T23:49:00+00:00"
    assert status["days_behind"] == (datetime.now(UTC).date() - datetime(2013, 3, 4, tzinfo=UTC).date()).days
    assert set(status) == STATUS_KEYS
    shown = run("status", "--db", str(loaded), "-f", "table", env=env).stdout
    assert "requests (export)  2 of 60 this hour, the next is free now" in shown
    assert "days               3: 2013-03-01 to 2013-03-03\n" in shown
    assert f"; {status['days_behind']:,} of them at the end\n" in shown


def test_plan_tells_what_a_load_would_ask_for_and_asks_nothing(
    server: SandboxServer, loaded: Path, run_here: Run, tmp_path: Path
) -> None:
    server.sandbox.requests.clear()
    arguments = ("plan", "--from", "2013-03-01", "--to", "2013-03-14", "--max-window-days", "4")

    def plan(format_: str, *more: str) -> str:
        done = run_here(*arguments, *more, "-f", format_, env=account(server))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    found = json.loads(plan("json", "--db", str(loaded)))
    assert json.loads(plan("jsonl", "--db", str(loaded))) == found
    [row] = csv.DictReader(io.StringIO(plan("csv", "--db", str(loaded))))
    assert json.loads(row["windows"]) == found["windows"]
    assert {name: found[name] for name in ("days", "requests", "requests_at_most", "seconds", "spent", "allowed")} == {
        "days": 11, "requests": 3, "requests_at_most": 3, "seconds": 0.0, "spent": 0, "allowed": 60,
    }  # fmt: skip
    assert found["days_there"] == [{"from": "2013-03-01", "to": "2013-03-03", "days": 3}]
    assert found["days_to_load"] == [{"from": "2013-03-04", "to": "2013-03-14", "days": 11}]
    assert found["sizes"] == {"loaded": 0, "counted": 0, "neighbours": 11, "unknown": 0}
    assert [window["days"] for window in found["windows"]] == [4, 4, 3]
    assert found["events"] == sum(window["events"] for window in found["windows"])
    assert found["events"] == pytest.approx(911 / 3 * 11, abs=2)
    shown = plan("table", "--db", str(loaded))
    assert "there     3 days: 2013-03-01 to 2013-03-03\n" in shown
    assert "requests  3 requests\ntime      no waiting: 0 of 60 export requests are spent this hour\n" in shown
    assert "events    about 3,341: 11 days like the nearest of those\n" in shown
    assert "windows   2013-03-04 to 2013-03-07: about 1,215 events\n" in shown
    assert json.loads(plan("json", "--request-share", "0.5"))["allowed"] == 30
    new = plan("table", "--window-days", "1")
    assert "requests  14 requests\n" in new
    assert "events    not known: --count asks Mixpanel\n" in new
    assert "          2013-03-05\n          and 9 more\n" in new
    assert server.sandbox.requests == []
    assert "events    not known\n" in plan("table", "--count", "--window-days", "1")
    assert not (tmp_path / "data" / "1.duckdb").exists()
    assert run_here("plan", "--from", "", env=account(server)).returncode == 3
    assert run_here("plan", "--max-window-events", "0", env=account(server)).returncode == 3


def test_accounts_are_loaded_one_after_the_other_each_into_its_file(
    server: SandboxServer, run_here: Run, tmp_path: Path
) -> None:
    account_ = 'username = "sandbox"\nsecret = "%s"\nproject_id = "%s"\nregion = "us"\n'
    config = tmp_path / "config.toml"
    config.write_text(f"[accounts.wrong]\n{account_ % ('no', 2)}[accounts.right]\n{account_ % ('sandbox', 1)}")
    config.chmod(0o600)
    env = {"MP_CONFIG_PATH": str(config), "MP_BASE_URL": server.url, "MP_DATA_DIR": str(tmp_path / "data")}
    span = ("--from", "2013-03-01", "--to", "2013-03-02")
    done = run_here("load", "events", "--accounts", "wrong,right", *span, "-f", "json", env=env)
    assert done.returncode == 2  # that of the first error, and the other one is loaded
    assert [(row["account"], row["days"], row["error"] is None) for row in json.loads(done.stdout)] == [
        ("wrong", 0, False), ("right", 2, True),
    ]  # fmt: skip
    assert (tmp_path / "data" / "1.duckdb").exists()


def test_plan_simulates_loads_of_a_size_without_an_account(run_here: Run) -> None:
    size = ("--events-per-day", "400000", "--days", "100", "--projects", "3", "--workers", "2", "--cores", "2")
    done = run_here("plan", "--simulate", *size, "-f", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["events"], found["requests"], found["query_requests"]) == (120_000_000, 297, 6)
    assert found["bound_by"] == "quota"
    assert found["cpu_s"] == pytest.approx(120_000_000 * 30e-6, rel=0.1)
    assert found["quota_s"] == pytest.approx(3600, rel=0.01)
    halved = run_here("plan", "--simulate", *size, "--request-share", "0.5", "-f", "json")
    assert json.loads(halved.stdout)["quota_s"] == pytest.approx(3 * 3600, rel=0.01)
    shown = run_here("plan", "--simulate", *size, "--window-days", "50", "-f", "table").stdout
    assert "requests  6 of the export, 0 of queries\n" in shown
    told = ("--event-us", "5", "--package-s", "1.5", "--start-s", "4", "--failing", "0.5")
    given = json.loads(run_here("plan", "--simulate", *size, *told, "-f", "json").stdout)
    assert given["cpu_s"] == pytest.approx(120_000_000 * 5e-6 + 1.5 * given["load_packages"] + 3 * 4)
    assert given["requests"] > 1.9 * found["requests"]


def test_status_answers_before_the_first_load_and_while_the_database_is_held(
    server: SandboxServer, small: Path, run: Run
) -> None:
    nothing = run("status", env=account(server))
    assert (nothing.returncode, json.loads(nothing.stdout)["days"]) == (1, 0)
    assert "nothing is loaded yet" in nothing.stderr
    with duckdb.connect(str(small)):
        held = run("status", "--db", str(small), env=account(server))
        asked = run("sql", "SELECT 1", "--db", str(small), "-f", "json")
    assert held.returncode == 0
    assert f"the database is busy: another process (PID {os.getpid()}) holds" in held.stderr
    status = json.loads(held.stdout)
    assert (status["days"], status["requests"][0]["allowed"]) == (None, 60)
    assert asked.returncode == 1
    assert json.loads(asked.stderr)["error"] == "DatabaseBusyError"


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", "--from", "2013-02-30"),
        ("load", "events", "--from", "2013-03-05", "--to", "2013-03-01"),
        ("load", "events", "--from", "2099-01-01", "--to", "2099-01-02"),
        ("load", "nothing"),
        ("load", "--project-timezone", "Mars/Olympus"),
        ("load", "--from", ""),
        ("load", "--to", ""),
        ("load", "--where", " "),
        ("load", "--event", ""),
        ("load", "--from", "2026-W47-5"),
        ("load", "events", "--from", "0001-01-01"),
        ("load", "events", "--to", "9999-12-31"),
        ("load", "events", "--to", "2012-01-01", "--start-date", "2013-01-01"),
        ("load", "--lookback-days", "999999999999"),
    ],
)
def test_dates_and_settings_that_cannot_be_end_with_3(
    arguments: tuple[str, ...], server: SandboxServer, run: Run
) -> None:
    done = run(*arguments, env=account(server))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)


def test_a_load_that_has_to_wait_says_beforehand_what_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    days = list(days_between(date(2024, 1, 1), date(2025, 2, 3)))
    single, wide = (Plan(days, WindowLimits(length, None, None)) for length in (1, 60))
    for quiet, plan, said in [
        (False, single, "mpload: 400 days: 400 requests, about 6.5 hours at 60 an hour (8 are free now)\n"),
        (False, wide, ""),
        (True, single, ""),
        (
            False,
            Plan(days),
            "mpload: 400 days: 16 to 400 requests, 8 minutes to 6.5 hours at 60 an hour (8 are free now)\n",
        ),
        (
            False,
            Plan(days, sizes=dict.fromkeys(days, 2_000)),
            "mpload: 400 days: 14 requests, about 6 minutes at 60 an hour (8 are free now)\n",
        ),
    ]:
        display = LoadDisplay(quiet)
        display.ledger = RequestLedger(None, origin="x", project_id="1", limits={"export": ((60, 3600.0),)})
        spend(display.ledger, "export", 52)
        display.planned(plan.forecast())
        assert capsys.readouterr().err == said


def test_a_terminal_shows_a_countdown_while_a_load_waits_and_that_it_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    monkeypatch.setenv("COLUMNS", "80")
    window = Window.of(date(2024, 1, 1))

    def shown() -> list[str]:
        time.sleep(0.3)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()

    display = LoadDisplay(quiet=False)
    with display.shown():
        display.planned(Plan([window.first, date(2024, 1, 2)]).forecast())
        display.waiting(3598.5, "the request limit of the export API is used up")
        assert any("waiting" in line and "0:59:59, the request limit of the export API is" in line for line in shown())
        display.received(2000)
        display.loaded(window, 1234, 50_000)
        last = shown()[-1]
        assert "day 1 of 2, 1,234 rows, 2.0 kB" in last
        assert "waiting" not in last
        display.writing()
        assert "2.0 kB, writing" in shown()[-1]


def test_ctrl_c_ends_a_load_with_130_and_one_line_even_while_mixpanel_is_silent(tmp_path: Path) -> None:
    sandbox = Sandbox(demo_folder(), now=datetime(2013, 3, 29, tzinfo=UTC))
    sandbox.faults.next("export", Fault.stall(60))
    with SandboxServer(sandbox) as server:
        process = subprocess.Popen(
            [*MPLOAD, "load", "events", "--from", "2013-03-01", "--to", "2013-03-02"],
            env=environment(tmp_path, account(server)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 30
        while not sandbox.requests and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "mpload: interrupted\n")


# --- demo and sandbox


def test_the_demo_loads_the_whole_month_and_answers(tmp_path: Path, run: Run) -> None:
    done = run("demo", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    demo = json.loads(done.stdout)
    assert demo["landed"] == {"days": 28, "events": 8627, "aircraft": 181, "profiles": 190}
    assert [row["events"] for row in demo["events"]] == [4305, 4303, 19]
    assert all(answer["rows"] for answer in demo["answers"])
    assert demo["answers"][2]["rows"] == [
        {"days": "1 to 9 March", "utc": "10:40", "new_york": "05:40"},
        {"days": "10 to 28 March", "utc": "09:42", "new_york": "05:42"},
    ]
    assert demo["answers"][3]["rows"][0] == {
        "aircraft": "N821JB",
        "model": "A320-232",
        "built": 2012,
        "flights": 28,
        "miles": 67272,
    }
    shell = f'mpload() {{ {sys.executable} -m mixpanel_source.cli "$@"; }}; {demo["next"]}'
    again = subprocess.run(["sh", "-c", shell], env=environment(tmp_path), capture_output=True, check=True)
    assert sum(row["events"] for row in json.loads(again.stdout)) == 8627


@pytest.mark.long
def test_the_demo_leaves_other_databases_alone_and_shows_tables_on_a_terminal(small: Path, tmp_path: Path) -> None:
    before = small.read_bytes()
    code, shown = in_a_terminal(tmp_path, "demo", env={"MP_DB": str(small)})
    assert code == 0
    assert "8,627 events of 28 days and 181 aircraft, 190 profiles" in shown
    assert "mpload sql --db" in shown
    assert small.read_bytes() == before


def test_without_its_extra_the_demo_says_what_to_install(run: Run, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('No module', name='starlette')")
    done = run("demo", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "mpload: the sandbox needs starlette, which is not installed; pip install 'mixpanel-source[sandbox]'"
    ]


def test_the_sandbox_tells_its_address_serves_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*MPLOAD, "sandbox", "--now", "2013-03-29T00:00:00Z"],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(6)]
    env = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines[1:])
    assert set(env) == {"MP_BASE_URL", "MP_USERNAME", "MP_SECRET", "MP_PROJECT_ID", "MP_REGION"}
    answer = requests.get(
        f"{env['MP_BASE_URL']}/api/2.0/export",
        params={"project_id": env["MP_PROJECT_ID"], "from_date": "2013-03-28", "to_date": "2013-03-28"},
        auth=(env["MP_USERNAME"], env["MP_SECRET"]),
    )
    assert len(answer.content.splitlines()) == 315
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "mpload: interrupted\n")


# --- sql, tables, schema, info


def test_sql_finds_the_tables_by_their_bare_names_and_nests_json(loaded: Path, run: Run) -> None:
    done = run(
        "sql",
        "SELECT event_name, properties, event_time FROM events WHERE properties->>'flight' = '83' ORDER BY 3 LIMIT 1",
        "--db",
        str(loaded),
    )
    assert (done.returncode, done.stderr) == (0, "")
    [row] = json.loads(done.stdout)
    assert row["properties"]["route"] == {"from": "JFK", "to": "SEA", "miles": 2422}
    assert row["event_time"] == "2013-03-01T00:39:00+00:00"


def test_json_keeps_every_digit_and_every_type(small: Path, run_here: Run) -> None:
    query = """
        SELECT '{"big": 12345678901234567890123, "f": 1.10, "k": 1, "k": 2, "e": "\\u00e9"}'::JSON AS j,
               170141183460469231731687303715884105727::HUGEINT AS huge, 1.20::DECIMAL(10, 2) AS price,
               'nan'::DOUBLE AS nan, '-inf'::DOUBLE AS inf, 0.1::FLOAT AS single, ['1.50'::JSON] AS list,
               {'a': '[1.0]'::JSON, 'b': NULL} AS struct, 'a\\xFF'::BLOB AS blob, DATE '2024-01-31' AS day,
               TIMESTAMPTZ '2024-01-31 12:00:00.5+02' AS moment, NULL AS nothing, 1 AS twice, 2 AS twice,
               map {'k': 1} AS map, TIME '10:00' AS clock, true AS yes
    """
    done = run_here("sql", query, "--db", str(small))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        '[{"j": {"big": 12345678901234567890123, "f": 1.10, "k": 1, "k": 2, "e": "\\u00e9"}, '
        '"huge": 170141183460469231731687303715884105727, "price": 1.20, "nan": null, "inf": null, "single": 0.1, '
        '"list": [1.50], "struct": {"a": [1.0], "b": null}, "blob": "Yf8=", "day": "2024-01-31", '
        '"moment": "2024-01-31T10:00:00.500000+00:00", "nothing": null, "twice": 1, "twice_2": 2, '
        '"map": {"k": 1}, "clock": "10:00:00", "yes": true}]\n'
    )


def test_csv_is_rfc_4180_and_tells_null_from_empty(small: Path, run: Run) -> None:
    query = "SELECT * FROM (VALUES (1, 'a,\"b\"', NULL), (2, '', 'x\ny')) AS t(n, \"a b\", c)"
    done = subprocess.run(
        [*MPLOAD, "sql", query, "--db", str(small), "-f", "csv"],
        env=environment(small.parent),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b'n,a b,c\r\n1,"a,""b""",\r\n2,"","x\ny"\r\n'
    assert list(csv.reader(io.StringIO(done.stdout.decode(), newline="")))[1] == ["1", 'a,"b"', ""]


def test_jsonl_is_one_object_on_a_line_whatever_the_json_inside_looks_like(small: Path, run_here: Run) -> None:
    done = run_here("sql", "SELECT unnest(['{\n\"a\":\n1}', '[\"x\"]'])::JSON AS j", "--db", str(small), "-f", "jsonl")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"j": {"a": 1}}, {"j": ["x"]}]


def test_duckdb_reads_jsonl_back_as_the_readme_says(small: Path, tmp_path: Path, run_here: Run) -> None:
    done = run_here(
        "sql",
        """SELECT 'A' AS event_name, '{"plan": 1, "Plan": "x"}'::JSON AS properties""",
        "--db",
        str(small),
        "-fjsonl",
    )
    (tmp_path / "events.jsonl").write_text(done.stdout, "utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    [query] = [line.strip() for line in readme.splitlines() if "FROM read_json('events.jsonl', columns" in line]
    with duckdb.connect() as connection:
        assert connection.execute(query.replace("events.jsonl", str(tmp_path / "events.jsonl"))).fetchall() == [("x",)]


def test_a_table_has_numbers_to_the_right_and_folds_long_text(small: Path, run_here: Run) -> None:
    done = run_here(
        "sql", "SELECT repeat('x', 400) AS long, 7 AS n, 'é\x1b[31m' AS odd", "--db", str(small), "-f", "table"
    )
    assert done.stdout.count("x") >= 400
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160
    assert run_here("sql", "FROM range(3000)", "--db", str(small), "-f", "table").stderr.startswith(
        "mpload: only the first"
    )


def test_a_table_that_is_wider_than_the_terminal_becomes_a_list_for_each_row(loaded: Path, small: Path) -> None:
    wide = ("sql", "SELECT * FROM events ORDER BY event_time, event_id LIMIT 2", "--db", str(loaded))
    _, shown = in_a_terminal(small.parent, *wide, env={"NO_COLOR": "1"})
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert lines[0] == "row 1"
    assert re.fullmatch(r"event_time    2013-03-01T00:0\d:00\+00:00", lines[2])
    assert lines[3] == "event_date    2013-03-01"
    assert [line for line in lines if line.startswith("row ")] == ["row 1", "row 2"]
    assert max(map(len, lines)) <= 80
    narrow = ("sql", "SELECT event_name, event_time, distinct_id FROM events LIMIT 1", "--db", str(loaded))
    _, shown = in_a_terminal(small.parent, *narrow, env={"NO_COLOR": "1"})
    assert "row 1" not in shown
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in shown.splitlines()) <= 80


def test_a_terminal_gets_a_table_a_pipe_json_and_options_go_before_or_after(small: Path, run: Run) -> None:
    assert run("sql", "FROM people", "--db", str(small)).stdout == '[{"name": "Zoë", "age": 7}]\n'
    assert run("--db", str(small), "-f", "csv", "sql", "FROM people").stdout == "name,age\nZoë,7\n"
    by_environment = run("sql", "FROM people", env={"MP_DB": str(small), "MP_FORMAT": "jsonl"})
    assert by_environment.stdout == '{"name": "Zoë", "age": 7}\n'
    code, shown = in_a_terminal(small.parent, "sql", "FROM people", "--db", str(small), env={"NO_COLOR": "1"})
    assert code == 0
    assert "Zoë" in shown
    assert "{" not in shown
    assert "\x1b[3" not in shown


def test_scalar_prints_the_bare_value_and_refuses_what_is_none(small: Path, run_here: Run) -> None:
    for query, printed in [
        ("SELECT name FROM people", "Zoë\n"),
        ("SELECT NULL", "\n"),
        ("SELECT '{\"a\": 1.0}'::JSON", '{"a": 1.0}\n'),
        ("SELECT 1.50::DECIMAL(9,2)", "1.50\n"),
    ]:
        assert run_here("sql", "--scalar", query, "--db", str(small)).stdout == printed
    assert run_here("sql", "--scalar", "SELECT 1, 2", "--db", str(small)).returncode == 1


def test_sql_comes_from_a_file_or_stdin_too(small: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "q.sql").write_text("SELECT 'é' AS e", "utf-8")
    assert run("sql", "--file", str(tmp_path / "q.sql"), "--db", str(small)).stdout == '[{"e": "é"}]\n'
    assert run("sql", "-", "--db", str(small), stdin="SELECT 2 AS n").stdout == '[{"n": 2}]\n'
    assert run("sql", "--db", str(small)).returncode == 3


def test_nothing_is_changed_without_write(small: Path, run_here: Run) -> None:
    refused = run_here("sql", "DELETE FROM people", "--db", str(small))
    assert (refused.returncode, refused.stderr) == (
        1,
        "mpload: the database is opened read-only; add --write to change it\n",
    )
    assert run_here("sql", "DELETE FROM people", "--write", "--db", str(small)).returncode == 0
    assert run_here("sql", "FROM people", "--db", str(small)).stdout == "[]\n"


def test_errors_are_one_line_or_with_format_json_one_object(small: Path, run_here: Run) -> None:
    bad = run_here("sql", "SELEC 1", "--db", str(small))
    assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (1, "", 1)
    missing = run_here("sql", "FROM nothing", "--db", str(small), env={"MP_FORMAT": "json"})
    assert missing.returncode == 4
    assert json.loads(missing.stderr) == {
        "error": "TableNotFoundError",
        "code": 4,
        "message": "there is no table nothing",
        "hint": "mpload tables lists the tables there are",
    }
    for arguments in (("--nonsense", "-f", "json"), ("nonsense", "--format=json"), ("sql", "-fjson", "--nonsense")):
        usage = run_here(*arguments)
        assert (usage.returncode, json.loads(usage.stderr)["error"]) == (3, "UsageError")
    assert run_here("load", "--format", "yaml").returncode == 3
    assert run_here("load", env={"MP_FORMAT": "yaml"}).returncode == 3
    assert run_here("sql", "SELECT 1").stderr.startswith("mpload: nothing says which database is meant; add --db FILE")
    assert run_here("load").returncode == 2


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 1), ("", 1, 1), ("\x04", 130, 1), ("y", 0, 0)])
def test_a_terminal_is_asked_before_a_snapshot_is_dropped(answer: str, code: int, left: int, tmp_path: Path) -> None:
    path = tmp_path / "snapshots.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA mixpanel; CREATE TABLE mixpanel.march (n INT)")
        connection.execute("CREATE TABLE mixpanel.fetches AS SELECT 'march' AS table_name, 'events' AS type")
    done, shown = in_a_terminal(tmp_path, "drop", "march", "--db", str(path), typed=f"{answer}\n")
    assert (done, "Remove march? [y/N]: " in shown) == (code, True)
    assert ("mpload: nothing was removed" in shown) == (code == 1)
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM mixpanel.fetches").fetchall() == [(left,)]


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 2), ("y", 0, 1)])
def test_a_terminal_is_asked_before_people_are_forgotten(answer: str, code: int, left: int, tmp_path: Path) -> None:
    path = tmp_path / "people.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA mixpanel")
        connection.execute("CREATE TABLE mixpanel.profiles AS SELECT unnest(['ann', 'bob']) AS distinct_id")
    done, shown = in_a_terminal(tmp_path, "forget", "ann", "--db", str(path), typed=f"{answer}\n")
    assert (done, "Remove all rows of 1 id from " in shown) == (code, True)
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM mixpanel.profiles").fetchall() == [(left,)]


def test_a_reader_that_has_read_enough_ends_it_quietly(small: Path) -> None:
    process = subprocess.Popen(
        [*MPLOAD, "sql", "SELECT range, repeat('x', 100) FROM range(10000000)", "--db", str(small), "-f", "jsonl"],
        env=environment(small.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b'{"range": 0')
    process.stdout.close()
    assert (process.wait(20), process.stderr.read()) == (0, b"")
    process.stderr.close()


@pytest.mark.parametrize("arguments", [("sql", "FROM people"), ("--help",), ("sql", "FROM people", "-f", "table")])
def test_a_full_disk_under_stdout_is_one_line_and_1(arguments: tuple[str, ...], small: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*MPLOAD, *arguments],
            env=environment(small.parent, {"MP_DB": str(small)}),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "mpload: cannot write the output: No space left on device; free some space\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    ("query", "closed", "code", "out", "err"),
    [
        ("FROM people", ">&-", 0, "", ""),
        ("FROM people", "2>&-", 0, '[{"name": "Zoë", "age": 7}]\n', ""),
        ("FROM nothing", "2>&-", 4, "", ""),
        ("FROM nothing", "2>/dev/full", 4, "", ""),
        ("FROM people", "<&- >&- 2>&-", 0, "", ""),
        ("-", "<&-", 0, "[]\n", ""),
    ],
)
def test_closed_streams_change_neither_the_exit_code_nor_the_other_stream(
    query: str, closed: str, code: int, out: str, err: str, small: Path
) -> None:
    shell = f"exec {shlex.join([*MPLOAD, 'sql', query])} {closed}"
    done = subprocess.run(
        ["sh", "-c", shell], env=environment(small.parent, {"MP_DB": str(small)}), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_output_is_utf_8_whatever_the_locale_and_half_a_surrogate_pair_breaks_nothing(small: Path) -> None:
    env = environment(small.parent, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"})
    done = subprocess.run([*MPLOAD, "sql", "FROM people", "--db", str(small)], env=env, capture_output=True)
    assert done.stdout == '[{"name": "Zoë", "age": 7}]\n'.encode()
    odd = subprocess.run([*MPLOAD, "sql", b"SELECT '\xff'", "--db", str(small)], env=env, capture_output=True)
    assert odd.returncode in (0, 1)
    assert b"Traceback" not in odd.stderr


def test_tables_schema_and_info_tell_what_is_there(loaded: Path, run_here: Run) -> None:
    tables = json.loads(run_here("tables", "--db", str(loaded)).stdout)
    assert {row["table"]: row["rows"] for row in tables if row["table"] != "load_runs"} == {
        "event_days": 3,
        "events": 911,
        "profiles": 190,
        "rejected_lines": 0,
    }
    columns = json.loads(run_here("schema", "events", "--db", str(loaded)).stdout)
    assert {"column": "properties", "type": "JSON"} in columns
    assert run_here("schema", "x'; DROP TABLE events", "--db", str(loaded)).returncode == 4
    info = json.loads(run_here("info", "--db", str(loaded), env={"MP_DATA_DIR": str(loaded.parent)}).stdout)
    assert (info["database"], info["dataset"]) == (str(loaded), "mixpanel")
    assert info["size_bytes"] == loaded.stat().st_size
    assert info["dlt_command"] == f"dlt pipeline --pipelines-dir {info['pipeline_folder']} mixpanel info"
    assert info["dlt_sync_command"].startswith(
        f"DESTINATION_TYPE=duckdb DATASET_NAME=mixpanel DESTINATION__DUCKDB__CREDENTIALS={loaded}"
    )
    assert (Path(info["pipeline_folder"]) / "mixpanel").is_dir()


# --- starting fast


@pytest.mark.parametrize("arguments", [["--help"], ["sql", "--help"], ["sql", "SELECT 1"], ["tables"]])
def test_help_and_sql_import_nothing_heavy(arguments: list[str], small: Path) -> None:
    code = (
        "import sys\nfrom mixpanel_source.cli.app import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as done: assert not done.code, done.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(small.parent, {"MP_DB": str(small)}),
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"dlt", "pyarrow", "pandas", "numpy", "requests", "pendulum", "rich", "sqlglot", "starlette"}
    assert heavy & set(done.stderr.split()) == set()


def test_importing_the_package_imports_nothing_and_its_names_are_there() -> None:
    code = (
        "import sys, mixpanel_source as m\n"
        "assert not [x for x in sys.modules if x.startswith(('dlt', 'duckdb', 'requests', 'mixpanel_source.'))]\n"
        "import mixpanel_source.load\n"
        "from mixpanel_source import load\n"
        "assert callable(load) and callable(m.load) and callable(m.mixpanel_source)\n"
        "assert all(getattr(m, name) for name in m.__all__)\n"
        "assert set(m.__all__) <= set(dir(m))\n"
        "try: m.nothing\nexcept AttributeError: pass\nelse: raise SystemExit('found')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_error_of_the_package_can_be_imported_from_it() -> None:
    import mixpanel_source

    own = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert own <= set(mixpanel_source.__all__)


def test_every_command_has_an_example_and_takes_the_global_options() -> None:
    from typer.main import get_command

    group: Any = get_command(app.app)
    assert set(group.commands) == {
        "auth",
        "fetch",
        "drop",
        "forget",
        "load",
        "plan",
        "verify",
        "demo",
        "init",
        "sandbox",
        "status",
        "sql",
        "tables",
        "schema",
        "info",
        "events",
        "properties",
        "values",
        "funnels",
        "cohorts",
        "bookmarks",
        "projects",
        "segmentation",
        "funnel",
        "retention",
        "frequency",
        "insights",
        "event-counts",
        "property-counts",
        "activity",
        "jql",
    }
    for name, command in group.commands.items():
        assert f"mpload {name}" in command.help
        assert {"--format", "--db"} <= {flag for option in command.params for flag in option.opts}


# --- in this process


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.MixpanelDataError("x"), 1),
        (errors.AuthenticationError("x"), 2),
        (errors.ConfigError("x"), 3),
        (errors.AccountNotFoundError("x"), 4),
        (errors.AccountExistsError("x"), 1),
        (errors.EntityNotFoundError("x"), 4),
        (errors.QueryError("x"), 1),
        (errors.TableNotFoundError("x"), 4),
        (errors.TableExistsError("x"), 1),
        (errors.RateLimitError("x"), 5),
        (errors.PlanError("x"), 1),
        (errors.ServerError("x"), 1),
        (errors.IncompleteExportError("x"), 1),
        (errors.WarehouseError("x"), 1),
    ],
)
def test_an_error_has_the_exit_code_of_its_nearest_ancestor(error: errors.MixpanelDataError, code: int) -> None:
    assert exit_codes.exit_code(error) == code


@pytest.mark.parametrize("verbose", [False, True])
def test_an_error_nobody_foresaw_is_one_line_without_secrets_and_verbose_tells_where(
    verbose: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("it was pl4nted\nall the time")

    monkeypatch.setenv("MP_SECRET", "pl4nted")
    monkeypatch.setattr("mixpanel_source.warehouse.opened", fail)
    monkeypatch.setattr("mixpanel_source.cli.global_options.set_up_log", lambda *_: messages.hide("pl4nted"))
    with pytest.raises(SystemExit) as done:
        app.main(["sql", "SELECT 1", "--db", "x", *(["-v"] if verbose else [])])
    said = capsys.readouterr().err
    assert done.value.code == 1
    assert "pl4nted" not in said
    assert said.splitlines()[-1] == (
        "mpload: internal error: ZeroDivisionError: it was *** all the time; --verbose tells where"
    )
    assert ("Traceback" in said) == verbose


def test_the_password_of_a_ledgers_address_is_never_told() -> None:
    messages.hide_address("postgresql://me:pl4n%2Fted@host/db")
    assert messages.redacted("no pl4n/ted, no pl4n%2Fted") == "no ***, no ***"


def test_names_of_columns_are_made_distinct() -> None:
    assert output.distinct(["a", "a", "a_2", "a", "b"]) == ["a", "a_3", "a_2", "a_4", "b"]


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": 1}', True),
        ("1" * 5000, True),
        ("NaN", False),
        ("[1,]", False),
        ("", False),
        ('"\n"', False),
        ("[" * 100_000, False),
    ],
)
def test_only_what_is_json_is_passed_on_as_json(text: str, valid: bool) -> None:
    assert output.is_json(text) == valid


def test_values_become_json_of_every_digit() -> None:
    assert output.json_text([Decimal("1E+2"), 10**30, 1e22, float("inf"), {"a": None}]) == (
        f'[100, {10**30}, 1e+22, null, {{"a": null}}]'
    )
