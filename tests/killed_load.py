"""Loads that are killed at a step of their own choice, each in a process forked from this one.

    python killed_load.py URL FOLDER SHARE...

For each share of all steps, `FOLDER/<number>.duckdb` takes a load of some days, then a load of more days that is
killed after that share of its steps, then one that nobody stops. A step is whatever dlt does to a file or to DuckDB.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

from dlt.common.storages.file_storage import FileStorage
from dlt.destinations.impl.duckdb.sql_client import DuckDbSqlClient

from mixpanel_source import settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.load import load
from mixpanel_source.project import Project
from mixpanel_source.windows import DateRange

STEPS: tuple[tuple[type, str], ...] = (
    (FileStorage, "save"),
    (FileStorage, "save_atomic"),
    (FileStorage, "atomic_rename"),
    (FileStorage, "rename_tree"),
    (FileStorage, "delete"),
    (FileStorage, "delete_folder"),
    (DuckDbSqlClient, "execute_sql"),
    (DuckDbSqlClient, "execute_query"),
    (DuckDbSqlClient, "begin_transaction"),
    (DuckDbSqlClient, "commit_transaction"),
)

SPREAD = 10
"""Steps that one run may take more than another: dlt looks more or less often whether a job is done."""

FIRST = DateRange(date(2024, 3, 1), date(2024, 3, 2))
MORE = DateRange(date(2024, 3, 1), date(2024, 3, 4), refresh=True)
ALL = DateRange(date(2024, 3, 1), date(2024, 3, 4))


def start_child(work: Callable[[], object]) -> int:
    """Forks a process that does `work`, and gives its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(child: int) -> int:
    """What the process ends with: 0, or less than 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_steps(kill_at: int | None, steps: Iterable[tuple[type, str]] = STEPS) -> list[int]:
    """Counts steps from now on, in the list given back; kills this process before step `kill_at`."""
    counted = [0]

    def stepping(original: Any) -> Any:
        function = original.__func__ if isinstance(original, staticmethod) else original

        def step(*args: Any, **kwargs: Any) -> Any:
            counted[0] += 1
            if counted[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return staticmethod(step) if isinstance(original, staticmethod) else step

    for class_, name in steps:
        setattr(class_, name, stepping(class_.__dict__[name]))
    return counted


def main(url: str, folder: Path, shares: list[float]) -> None:
    for family in settings.LIMITS:
        settings.LIMITS[family] = ((100_000, 1.0),)
    project = Project(Credentials("sandbox", "sandbox", "1", "us"), window_days=1, base_url=url, retries=0)

    def run(database: Path, asked: DateRange, kill_at: int | None = None, counts: Path | None = None) -> None:
        steps = count_steps(kill_at)
        result = load(project, database, ("events",), asked=asked)
        if result.error is not None:
            raise result.error
        if counts is not None:
            counts.write_text(str(steps[0]))

    def ends(status: int, database: Path, asked: DateRange, kill_at: int | None = None, **how: Any) -> None:
        found = wait_for(start_child(lambda: run(database, asked, kill_at, **how)))
        if found != status:
            raise SystemExit(f"a load of {database.name} ended with {found}, not {status}")

    ends(0, folder / "count.duckdb", FIRST)
    ends(0, folder / "count.duckdb", MORE, counts=folder / "steps")
    steps = int((folder / "steps").read_text()) - SPREAD

    def kill(number: int) -> None:
        database = folder / f"{number}.duckdb"
        kill_at = 1 + int(shares[number] * (steps - 1))
        print(f"{number}: killed before step {kill_at} of {steps}", flush=True)
        if number % 2 == 0:  # else nothing is there yet, and the rows are appended
            ends(0, database, FIRST)
        ends(-signal.SIGKILL, database, MORE, kill_at)
        ends(0, database, ALL)

    def kill_each_second(first: int) -> None:
        for number in range(first, len(shares), 2):
            kill(number)

    children = [start_child(lambda first=first: kill_each_second(first)) for first in (0, 1)]  # type: ignore[misc]
    ended = [wait_for(child) for child in children]
    if any(ended):
        raise SystemExit("not all went as told")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [float(share) for share in sys.argv[3:]])
