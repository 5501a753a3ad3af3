"""Mixpanel in Airflow 3: copy this file into the folder of DAGs.

Credentials: the connection `mixpanel` (login and password are those of the service account; extra is JSON:
`project_id`, `region`, and any setting of an account), else `[sources.mixpanel.credentials]` of dlt, which the
Variable `dlt_secrets_toml` may hold, else `MP_USERNAME` ... of the environment. `MP_DB` names the DuckDB file, which
all workers have to reach; `MIXPANEL_DESTINATION` another destination of dlt's to load into.

Nothing of dlt is imported, and nobody asked, until a task runs: Airflow reads this file again and again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import CronDataIntervalTimetable, CronTriggerTimetable, Param, dag, task

if TYPE_CHECKING:
    from mixpanel_source import Project
    from mixpanel_source.destinations import Target

CONNECTION = "mixpanel"
TIMEZONE = "UTC"
"""That of the project, if it was made before 2023-01-01: its export days are days there."""
START_DATE = datetime(2024, 1, 1, tzinfo=UTC)
TABLES = ("events", "profiles")
"""Loaded as they are now; of events that is what is late or missing."""
PROJECTS_AT_ONCE = 4
DESTINATION = os.environ.get("MIXPANEL_DESTINATION")
"""dlt's name of it, such as postgres, whose credentials are dlt's; None: DuckDB files."""
DATASET = os.environ.get("MIXPANEL_DATASET", "mixpanel")
"""In the destination; mixpanel_projects has one for each account."""

DEFAULTS: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(minutes=5),
    "retry_exponential_backoff": True,
    # DuckDB has one writer. These tasks go one by one in each DAG, and wait for those of another one; a pool of one
    # slot has them wait without taking a worker: airflow pools set mixpanel 1 "one writer".
    "pool": os.environ.get("MIXPANEL_AIRFLOW_POOL", "default_pool"),
    "max_active_tis_per_dag": 1,
}


@dag(
    dag_id="mixpanel_daily",
    # A cron text would be a trigger, whose intervals are empty.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone=TIMEZONE),
    start_date=START_DATE,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"refresh": Param(False, type="boolean", description="Export settled days, too, once more")},
)
def mixpanel_daily() -> None:
    """The events of the data interval, and of no other day. Run again, a day that is not settled is exported again."""

    @task
    def load(
        data_interval_start: Any = None, data_interval_end: Any = None, dag_run: Any = None, params: Any = None
    ) -> dict[str, int]:
        from mixpanel_source.orchestration import days_of

        with errors_told():
            project = open_project()
            days = days_of(project, data_interval_start, data_interval_end)
            return load_events(project, str(days.first), str(days.last), dag_run=dag_run, refresh=params["refresh"])

    load()


@dag(
    dag_id="mixpanel_backfill",
    schedule=None,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={
        "from_date": Param(type="string", format="date", description="First day"),
        "to_date": Param(type="string", format="date", description="Last day, included"),
        "refresh": Param(False, type="boolean", description="Load complete days, too, once more"),
    },
)
def mixpanel_backfill() -> None:
    """Many days in as few export requests as they fit into: a task each, whose retries ask for no other."""

    @task
    def windows(params: Any = None) -> list[dict[str, Any]]:
        from mixpanel_source.orchestration import days_between, windows_to_load

        with errors_told():
            project = open_project()
            days = days_between(params["from_date"], params["to_date"])
            found = windows_to_load(project, target_of(project), days, refresh=params["refresh"])
        return [
            {"first": str(one.window.first), "last": str(one.window.last), "at_once": one.events is not None}
            for one in found
        ]

    @task(map_index_template="{{ window['first'] }} to {{ window['last'] }}")
    def load(window: dict[str, Any], dag_run: Any = None, params: Any = None) -> dict[str, int]:
        with errors_told():
            return load_events(open_project(), **window, dag_run=dag_run, refresh=params["refresh"])

    load.expand(window=windows())


@dag(
    dag_id="mixpanel_current",
    schedule=CronTriggerTimetable("0 6 * * *", timezone=TIMEZONE),
    start_date=START_DATE,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
)
def mixpanel_current() -> None:
    """What no interval has: events that came late, or that are missing, and the tables as they are now."""

    @task(map_index_template="{{ table }}")
    def load(table: str) -> dict[str, int]:
        from mixpanel_source.orchestration import load_table

        with errors_told():
            project = open_project()
            metrics = load_table(project, target_of(project), table).metrics
        return {"rows": metrics.rows, "requests": metrics.requests, "days": metrics.days}

    load.expand(table=list(TABLES))


@dag(
    dag_id="mixpanel_projects",
    schedule=CronTriggerTimetable("0 6 * * *", timezone=TIMEZONE),
    start_date=START_DATE,
    catchup=False,
    max_active_runs=1,
    default_args={**DEFAULTS, "max_active_tis_per_dag": PROJECTS_AT_ONCE},
)
def mixpanel_projects() -> None:
    """Every account, a task each: into a file of its own, or into a dataset of DESTINATION.

    Accounts are `[sources.mixpanel.accounts.NAME]` of dlt, which the Variable `dlt_secrets_toml` may hold; where there
    are none, those of mpload's config file.
    """

    @task
    def accounts() -> list[str]:
        from mixpanel_source.many_projects import account_names

        with errors_told():
            return account_names()

    @task(map_index_template="{{ account }}")
    def load(account: str) -> dict[str, int]:
        from mixpanel_source.many_projects import load_account
        from mixpanel_source.orchestration import LOAD_WAIT_S

        with errors_told():
            metrics = load_account(account, DESTINATION, TABLES, lock_wait_s=LOAD_WAIT_S).metrics
        return {"rows": metrics.rows, "requests": metrics.requests, "days": metrics.days}

    @task(trigger_rule="all_done")
    def views() -> list[str]:
        from mixpanel_source.many_projects import make_views

        with errors_told():
            return make_views(DESTINATION) if DESTINATION else []

    @task
    def every_account() -> None:
        """Fails the run with any account: the views are made all the same, and would leave it green."""

    load.expand(account=accounts()) >> [views(), every_account()]


def load_events(
    project: Project, first: str, last: str, *, dag_run: Any, refresh: bool, at_once: bool = False
) -> dict[str, int]:
    """Days, both included. What the run had exported before it was tried again is not asked for again."""
    from mixpanel_source.orchestration import days_between, load_days

    days = days_between(first, last)
    since = began_at(dag_run)
    loaded = load_days(project, target_of(project), days, since=since, refresh=refresh, at_once=at_once)
    for warning in loaded.warnings:
        print(warning)
    return {"rows": loaded.rows, "bytes": loaded.bytes, "requests": loaded.requests, "days": len(days)}


def target_of(project: Project) -> Target:
    from mixpanel_source.orchestration import target_for

    return target_for(project, DESTINATION, DATASET)


def began_at(dag_run: Any) -> datetime | None:
    """When the run did, or was cleared."""
    return dag_run.start_date  # type: ignore[no-any-return]


def open_project() -> Project:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    from mixpanel_source.credentials import Account, Credentials
    from mixpanel_source.project import project_of
    from mixpanel_source.source import configured_project

    try:
        connection = Connection.get(CONNECTION)
    except AirflowNotFoundException:
        return configured_project()
    extra = dict(connection.extra_dejson)
    project_id, region = extra.pop("project_id", ""), extra.pop("region", "")
    return project_of(
        Account(Credentials(connection.login or "", connection.password or "", project_id, region)), **extra
    )


@contextmanager
def errors_told() -> Iterator[None]:
    """Has Airflow show what the library says to do, and not try again what can only fail again."""
    from airflow.sdk.exceptions import AirflowFailException

    from mixpanel_source.errors import MixpanelDataError
    from mixpanel_source.orchestration import FAILS_AGAIN

    try:
        yield
    except MixpanelDataError as error:
        if error.hint:
            print(error.hint)
        if isinstance(error, FAILS_AGAIN):
            raise AirflowFailException(f"{type(error).__name__}: {error}") from error
        raise


mixpanel_daily()
mixpanel_backfill()
mixpanel_current()
mixpanel_projects()
