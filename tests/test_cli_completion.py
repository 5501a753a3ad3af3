"""What TAB gives after `mpload`: in this process, and in the shells that are there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from mpload_here import run

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
ACCOUNT = 'username = "x"\nsecret = "pl4nted"\nproject_id = "1"\nregion = "us"\n'

Complete = Callable[[str], list[str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With some accounts and a database that no load has made."""
    config = tmp_path / "config.toml"
    names = ("production", "prototype", '"two words"')
    config.write_text('default = "production"\n' + "".join(f"[accounts.{name}]\n{ACCOUNT}" for name in names))
    config.chmod(0o600)
    monkeypatch.setenv("MP_CONFIG_PATH", str(config))
    (tmp_path / "data").mkdir()
    for file, tables in (("data/1.duckdb", ("events", "event_days", "_dlt_loads")), ("other.duckdb", ("elsewhere",))):
        with duckdb.connect(str(tmp_path / file)) as connection:
            connection.execute("CREATE SCHEMA mixpanel")
            for table in (*tables, "january"):
                connection.execute(f"CREATE TABLE mixpanel.{table} AS SELECT 7 AS n")
            connection.execute("CREATE TABLE mixpanel.fetches AS SELECT 'january' AS table_name, 'events' AS type")
    return tmp_path


@pytest.fixture
def complete(home: Path, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What bash is given for a line, whose last word is being typed."""
    monkeypatch.setenv("RUNTIME__LOG_LEVEL", "CRITICAL")
    monkeypatch.setenv("COLUMNS", "80")

    def complete(line: str) -> list[str]:
        words = ["mpload", *line.split(" ")]
        monkeypatch.setenv("_MPLOAD_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        done = run([])
        assert (done.code, done.err) == (0, "")
        return done.out.split()

    return complete


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lo", ["load"]),
        ("prop", ["properties", "property-counts"]),
        ("auth s", ["switch", "show"]),
        ("fetch ", ["events", "profiles"]),
        ("--form", ["--format"]),
        ("load --fr", ["--from"]),
        ("load --form", ["--format"]),
        ("auth list --q", ["--quiet"]),
        ("--format ", ["json", "jsonl", "csv", "table"]),
        ("load --format js", ["json", "jsonl"]),
        ("sql -f c", ["csv"]),
        ("load events pro", ["profiles", "property_definitions"]),
        ("load --from ", ["yesterday", "today"]),
        ("load --profiles-since ", ["last"]),
        ("--account ", ["production", "prototype"]),
        ("load -a prod", ["production"]),
        ("auth switch proto", ["prototype"]),
        ("auth add new --region ", ["us", "eu", "in"]),
        ("auth add new --kind o", ["oauth_token"]),
        ("segmentation --event Visit --math ", ["numeric", "sum", "average"]),
        ("event-counts --unit w", ["week"]),
        ("bookmarks --type ", ["insights", "funnels", "retention", "flows"]),
        ("schema ", ["event_days", "events", "fetches", "january"]),
        ("--db other.duckdb schema ", ["elsewhere", "fetches", "january"]),
        ("schema --db other.duckdb e", ["elsewhere"]),
        ("--db missing.duckdb schema ", []),
        ("drop --force ", ["january"]),
        ("drop --all --type ", ["events", "profiles"]),
        ("sql ", []),
    ],
)
def test_tab_gives_what_can_stand_there(
    line: str, expected: list[str], complete: Complete, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert complete(line) == expected


def test_the_environment_counts_for_tab_as_for_the_command(
    complete: Complete, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MP_DB", str(home / "other.duckdb"))
    assert complete("schema els") == ["elsewhere"]


def test_what_cannot_be_read_gives_nothing_and_says_nothing(complete: Complete, home: Path) -> None:
    (home / "data" / "1.duckdb").write_bytes(b"no database at all")
    assert complete("schema ") == []
    (home / "config.toml").chmod(0o644)
    assert complete("--account ") == []
    assert complete("schema ") == []


def test_the_resources_that_tab_and_help_name_are_those_of_a_load() -> None:
    from mixpanel_source.cli import load as command
    from mixpanel_source.load import DEFAULT_RESOURCES, RESOURCES

    assert (*DEFAULT_RESOURCES, *command._OTHER_RESOURCES) == RESOURCES


@pytest.mark.parametrize("words", ["load\nev", "--account\np", "schema\nj", "funnel\n7\n--unit\n"])
def test_tab_imports_nothing_heavy(words: str, home: Path) -> None:
    code = (
        "import sys\nfrom mixpanel_source.cli.app import main\n"
        "try: main([])\nexcept SystemExit as done: assert not done.code, done.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    completing = {"_MPLOAD_COMPLETE": "complete_bash", "COMP_WORDS": f"mpload\n{words}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **completing, "COMP_CWORD": str(len(words.split("\n"))), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()
    heavy = {"dlt", "pyarrow", "pandas", "numpy", "requests", "pendulum", "rich", "sqlglot", "starlette"}
    assert heavy & set(done.stderr.split()) == set()


def test_what_an_option_is_for_is_one_line_to_fish(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("_MPLOAD_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "mpload load --")
    offered = [line.partition("\t")[0] for line in run([]).out.splitlines()]
    assert {"--from", "--profiles-since", "--format", "--legacy-local-time"} <= set(offered)
    assert [text for text in offered if not text.startswith("--")] == []


# --- real shells


@pytest.fixture
def shell_environment(home: Path) -> dict[str, str]:
    """One in which mpload is on the PATH, and nothing is the user's own."""
    command = home / "bin" / "mpload"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m mixpanel_source.cli "$@"\n')
    command.chmod(0o755)
    return {
        "HOME": str(home),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MP_CONFIG_PATH": str(home / "config.toml"),
        "MP_DATA_DIR": str(home / "data"),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }


def typed_into(shell: str, line: str, environment: dict[str, str]) -> str:
    """All that an interactive shell shows while a line is typed into it, and then exit."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [shell, "-i"],
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # fish wants a terminal of its own
    )
    os.close(slave)
    shown = b""
    to_type = [line, "exit"]
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if not select.select([master], [], [], 0.5)[0]:  # it waits for what comes
            if to_type:
                os.write(master, f"{to_type.pop(0)}\n".encode())
            continue
        try:
            shown += os.read(master, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
    process.kill()
    process.wait()
    os.close(master)
    return shown.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "shell", ["bash", pytest.param("zsh", marks=pytest.mark.long), pytest.param("fish", marks=pytest.mark.long)]
)
def test_a_shell_completes_once_it_is_told_to(shell: str, shell_environment: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    installed = subprocess.run(
        # With something after it, as a shell becomes the last command, and would not be found then.
        [shell, "-c", "mpload --install-completion && mpload --show-completion && :"],
        env=shell_environment,
        capture_output=True,
        text=True,
    )
    assert (installed.returncode, installed.stderr) == (0, "")
    assert f"{shell} completion installed in" in installed.stdout
    assert "_MPLOAD_COMPLETE=complete_" in installed.stdout
    tab = "\t\t" if shell == "zsh" else "\t"  # the first one of a session only has zsh load Typer's script
    line = f"mpload tab{tab} --form\tcsv; mpload auth switch proto\t -f csv; mpload schema jan\t -f csv"
    shown = typed_into(shell, line, shell_environment)
    assert "january,1,1" in shown
    assert "prototype,true,service_account,x,***" in shown
    assert "n,INTEGER" in shown
