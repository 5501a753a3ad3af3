"""A Mixpanel on loopback with the real clock, told of to the orchestrators by dlt's own settings.

Each orchestrator has an environment of its own (`make test-airflow`, `make test-dagster`); elsewhere its tests are not
collected.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mixpanel_source.destinations import target_of
from mixpanel_source.pipeline import open_pipeline
from mixpanel_source.sandbox import Sandbox, SandboxServer
from soak.many_sandboxes import serving

collect_ignore = [f"test_{name}.py" for name in ("airflow", "dagster") if find_spec(name) is None]

TODAY = datetime.now(UTC).date()
FIRST = TODAY - timedelta(days=40)
"""The days from here on, 30 of them, are settled."""


def days_from(first: date, count: int) -> list[date]:
    return [first + timedelta(days=n) for n in range(count)]


def events_of(day: date, count: int = 3) -> list[dict[str, Any]]:
    at = int(datetime(day.year, day.month, day.day, 9, tzinfo=UTC).timestamp())
    return [
        {
            "event": "Order Placed",
            "properties": {"time": at + n, "distinct_id": f"u{n}", "$insert_id": f"{day}-{n}", "amount": n},
        }
        for n in range(count)
    ]


@pytest.fixture
def sandbox() -> Sandbox:
    """It has events on each of the 40 days before today, and two profiles."""
    mixpanel = Sandbox(limits=False)
    for day in days_from(FIRST, 40):
        mixpanel.add_events(events_of(day))
    mixpanel.set_profiles([{"$distinct_id": f"u{n}", "$properties": {"$name": f"U{n}"}} for n in range(2)])
    return mixpanel


@pytest.fixture
def exports(sandbox: Sandbox) -> Callable[[], list[tuple[str, str]]]:
    """The first and last day of each export that was asked for."""
    return lambda: [
        (request.params["from_date"], request.params["to_date"])
        for request in sandbox.requests
        if request.endpoint == "export"
    ]


@pytest.fixture
def database(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Iterator[Path]:
    """What is loaded into; while it is there, Mixpanel answers."""
    path = tmp_path / "loaded.duckdb"
    with SandboxServer(sandbox) as server:
        for name, value in {
            "MP_DB": str(path),
            "SOURCES__MIXPANEL__BASE_URL": server.url,
            "SOURCES__MIXPANEL__CREDENTIALS__USERNAME": "sandbox",
            "SOURCES__MIXPANEL__CREDENTIALS__SECRET": "sandbox",
            "SOURCES__MIXPANEL__CREDENTIALS__PROJECT_ID": "1",
            "SOURCES__MIXPANEL__CREDENTIALS__REGION": "us",
        }.items():
            monkeypatch.setenv(name, value)
        yield path


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET search_path = 'mixpanel'")
        return connection.execute(query).fetchall()


def events_in(path: Path) -> list[tuple[Any, ...]]:
    """All that is the same whoever loaded it, and when."""
    return rows(path, "SELECT * EXCLUDE (_dlt_load_id) FROM events ORDER BY event_id")


def accounts_of_dlt(folder: Path, **secrets: str) -> str:
    """As TOML: accounts of the projects 1, 2 ..., by their secrets, and SQLite to load into."""
    keys = 'username = "sandbox"\nsecret = "%s"\nproject_id = "%d"\nregion = "us"\n'
    tables = [
        f"[sources.mixpanel.accounts.{name}]\n{keys % (secret, id_)}"
        for id_, (name, secret) in enumerate(secrets.items(), 1)
    ]
    return "".join(tables) + f'[destination.sqlalchemy]\ncredentials = "sqlite:///{folder}/all.db"\n'


@pytest.fixture
def three_projects(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, quick: None) -> Iterator[None]:
    """The project 1 is the sandbox; 2 and 3 have five and seven events of yesterday. All of them answer."""
    others = [Sandbox(project_id=id_, limits=False) for id_ in "23"]
    for other, count in zip(others, (5, 7), strict=True):
        other.add_events(events_of(TODAY - timedelta(days=1), count))
    with serving([sandbox, *others]) as server:
        monkeypatch.setenv("MP_BASE_URL", server.url)
        yield


def count_in_sqlite(dataset: str, table: str = "events") -> int:
    with open_pipeline(target_of("sqlalchemy", dataset)).sql_client() as client:
        [(count,)] = client.execute_sql(f"SELECT count(*) FROM {table}") or []
    return int(count)


MONTH = days_from(FIRST, 30)

TWICE = random.Random(5).sample([*MONTH, *MONTH], 60)
"""Each day of the month twice, in any order."""

KILLS = {
    TWICE.index(day, TWICE.index(day) + 1): moment for day, moment in ((MONTH[7], "DELETE"), (MONTH[19], "COMMIT"))
}
"""When, in place of which load: its rows are deleted and not written yet, or its transaction has just ended."""

KILLED = """
import os, signal, sys
from dlt.destinations.impl.duckdb.sql_client import DuckDbSqlClient
from mixpanel_source import settings

settings.LIMITS.update({family: ((100_000, 1.0),) for family in settings.LIMITS})
moment, replacing = sys.argv[1], []
execute_sql, commit = DuckDbSqlClient.execute_sql, DuckDbSqlClient.commit_transaction

def executed(self, sql, *args, **kwargs):
    done = execute_sql(self, sql, *args, **kwargs)
    if str(sql).startswith('DELETE FROM "mixpanel"."events"'):
        replacing.append(1)
        if moment == "DELETE":
            os.kill(os.getpid(), signal.SIGKILL)
    return done

def committed(self, *args, **kwargs):
    commit(self, *args, **kwargs)
    if replacing:
        os.kill(os.getpid(), signal.SIGKILL)

DuckDbSqlClient.execute_sql, DuckDbSqlClient.commit_transaction = executed, committed
"""


def kill(moment: str, code: str, *arguments: str) -> None:
    """Runs `code` in a process that is killed at the moment."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED + code, moment, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
