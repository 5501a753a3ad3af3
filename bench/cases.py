"""What is measured, each in a process of its own that prints one JSON line: `python -m bench.cases CASE ...`."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.generate import FIRST_DAY, day_path

PATHS = {
    "distinct_id": "$.distinct_id",
    "insert_id": '$."$insert_id"',
    "device_id": '$."$device_id"',
    "user_id": '$."$user_id"',
}


def peak_mb() -> float:
    """The largest resident set of this process so far (Linux), in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def measured(result: dict[str, Any], name: str) -> Iterator[None]:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield
    after = resource.getrusage(resource.RUSAGE_SELF)
    result[name] = {
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": time.perf_counter() - started,
        "peak_mb": peak_mb(),
    }


def anchor(folder: str, days: str, event_id: str) -> dict[str, Any]:
    """What a user would do by hand: DuckDB's own reader on the downloaded files, into the same columns.

    No duplicates are found, nothing is checked, no state is kept, nothing is replaced. With `event_id` = "without" it
    does not even compute the hash.
    """
    import duckdb

    texts = ", ".join(f"properties->>'{path}' AS {name}" for name, path in PATHS.items())
    hashed = ", ".join(
        ["event", *(f"properties->>'{path}'" for path in ("$.distinct_id", "$.time", PATHS["insert_id"]))]
    )
    hash_ = f"md5(concat_ws(':', {hashed})) AS event_id," if event_id == "with" else ""
    files = [str(day_path(Path(folder), FIRST_DAY + timedelta(days=number))) for number in range(int(days))]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        connection = duckdb.connect(f"{scratch}/anchor.duckdb")
        connection.execute("SET TimeZone = 'UTC'")
        with measured(result, "load"):
            connection.execute(
                f"""
                CREATE TABLE events AS SELECT event AS event_name,
                    make_timestamptz((properties->>'$.time')::BIGINT * 1000) AS event_time,
                    DATE '1970-01-01' + ((properties->>'$.time')::BIGINT // 86400000)::INT AS event_date,
                    {texts}, {hash_}
                    make_timestamptz((properties->>'$.mp_processing_time_ms')::BIGINT * 1000) AS processed_at,
                    properties, NULL::JSON AS extra
                FROM read_ndjson({files}, columns={{event: 'VARCHAR', properties: 'JSON'}})
                """
            )
            connection.close()
        result["file_mb"] = Path(scratch, "anchor.duckdb").stat().st_size / 1e6
    return result


def product(url: str, days: str, database: str, *runs: str) -> dict[str, Any]:
    """`load`, over HTTP: `first` loads `days` days, `reload` loads them all again, `next` loads one more day.

    `typed` is `first` with the typed tables kept in step; in the other runs there are none.
    """
    os.environ["MP_DATA_DIR"] = str(Path(database).parent)
    from mixpanel_source import settings
    from mixpanel_source.credentials import Credentials
    from mixpanel_source.load import load
    from mixpanel_source.project import Project
    from mixpanel_source.windows import DateRange

    # The server keeps no limits here, so that waiting for them is not measured.
    settings.LIMITS["export"] = ((1_000_000, 1.0),)
    # Counting is the sandbox's slowest answer, and no part of what is measured.
    project = Project(
        Credentials("sandbox", "sandbox", "1", "us"), count_events=False, base_url=url, typed_tables="typed" in runs
    )
    last = FIRST_DAY + timedelta(days=int(days) - 1)
    ranges: dict[str, DateRange] = {
        "first": DateRange(FIRST_DAY, last),
        "typed": DateRange(FIRST_DAY, last),
        "reload": DateRange(FIRST_DAY, last, refresh=True),
        "next": DateRange(last + timedelta(days=1), last + timedelta(days=1)),
    }
    result: dict[str, Any] = {}
    for run in runs:
        with measured(result, run):
            loaded = load(project, Path(database), ["events"], asked=ranges[run])
        if loaded.error:
            raise loaded.error
        result[run]["rows"] = loaded.tables[0].rows
    result["file_mb"] = Path(database).stat().st_size / 1e6
    if project.typed_tables:
        result["group_by"] = _group_by(database)
    return result


def _group_by(database: str) -> dict[str, float]:
    """Seconds for a group by one property: of a typed table, of a table of its columns made by hand, of the JSON."""
    import duckdb

    with duckdb.connect(database, config={"threads": 1}) as connection:
        columns = connection.execute(
            "SELECT property, column_name, sql_type FROM mixpanel_typed.properties_catalog"
            " WHERE event = 'Page Viewed' AND sql_type IS NOT NULL"
        ).fetchall()
        texts = ", ".join(
            f"""CAST(properties->>'$."{name}"' AS {type_}) AS "{column}\"""" for name, column, type_ in columns
        )
        connection.execute(
            f"CREATE TABLE by_hand AS SELECT * EXCLUDE (properties, extra, _dlt_load_id), {texts}"
            " FROM mixpanel.events WHERE event_name = 'Page Viewed'"
        )
        connection.execute("CHECKPOINT")
        questions = {
            "typed": "SELECT plan, count(*) FROM mixpanel_typed.page_viewed__title GROUP BY ALL",
            "by_hand": "SELECT plan, count(*) FROM by_hand GROUP BY ALL",
            "json": "SELECT properties->>'plan', count(*) FROM mixpanel.events"
            " WHERE event_name = 'Page Viewed' GROUP BY ALL",
        }
        seconds = dict.fromkeys(questions, math.inf)
        for _ in range(20):
            for name, sql in questions.items():
                started = time.perf_counter()
                connection.execute(sql).fetchall()
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def dicts(url: str) -> dict[str, Any]:
    """The tuned plain dlt way, of one day: parse each line, yield lists of dicts, Parquet files."""
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    from datetime import UTC, datetime

    import dlt
    import requests

    def rows() -> Iterator[list[dict[str, Any]]]:
        batch: list[dict[str, Any]] = []
        day = str(FIRST_DAY)
        parameters = {"project_id": "1", "from_date": day, "to_date": day, "time_in_ms": "true"}
        with requests.get(
            f"{url}/api/2.0/export", parameters, auth=("sandbox", "sandbox"), stream=True, timeout=60
        ) as response:
            for line in response.iter_lines(chunk_size=1 << 18):
                event = json.loads(line)
                properties = event["properties"]
                time_ = datetime.fromtimestamp(properties["time"] / 1000, UTC)
                batch.append(
                    {
                        "event_name": event["event"],
                        "event_time": time_,
                        "event_date": time_.date(),
                        "distinct_id": properties.get("distinct_id"),
                        "insert_id": properties.get("$insert_id"),
                        "device_id": properties.get("$device_id"),
                        "user_id": properties.get("$user_id"),
                        "processed_at": datetime.fromtimestamp(properties["mp_processing_time_ms"] / 1000, UTC),
                        "properties": properties,
                    }
                )
                if len(batch) == 5000:
                    yield batch
                    batch = []
        yield batch

    resource_ = dlt.resource(rows, name="events", max_table_nesting=0, columns={"properties": {"data_type": "json"}})
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = dlt.pipeline(
            "dicts",
            destination=dlt.destinations.duckdb(f"{scratch}/dicts.duckdb"),
            dataset_name="events",
            pipelines_dir=scratch,
        )
        with measured(result, "load"):
            pipeline.run(resource_, loader_file_format="parquet")
    return result


CASES: dict[str, Callable[..., dict[str, Any]]] = {"anchor": anchor, "product": product, "dicts": dicts}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](*sys.argv[2:])))
