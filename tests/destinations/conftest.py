"""dlt's destinations beside DuckDB files, in the environment of `make test-destinations`: not elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mixpanel_source.destinations import Target, target_of, type_of
from mixpanel_source.event_days import day_of, moment_of
from mixpanel_source.pipeline import open_pipeline
from mixpanel_source.sandbox import Sandbox
from soak import postgres

collect_ignore_glob = [] if find_spec("duckdb_extensions") else ["test_*.py"]

HOW = "no initdb and pg_ctl: apt-get install postgresql, or put them on the PATH"

EVENTS = (
    "event_name, event_time, event_date, distinct_id, insert_id, event_id, device_id, user_id, processed_at,"
    " CAST(properties AS TEXT), CAST(extra AS TEXT)"
)
EVENT_DAYS = "day, filter, event_days.rows, duplicates, rejected, bytes, complete"
TABLES: dict[str, tuple[str, dict[int, Callable[[Any], Any]]]] = {
    "events": (EVENTS, {1: moment_of, 2: day_of, 8: moment_of}),
    "event_days": (EVENT_DAYS, {0: day_of, 6: bool}),
    "rejected_lines": ("from_date, to_date, line_number, reason, raw", {0: day_of, 1: day_of, 4: bytes}),
    "profiles": ("distinct_id, last_seen, CAST(properties AS TEXT)", {1: moment_of}),
}
"""What is compared of each, and how what destinations give in types of their own is made alike."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--daily", action="store_true", help="load days one by one into each destination; takes long")


@dataclass(frozen=True)
class Place:
    """A destination by its name in dlt, empty, which the environment describes."""

    destination: str
    days_at_once: int
    """A partition: where a load takes seconds, fewer of them are made, but with --daily."""

    def target(self) -> Target:
        return target_of(self.destination)


@dataclass(frozen=True)
class Bucket:
    """Of storage that speaks S3, on loopback."""

    endpoint: str

    def folder(self, name: str) -> str:
        import boto3

        access = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=self.endpoint, **access).create_bucket(Bucket=name)
        return f"s3://{name}/tables"

    def told(self, monkeypatch: pytest.MonkeyPatch, section: str) -> dict[str, str]:
        """To dlt, and to Delta's own reader; what an Iceberg catalog is to be told is returned."""
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "REGION_NAME": "us-east-1"}
        for name, value in {**keys, "ENDPOINT_URL": self.endpoint}.items():
            monkeypatch.setenv(f"{section}__CREDENTIALS__{name}", value)
        keys |= {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true"}
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        iceberg = {"endpoint": self.endpoint, "access-key-id": "key", "secret-access-key": "secret"}
        return {f"s3.{name}": value for name, value in {**iceberg, "region": "us-east-1"}.items()}


@contextmanager
def asking(target: Target) -> Iterator[Callable[[str, str], Any]]:
    """Answers SQL about a table: of Delta and Iceberg as they say themselves what is in it."""
    if target.destination is None or type_of(target.destination) != "filesystem":
        with open_pipeline(target).sql_client() as client:
            yield lambda sql, table: client.execute_sql(sql)
        return
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")

        def ask(sql: str, table: str) -> Any:
            connection.register(table, _rows_of(f"{target.dataset}.{table}"))
            return connection.execute(sql).fetchall()

        yield ask


def _rows_of(name: str) -> Any:
    if os.environ["DESTINATION__FILESYSTEM__PREFERRED_TABLE_FORMAT"] == "iceberg":
        from dlt.common.libs.pyiceberg import get_catalog

        with closing(get_catalog()) as catalog:
            return catalog.load_table(name).scan().to_arrow()
    from deltalake import DeltaTable

    folder = os.environ["DESTINATION__FILESYSTEM__BUCKET_URL"]
    return DeltaTable("/".join([folder, *name.split(".")])).to_pyarrow_table()


def contents(target: Target, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each table, in order, without their load ids."""
    found = {}
    with asking(target) as ask:
        for table in tables or tuple(TABLES):
            columns, made_alike = TABLES[table]
            rows = ask(f"SELECT {columns} FROM {table}", table) or []
            alike = [
                tuple(made_alike[n](v) if n in made_alike and v is not None else v for n, v in enumerate(row))
                for row in rows
            ]
            found[table] = sorted(alike, key=repr)
    return found


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    if not postgres.installed():
        pytest.skip(HOW)
    with postgres.running() as server:
        yield server


_BUCKETS = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    # A process of its own: deltalake waits for some answers with all of Python held up.
    with subprocess.Popen(
        [sys.executable, "-c", _BUCKETS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        yield Bucket(server.stdout.readline().strip())


KINDS = ("postgres", "sqlite", "ducklake-postgres", "ducklake-sqlite", "ducklake-duckdb", "delta", "iceberg")


@pytest.fixture
def make_place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Place]:
    def place(destination: str, days_at_once: int) -> Place:
        return Place(destination, 1 if request.config.getoption("--daily") else days_at_once)

    def make(kind: str) -> Place:
        if kind == "sqlite":
            monkeypatch.setenv("DESTINATION__SQLALCHEMY__CREDENTIALS", f"sqlite:///{tmp_path}/events.db")
            return place("sqlalchemy", 3)
        if kind == "postgres":
            monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", _new_database(request))
            return place("postgres", 1)
        table_format, _, where = kind.partition("-")
        if table_format in ("delta", "iceberg"):
            folder, more, catalog = str(tmp_path / "tables"), {}, f"sqlite:///{tmp_path}/catalog.db"
            if where == "s3":
                _use_extensions()
                bucket: Bucket = request.getfixturevalue("bucket")
                folder, more = bucket.folder(_name(request)), bucket.told(monkeypatch, "DESTINATION__FILESYSTEM")
                if table_format == "iceberg":
                    catalog = _new_database(request).replace("postgresql:", "postgresql+psycopg2:")
            tables = {"type": "sql", "uri": catalog, "warehouse": folder, **more}
            monkeypatch.setenv("ICEBERG_CATALOG__ICEBERG_CATALOG_CONFIG", json.dumps(tables))
            monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", folder)
            monkeypatch.setenv("DESTINATION__FILESYSTEM__PREFERRED_TABLE_FORMAT", table_format)
            return place("filesystem", 10 if where == "s3" else 6)
        _use_extensions()
        catalog = {
            "ducklake-sqlite": f"sqlite:///{tmp_path}/catalog.sqlite",
            "ducklake-duckdb": f"duckdb:///{tmp_path}/catalog.duckdb",
        }.get(kind) or _new_database(request)
        storage = "DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE"
        folder = str(tmp_path / "lake")
        if where == "s3":
            bucket = request.getfixturevalue("bucket")
            folder = bucket.folder(_name(request))
            bucket.told(monkeypatch, storage)
        monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__DUCKLAKE_NAME", "lake")
        monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__CATALOG", catalog)
        monkeypatch.setenv(f"{storage}__BUCKET_URL", folder)
        return place("ducklake", 10 if where == "s3" else 5)

    return make


def _use_extensions() -> None:
    from destinations.loading import use_extensions

    Path(os.environ["HOME"]).mkdir()  # where DuckDB puts them
    use_extensions()


def _name(request: pytest.FixtureRequest) -> str:
    """One for each test."""
    return f"t{abs(hash(request.node.nodeid)) % 10**9}"


def _new_database(request: pytest.FixtureRequest) -> str:
    import psycopg2

    server: postgres.PostgresServer = request.getfixturevalue("postgres_server")
    name = _name(request)
    with closing(psycopg2.connect(server.url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'plain'")
        connection.cursor().execute(f"CREATE DATABASE {name} OWNER {name}")
    host = server.url.rpartition("@")[2].partition("/")[0]
    return f"postgresql://{name}:plain@{host}/{name}"


def odd_lines(day: str, count: int = 3) -> list[bytes]:
    """Events that only what keeps their very text gives back, some without ids, and lines that are none."""
    lines = [
        b'{"event":"Order \\"Placed\\", x","properties":{"time":%s,"distinct_id":"u%d","$insert_id":"%s-%d","z":1,'
        b'"a":12345678901234567890.123,"a":1e400,"b":"\\u00e9\\u2028 tab\\t nl\\n q\\" , \\\\N \\u0000 \\ud800",'
        b'"c":[{}, null]}}' % (_time(day), n, day.encode(), n)
        for n in range(count)
    ]
    empty = b'{"event":"","properties":{"time":%s,"distinct_id":""},"more":{"b":1,"a":2}}' % _time(day)
    nameless = b'{"event":"NULL","properties":{"time":%s}}' % _time(day)
    return [*lines, empty, nameless, b"no json \xff\x00,\"'"]


def _time(day: str) -> bytes:
    from datetime import UTC, datetime

    return str(int(datetime.fromisoformat(day).replace(hour=9, tzinfo=UTC).timestamp())).encode()


@pytest.fixture
def month(sandbox: Sandbox) -> list[str]:
    """30 days of February and March 2024, small and odd ones, the tenth of them empty; and some profiles."""
    days = [f"2024-02-{n:02}" for n in range(1, 30)] + ["2024-03-01"]
    for number, day in enumerate(days):
        sandbox.set_day(day, [] if number == 9 else odd_lines(day, 1 + number % 4))
    properties = {"$name": "Ünï \u2028", "$last_seen": "2024-03-01T10:00:00", "n": 12345678901234567890}
    profiles = [{"$distinct_id": f"u{n}", "$properties": properties} for n in range(3)]
    sandbox.set_profiles([json.dumps(profile).encode() for profile in profiles])
    return days
