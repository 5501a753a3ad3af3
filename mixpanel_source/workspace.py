"""`Workspace`: one project and one DuckDB file. All that `mpload` does, for notebooks and scripts."""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, cast

import duckdb

from mixpanel_source import settings as settings_
from mixpanel_source import typed, warehouse
from mixpanel_source.client import MixpanelClient
from mixpanel_source.closing import Closing
from mixpanel_source.credentials import Account, resolve_credentials
from mixpanel_source.discovery import VALUES, Discovery
from mixpanel_source.errors import AuthenticationError, ConfigError
from mixpanel_source.exports import EventFilter
from mixpanel_source.fetch import (
    FetchResult,
    drop_all,
    drop_tables,
    fetch_events,
    fetch_profiles,
)
from mixpanel_source.load_record import record_path
from mixpanel_source.progress import LoadProgress
from mixpanel_source.project import Project, parse_day, parse_range, project_of
from mixpanel_source.property_columns import PropertyColumn
from mixpanel_source.reports import Reports
from mixpanel_source.status import Status, info, status
from mixpanel_source.typed import TypedUpdate
from mixpanel_source.warehouse import FetchType, QueryResult, TableInfo

if TYPE_CHECKING:
    from mixpanel_source.destinations import Target
    from mixpanel_source.forget import ForgetResult
    from mixpanel_source.load_plan import LoadPlan
    from mixpanel_source.verify import Verification

P = ParamSpec("P")
R = TypeVar("R")


def _of_reports(method: Callable[Concatenate[Reports, P], R]) -> Callable[Concatenate[Workspace, P], R]:
    @functools.wraps(method)
    def call(self: Workspace, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self.reports, *args, **kwargs)

    return cast("Callable[Concatenate[Workspace, P], R]", call)


def _of_discovery(method: Callable[Concatenate[Discovery, P], R]) -> Callable[Concatenate[Workspace, P], R]:
    @functools.wraps(method)
    def call(self: Workspace, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self.discovery, *args, **kwargs)

    return cast("Callable[Concatenate[Workspace, P], R]", call)


class Workspace(Closing):
    """A context manager; closing ends requests and connections. Credentials are looked for when they are needed.

    `account` names one of the config file; `project_id` and `region` take the place of its own (another project has
    none of the account's zone). `path` is the DuckDB file, `<project_id>.duckdb` in the data folder unless given.
    `client` asks for lists and reports in place of one made for the account; loads and snapshots have clients of their
    own. Further `settings` are fields of `Project`, such as `project_timezone` and `wait`, or the reports of a table,
    such as `segmentation`.
    """

    def __init__(
        self,
        account: str | None = None,
        project_id: str | None = None,
        region: str | None = None,
        path: str | Path | None = None,
        *,
        client: MixpanelClient | None = None,
        **settings: Any,
    ) -> None:
        if region is not None and region not in settings_.REGIONS:
            raise ConfigError(f"region {region!r} is none of {', '.join(settings_.REGIONS)}")
        self._account_name = account
        self._project_id = project_id
        self._region = region
        self._path = None if path is None else Path(path).expanduser()
        self._settings = settings
        self._client = client
        self._own_client = client is None
        self._needs_account = True
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._remove: Callable[[], object] | None = None

    @classmethod
    def ephemeral(cls, account: str | None = None, **options: Any) -> Self:
        """One whose file is temporary: gone when it is closed, also after an exception, or at Python's end."""
        workspace = cls(account, **options)
        folder = Path(tempfile.mkdtemp(prefix="mpload-"))
        workspace._path = folder / "ephemeral.duckdb"
        workspace._remove = weakref.finalize(workspace, _remove_ephemeral, folder)
        return workspace

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """One of a file alone: it asks Mixpanel nothing, and needs no credentials."""
        workspace = cls(path=path)
        workspace._needs_account = False
        return workspace

    def close(self) -> None:
        self._close_connection()
        if self._client is not None and self._own_client:
            self._client.close()
        self._client = None if self._own_client else self._client
        if self._remove is not None:
            self._remove()

    # --- what it works with

    @functools.cached_property
    def account(self) -> Account:
        """Raises AuthenticationError where there is none, and as `resolve_credentials`."""
        if not self._needs_account:
            raise AuthenticationError(
                "this workspace was opened without credentials", hint="use Workspace() to ask Mixpanel"
            )
        account = resolve_credentials(self._account_name)
        if self._project_id is not None:
            account = account.of_project(self._project_id)
        if self._region is not None:
            account = replace(account, credentials=replace(account.credentials, region=self._region))
        return account

    @functools.cached_property
    def project(self) -> Project:
        return project_of(self.account, **self._settings)

    @property
    def path(self) -> Path:
        """The DuckDB file; it may not be there yet."""
        return self._path or warehouse.database_path(self.account.credentials.project_id)

    @property
    def api(self) -> MixpanelClient:
        """The client, for whatever else Mixpanel answers."""
        if self._client is None:
            self._client = self.project.client()
        return self._client

    @property
    def reports(self) -> Reports:
        return Reports(self.api, wait=self._settings.get("wait", False))

    @property
    def discovery(self) -> Discovery:
        return Discovery(self.api, wait=self._settings.get("wait", False))

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """DuckDB's own, read-only, with the tables found by bare names; open until a load, a fetch or `close`."""
        if self._connection is None:
            self._connection = warehouse.connect(self.path)
        return self._connection

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- what is there

    events = _of_discovery(Discovery.events)
    day_counts = _of_discovery(Discovery.day_counts)
    properties = _of_discovery(Discovery.properties)
    funnels = _of_discovery(Discovery.funnels)
    cohorts = _of_discovery(Discovery.cohorts)
    bookmarks = _of_discovery(Discovery.bookmarks)
    projects = _of_discovery(Discovery.projects)

    def property_values(self, event: str, name: str, limit: int = VALUES) -> list[str]:
        """As `Discovery.values`."""
        return self.discovery.values(event, name, limit)

    # --- reports

    segmentation = _of_reports(Reports.segmentation)
    funnel = _of_reports(Reports.funnel)
    retention = _of_reports(Reports.retention)
    frequency = _of_reports(Reports.frequency)
    insights = _of_reports(Reports.insights)
    event_counts = _of_reports(Reports.event_counts)
    property_counts = _of_reports(Reports.property_counts)
    activity = _of_reports(Reports.activity)
    jql = _of_reports(Reports.jql)

    # --- loads and snapshots

    def load(
        self,
        *resources: str,
        from_date: str | date | None = None,
        to_date: str | date | None = None,
        refresh: bool = False,
        events: Sequence[str] = (),
        where: str | None = None,
        destination: Any = None,
        dataset: str = settings_.DATASET,
        **options: Any,
    ) -> Any:
        """As `mpload load`: a `LoadResult`; `options` are those of `load.load`.

        `destination` is one of dlt's, by its name or made, that is loaded into in place of the workspace's file.

        Raises the error of the first table that failed, after the others were loaded.
        """
        from mixpanel_source.destinations import Target, target_of
        from mixpanel_source.load import DEFAULT_RESOURCES, load

        self._close_connection()
        into = Target(self.path) if destination is None else target_of(destination, dataset)
        asked = parse_range(from_date, to_date, refresh)
        filter_ = EventFilter(events, where)
        result = load(self.project, into, resources or DEFAULT_RESOURCES, asked=asked, filter_=filter_, **options)
        if result.error is not None:
            raise result.error
        return result

    def plan(
        self,
        *,
        from_date: str | date | None = None,
        to_date: str | date | None = None,
        refresh: bool = False,
        events: Sequence[str] = (),
        where: str | None = None,
        count: bool = False,
        destination: Any = None,
        dataset: str = settings_.DATASET,
    ) -> LoadPlan:
        """What `load` would ask for of the events: as `load_plan.plan_load`; `destination` as for `load`."""
        from mixpanel_source.load_plan import plan_load

        asked = parse_range(from_date, to_date, refresh)
        filter_ = EventFilter(events, where)
        return plan_load(self.project, self._place(destination, dataset), asked=asked, filter_=filter_, count=count)

    def verify(
        self,
        from_date: str | date | None = None,
        to_date: str | date | None = None,
        *,
        events: Sequence[str] = (),
        repair: bool = False,
        progress: LoadProgress | None = None,
        destination: Any = None,
        dataset: str = settings_.DATASET,
    ) -> Verification:
        """As `verify.verify`; like a question, and unlike a load, it waits for the hourly limit only with `wait`.

        `destination` is a DuckLake to compare in place of the workspace's file.
        """
        from mixpanel_source.verify import verify

        self._close_connection()
        project = replace(self.project, wait=self._settings.get("wait", False))
        first, last = parse_day("from_date", from_date), parse_day("to_date", to_date)
        place = self._place(destination, dataset, to_read=not repair)
        return verify(project, place, from_date=first, to_date=last, events=events, repair=repair, progress=progress)

    def fetch_events(
        self,
        name: str | None = None,
        from_date: str | date | None = None,
        to_date: str | date | None = None,
        *,
        events: Sequence[str] = (),
        where: str | None = None,
        progress: LoadProgress | None = None,
    ) -> FetchResult:
        """As `fetch.fetch_events`; both dates are needed."""
        first, last = parse_day("from_date", from_date), parse_day("to_date", to_date)
        if first is None or last is None:
            raise ConfigError("a snapshot needs its days", hint="give from_date and to_date")
        self._close_connection()
        filter_ = EventFilter(events, where)
        return fetch_events(
            self.project, self.path, name, from_date=first, to_date=last, filter_=filter_, progress=progress
        )

    def fetch_profiles(
        self, name: str | None = None, *, where: str | None = None, progress: LoadProgress | None = None
    ) -> FetchResult:
        """As `fetch.fetch_profiles`."""
        self._close_connection()
        return fetch_profiles(self.project, self.path, name, where=where, progress=progress)

    def drop(self, *names: str) -> None:
        """Remove snapshots, all or none of `names`."""
        self._close_connection()
        drop_tables(self.path, names)

    def drop_all(self, type: FetchType | None = None) -> list[str]:  # noqa: A002
        """Remove every snapshot, or those of one type; their names."""
        self._close_connection()
        return drop_all(self.path, type)

    def forget(self, ids: Sequence[str], *, keep_out: bool = False) -> ForgetResult:
        """Delete people, as `forget.forget`."""
        from mixpanel_source.forget import forget

        self._close_connection()
        return forget(self.path, ids, keep_out=keep_out)

    # --- the file

    def sql(self, query: str, *, destination: Any = None, dataset: str = settings_.DATASET) -> QueryResult:
        """The answer of SQL that changes nothing. Raises QueryError with DuckDB's own words.

        `destination` is a DuckLake to ask in place of the workspace's file.
        """
        with self._asked(destination, dataset) as (connection, _):
            return warehouse.query(connection, query)

    def sql_rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.sql(query).rows

    def sql_scalar(self, query: str) -> Any:
        """The one value of an answer of one row and one column. Raises QueryError for any other."""
        with self._reading() as connection:
            return warehouse.only_value(warehouse.query_stream(connection, query))[0]

    def tables(self, *, destination: Any = None, dataset: str = settings_.DATASET) -> list[TableInfo]:
        """The tables but dlt's own, by name; `destination` here and below as for `sql`."""
        with self._asked(destination, dataset) as (connection, schema):
            return warehouse.tables(connection, schema)

    def schema(self, table: str, *, destination: Any = None, dataset: str = settings_.DATASET) -> list[tuple[str, str]]:
        """Name and type of each column of a table. Raises TableNotFoundError."""
        with self._asked(destination, dataset) as (connection, schema):
            return warehouse.schema(connection, table, schema)

    def typed_tables(
        self, *, destination: Any = None, dataset: str = settings_.DATASET
    ) -> list[tuple[str, str | None, int]]:
        """Name, event (None for profiles) and rows of each typed table."""
        with self._asked(destination, dataset) as (connection, schema):
            return typed.typed_tables(connection, schema)

    def typed_columns(
        self, event: str | None, *, destination: Any = None, dataset: str = settings_.DATASET
    ) -> list[PropertyColumn]:
        """The properties of an event, of profiles for None, with their columns in the typed table."""
        with self._asked(destination, dataset) as (connection, schema):
            return typed.typed_columns(connection, event, schema)

    def update_typed(self) -> TypedUpdate:
        """Bring the typed tables in step, after a `pipeline.run` into the file; `load` does so by itself."""
        self._close_connection()
        return typed.update_typed(self.path)

    def status(
        self,
        max_days_behind: int = settings_.MAX_DAYS_BEHIND,
        *,
        destination: Any = None,
        dataset: str = settings_.DATASET,
    ) -> Status:
        """What is loaded, what is missing, what is wrong, and how many requests are left.

        `destination` is what `load` is given: it is looked into in place of the workspace's file.
        """
        project = self.project if self._needs_account else None
        return status(self._place(destination, dataset), project, max_days_behind=max_days_behind)

    def info(self) -> dict[str, Any]:
        """Where everything is, and the versions in use."""
        return info(self.path, self.account.credentials.project_id if self._needs_account else None)

    def _place(self, destination: Any, dataset: str, *, to_read: bool = True) -> Path | Target:
        """What is to be looked into, and with `to_read` not loaded into."""
        if destination is None:
            return self.path
        from mixpanel_source.destinations import target_of

        return target_of(destination, dataset, to_read=to_read)

    @contextmanager
    def _asked(self, destination: Any, dataset: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        """A connection to the file, or to a lake, and the schema there."""
        if destination is None:
            with self._reading() as connection:
                yield connection, settings_.DATASET
            return
        from mixpanel_source.destination_sql import lake_asked

        with lake_asked(destination, dataset) as asked:
            yield asked

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection that is open, else one for this question alone: others may write in between."""
        if self._connection is not None:
            yield self._connection
        else:
            with warehouse.opened(self.path) as connection:
                yield connection


def _remove_ephemeral(folder: Path) -> None:
    database = folder / "ephemeral.duckdb"
    record_path(database).unlink(missing_ok=True)
    shutil.rmtree(warehouse.pipelines_folder(database), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
