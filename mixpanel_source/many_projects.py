"""Several projects in one destination: a dataset for each account, and views over all of them."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dlt.common.destination import Destination

from mixpanel_source import settings
from mixpanel_source.configured_accounts import HOW_TO_ADD, configured_account, configured_accounts
from mixpanel_source.destinations import Target, target_of, type_of
from mixpanel_source.errors import ConfigError
from mixpanel_source.load import DEFAULT_RESOURCES, LoadResult, load
from mixpanel_source.pipeline import READERS_WAIT_S, locked, open_pipeline, own_errors
from mixpanel_source.project import project_of
from mixpanel_source.resources.load_package import literals
from mixpanel_source.warehouse import database_path

UNION_DATASET: Final = f"{settings.DATASET}_all"
"""Where the views are."""
WITH_VIEWS: Final = ("postgres", "ducklake")
"""dlt's names of the destinations that they were tried in.

The columns are looked up in one `information_schema`: BigQuery has one for each dataset, Snowflake has names in upper
case there, and MotherDuck those of other databases, too.
"""

_PLAIN: Final = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


def dataset_of(account: str) -> str:
    """The dataset of an account, always the same: two accounts never share one."""
    plain = f"{settings.DATASET}_{account}"
    is_taken = plain == UNION_DATASET or plain.endswith(settings.TYPED_SUFFIX)
    if _PLAIN.fullmatch(account) and len(account) <= 32 and not is_taken:
        return plain
    words = "_".join(re.findall(r"[a-z0-9]+", account.lower()))[:24].strip("_")
    return "_".join(filter(None, (settings.DATASET, words, hashlib.sha256(account.encode()).hexdigest()[:8])))


def load_account(
    name: str,
    destination: str | Destination[Any, Any] | None = None,
    resources: Sequence[str] = DEFAULT_RESOURCES,
    *,
    lock_wait_s: float = 0.0,
    **options: object,
) -> LoadResult:
    """Load a configured account into a dataset of its own, or without a destination into its own file.

    `options` are fields of Project. Raises as `load`, and the error of the first table that failed, after the others.
    """
    account = configured_account(name)
    if destination:
        target = target_of(destination, dataset_of(name))
    else:
        target = Target(database_path(account.credentials.project_id))
    project = project_of(account, **options)
    with locked(target.path, lock_wait_s, what=target):
        result = load(project, target, resources, is_locked=True)
    if result.error is not None:
        raise result.error
    return result


def account_names() -> list[str]:
    """Of the configured accounts. Raises ConfigError where there are none."""
    names = list(configured_accounts())
    if not names:
        raise ConfigError("there are no accounts", hint=HOW_TO_ADD)
    return names


def make_views(destination: str | Destination[Any, Any]) -> list[str]:
    """`union_views` over all configured accounts."""
    accounts = configured_accounts()
    return union_views(destination, {name: account.credentials.project_id for name, account in accounts.items()})


def union_views(destination: str | Destination[Any, Any], project_ids: Mapping[str, str]) -> list[str]:
    """Makes the views over the datasets of accounts, whose project ids are given: a row has its `project_id` in front.

    A view for each table that any of them has; a column that a dataset lacks is NULL there. Accounts that have nothing
    yet are left out. The names of the views are returned: none in a destination that has none. Raises as `load`.
    """
    target = target_of(destination, UNION_DATASET)
    assert target.destination is not None
    if type_of(target.destination) not in WITH_VIEWS:
        return []
    datasets = {dataset_of(account): project_id for account, project_id in project_ids.items()}
    pipeline = open_pipeline(target)
    with target.written_alone(READERS_WAIT_S), own_errors(target), pipeline.sql_client() as client:
        if not client.has_dataset():
            client.create_dataset()
        rows = client.execute_sql(
            "SELECT table_name, table_schema, column_name, data_type FROM information_schema.columns"
            f" WHERE table_schema IN ({literals(list(datasets))}) ORDER BY table_name, table_schema, ordinal_position"
        )
        tables: defaultdict[str, defaultdict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        for table, dataset, column, type_ in rows or []:
            if not table.startswith("_dlt"):
                tables[table][dataset][column] = type_
        for table, found in tables.items():
            # Its own is the same in another type, where it has one.
            types = {name: type_ for columns in found.values() for name, type_ in columns.items()}
            types.pop("project_id", None)
            selects = []
            for dataset, columns in found.items():
                quoted = {name: client.escape_column_name(name) for name in types}
                listed = ", ".join(
                    quoted[name] if name in columns else f"CAST(NULL AS {type_}) AS {quoted[name]}"
                    for name, type_ in types.items()
                )
                with client.with_alternative_dataset_name(dataset):
                    place = client.make_qualified_table_name(table)
                selects.append(f"SELECT {literals([datasets[dataset]])} AS project_id, {listed} FROM {place}")
            view = client.make_qualified_table_name(table)
            # Those who read meanwhile see the one or the other.
            with client.begin_transaction():
                client.execute_sql(f"DROP VIEW IF EXISTS {view}")
                client.execute_sql(f"CREATE VIEW {view} AS {' UNION ALL '.join(selects)}")
    return sorted(tables)
