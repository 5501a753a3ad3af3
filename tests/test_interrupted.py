"""Ctrl-C, sent to a real process: once, twice, and while exports are under way or wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RunLoad, Sql
from export_lines import day_lines, days

from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox

pytestmark = pytest.mark.long

WEEK = days("2024-03-01", 7)
SOON = 30.0
"""Seconds; what is held up here takes longer."""


@pytest.fixture(autouse=True)
def _a_week(sandbox: Sandbox) -> None:
    for number, day in enumerate(WEEK):
        sandbox.set_day(day, day_lines(day, 3, first=10 * number))


@pytest.fixture
def project(project: Project) -> Project:
    """Each day is an export of its own."""
    return replace(project, window_days=1)


class Mpload:
    """A load of the week by a process of its own."""

    def __init__(self, folder: Path, database: Path, url: str) -> None:
        self.folder = folder
        own = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        account = {"MP_USERNAME": "sandbox", "MP_SECRET": "sandbox", "MP_PROJECT_ID": "1", "MP_REGION": "us"}
        places = {"HOME": str(folder), "MP_DATA_DIR": os.environ["MP_DATA_DIR"], "MP_BASE_URL": url}
        root = Path(__file__).parents[1]
        options = ["--db", str(database), "--from", WEEK[0], "--to", WEEK[-1], "--window-days", "1", "--refresh"]
        self.process = subprocess.Popen(
            [sys.executable, str(root / "tests/interrupted_load.py"), str(folder), "load", "events", *options],
            env={**own, **account, **places, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + SOON
        while not condition() and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        assert condition()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=SOON)
        return self.process.returncode, out, err


Start = Callable[[], Mpload]


@pytest.fixture
def start(tmp_path: Path, database: Path, project: Project) -> Iterator[Start]:
    started: list[Mpload] = []

    def run() -> Mpload:
        assert project.base_url is not None
        started.append(Mpload(tmp_path, database, project.base_url))
        return started[-1]

    yield run
    for one in started:
        with one.process as process:
            process.kill()


def all_is_there_once(run_load: RunLoad, sql: Sql) -> None:
    run_load(WEEK[0], WEEK[-1])
    assert sql("select count(*), count(distinct event_id) from events") == [(21, 21)]
    assert sql("select count(*), count(distinct day), bool_and(complete) from event_days") == [(7, 7, True)]


def test_once_while_exports_are_under_way_and_wait_for_the_limit_ends_it_soon(
    start: Start, run_load: RunLoad, sql: Sql, sandbox: Sandbox
) -> None:
    waiting = (Fault.stall(300), Fault.stall(300, after_bytes=20), Fault.rate_limited(3000))
    sandbox.faults.next("export", Fault.none(), Fault.none(), *waiting)
    mpload = start()
    mpload.wait_until(lambda: sum(request.status == 429 for request in sandbox.requests) > 0)
    mpload.interrupt()
    code, out, err = mpload.end()
    assert (code, out) == (130, "")
    assert err.endswith("mpload: interrupted\n")
    sandbox.faults.clear()
    for path in Path(os.environ["MP_DATA_DIR"]).glob("ledger*"):  # it would keep to the 429
        if path.is_file():
            path.unlink()
    all_is_there_once(run_load, sql)


def test_once_while_a_package_is_written_ends_it_when_that_is_done(start: Start, run_load: RunLoad, sql: Sql) -> None:
    run_load(WEEK[0], WEEK[1])
    mpload = start()
    mpload.wait_until((mpload.folder / "writing").exists)
    mpload.interrupt()
    time.sleep(0.5)
    assert mpload.process.poll() is None
    (mpload.folder / "go").touch()
    said = "mpload: finishing what is being written; Ctrl-C once more stops at once\nmpload: interrupted\n"
    assert mpload.end() == (130, "", said)
    assert sql("select count(*), count(distinct event_id) from events") == [(21, 21)]
    all_is_there_once(run_load, sql)


def test_twice_while_a_package_is_written_ends_it_at_once_and_the_days_stay_as_they_were(
    start: Start, run_load: RunLoad, sql: Sql
) -> None:
    run_load(WEEK[0], WEEK[1])
    before = sql("select * from events order by event_id")
    mpload = start()
    mpload.wait_until((mpload.folder / "writing").exists)
    mpload.interrupt()
    time.sleep(0.5)
    mpload.interrupt()
    code, _, err = mpload.end()
    assert (code, err.splitlines()[-1]) == (130, "mpload: interrupted")
    assert sql("select * from events order by event_id") == before
    all_is_there_once(run_load, sql)
