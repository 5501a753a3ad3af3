"""What the end-to-end tests share: a Mixpanel on loopback, a project that asks it, a clock, loads and SQL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, tzinfo
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pytest
from dlt.common.configuration.container import Container
from dlt.common.configuration.specs.pluggable_run_context import PluggableRunContext
from dlt.destinations.exceptions import DatabaseTerminalException
from dlt.destinations.impl.duckdb.sql_client import DuckDbSqlClient
from hypothesis import settings as hypothesis_settings

from mixpanel_source import settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.engage import MembersAsked, ProfilesAsked
from mixpanel_source.exports import EventFilter
from mixpanel_source.load import LoadResult, load
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Sandbox, SandboxServer
from mixpanel_source.windows import DateRange

# How long an example takes says more of the machine than of the code. In CI the examples are the same each time.
hypothesis_settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
hypothesis_settings.load_profile("untimed")

NOW = datetime(2024, 3, 11, 12, tzinfo=UTC)
"""The present of every end-to-end test, until the test moves it."""

NO_LIMITS: dict[settings.ApiFamily, tuple[tuple[int, float], ...]] = {
    "export": ((100_000, 1.0),),
    "query": ((100_000, 1.0),),
    "app": ((100_000, 1.0),),
    "lexicon": ((100_000, 1.0),),
    "ingestion": ((100_000, 1.0),),
}


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what belongs to the user: config, data folder, credentials, proxies."""
    for name in os.environ:
        if name.startswith(("MP_", "SOURCES__", "DESTINATION__")) or name.lower() in ("http_proxy", "https_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")


@pytest.fixture
def reload_dlt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Has dlt read its configuration anew, as another process would; after the test, too."""
    reload = Container()[PluggableRunContext].reload_providers
    yield reload
    monkeypatch.undo()
    reload()


class Clock:
    """The time as the library and the sandbox see it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._now = NOW

    @property
    def now(self) -> datetime:
        return self._now

    @now.setter
    def now(self, moment: datetime) -> None:
        self._now = moment
        self._sandbox.now = moment


@pytest.fixture
def sandbox() -> Sandbox:
    """A local Mixpanel that holds nothing, without limits, at `NOW`."""
    return Sandbox(now=NOW, limits=False)


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


@pytest.fixture
def clock(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands in for the real clock wherever days are counted or a request is dated."""
    told = Clock(sandbox)
    set_clock(monkeypatch, lambda: told.now)
    return told


def set_clock(monkeypatch: pytest.MonkeyPatch, present: Callable[[], datetime]) -> None:
    """Has the library take `present` for now."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return present().astimezone(tz)

    names = ("project", "downloads", "kept_exports", "day_counts", "resources.report_tables", "verify", "sweep")
    for module in (*names, "load_plan", "orchestration"):
        monkeypatch.setattr(import_module(f"mixpanel_source.{module}"), "datetime", Frozen)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and retries without waiting: the limits and the backoff have tests of their own."""
    for family in NO_LIMITS:
        monkeypatch.setitem(settings.LIMITS, family, NO_LIMITS[family])
    monkeypatch.setattr(settings, "BACKOFF_FIRST_S", 0.0)


@pytest.fixture
def project(server: SandboxServer, clock: Clock, quick: None) -> Project:
    """The sandbox's project, made after 2023."""
    return Project(Credentials("sandbox", "sandbox", "1", "us"), base_url=server.url)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "loaded.duckdb"


class RunLoad(Protocol):
    def __call__(
        self,
        from_date: str | None = None,
        to_date: str | None = None,
        *,
        refresh: bool = False,
        resources: tuple[str, ...] = ("events",),
        events: tuple[str, ...] = (),
        where: str | None = None,
        project: Project | None = None,
        database: Path | None = None,
        profiles: ProfilesAsked = ProfilesAsked(),
        members: MembersAsked = MembersAsked(),
        raises: bool = True,
    ) -> LoadResult: ...


@pytest.fixture
def run_load(project: Project, database: Path) -> RunLoad:
    """Loads into `database`; an error that a table met is raised, unless `raises` is false."""
    default_project, default_database = project, database

    def run(
        from_date: str | None = None,
        to_date: str | None = None,
        *,
        refresh: bool = False,
        resources: tuple[str, ...] = ("events",),
        events: tuple[str, ...] = (),
        where: str | None = None,
        project: Project | None = None,
        database: Path | None = None,
        profiles: ProfilesAsked = ProfilesAsked(),
        members: MembersAsked = MembersAsked(),
        raises: bool = True,
    ) -> LoadResult:
        first, last = (date.fromisoformat(day) if day else None for day in (from_date, to_date))
        result = load(
            project or default_project,
            database or default_database,
            resources,
            asked=DateRange(first, last, refresh),
            filter_=EventFilter(events, where),
            profiles=profiles,
            members=members,
        )
        if raises and result.error is not None:
            raise result.error
        return result

    return run


Sql = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def sql(database: Path) -> Sql:
    """The rows of a query on `database`, in UTC, the dataset's tables without a prefix."""

    def ask(query: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(database), read_only=True) as connection:
            connection.execute("SET TimeZone = 'UTC'; SET search_path = 'mixpanel'")
            return connection.execute(query).fetchall()

    return ask


@contextmanager
def merge_broken_off(table: str) -> Iterator[None]:
    """Within it, a merge stops half way: rows of the table are deleted, or ended, and no new ones are written."""
    original = DuckDbSqlClient.execute_sql

    def execute_sql(self: DuckDbSqlClient, sql: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(sql).startswith((f'DELETE FROM "mixpanel"."{table}"', f'UPDATE "mixpanel"."{table}"')):
            return original(self, sql, *args, **kwargs)
        original(self, sql.split(";")[0])
        raise DatabaseTerminalException(RuntimeError("the power is gone"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DuckDbSqlClient, "execute_sql", execute_sql)
        yield
