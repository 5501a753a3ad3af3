"""Eight projects of 30 days into one destination by four workers that share the request ledger, and are killed.

Each worker is a machine: a data folder of its own, and one `mpload load --accounts` after the other, each of one
project. Into Postgres with the ledger in Postgres, and into DuckLake with its catalog in Postgres and the ledger in
Redis, where it is installed. First nobody is killed, and the time is compared with what a simulation foretold; then
loads are killed with SIGKILL at random moments, and whichever worker is free next goes on with the project. In the end
each dataset holds what was served, the views hold all of it, and no request was refused.

The hours of the limit are short and hold few requests, for the sandbox and the ledger alike.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import dlt

from mixpanel_source import settings
from mixpanel_source.destinations import target_of
from mixpanel_source.many_projects import UNION_DATASET, dataset_of
from mixpanel_source.pipeline import open_pipeline
from mixpanel_source.planner import WindowLimits
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.sandbox.limits import RateLimit
from mixpanel_source.simulation import Amount, Machine, Server, Simulation, available_cores, simulate
from soak import postgres, redis_server
from soak.many_sandboxes import serving
from soak.processes import mpload_environment
from soak.served import Served, day_number, fill
from soak.trial import Options, Outcome

PROJECTS: Final = 8
WORKERS: Final = 4
DAYS: Final = 30
EVENTS_A_DAY: Final = 40
REQUESTS: Final = 12
"""Of an hour."""
HOUR_S: Final = 30.0
LEAST_HOUR_S: Final = 8.0
"""In small samples: three requests a second take four of them."""
KILLED: Final = 0.5
"""Share of the loads that are killed, of those that may be; the first of each project always is."""
KILLS: Final = 3
"""Of one project at the most, so that it is over once."""
KILLED_WITHIN_HOURS: Final = 1.5
KINDS: Final = ("postgres", "ducklake")


def run(options: Options, kinds: Sequence[str] = KINDS) -> Outcome:
    outcome = Outcome()
    if not postgres.installed() or not all(map(find_spec, ("psycopg", "psycopg2", "adbc_driver_postgresql"))):
        outcome.figures["left out"] = "needs initdb and pg_ctl, and the packages of `make test-destinations`"
        return outcome
    with postgres.running() as server:
        for kind in kinds:
            if kind == "ducklake" and not find_spec("duckdb_extensions"):
                outcome.figures[kind] = "left out: needs the packages duckdb-extensions"
            elif kind == "ducklake" and redis_server.installed() and find_spec("redis"):
                with redis_server.running() as redis:
                    _Trial(options, outcome, kind, server, redis.url).run()
            else:
                _Trial(options, outcome, kind, server, server.url).run()
    return outcome


@dataclass
class _Project:
    name: str
    sandbox: Sandbox
    served: Served
    kills: int = 0
    loads: int = 0


@dataclass
class _Run:
    """All projects into an empty destination."""

    folder: Path
    environment: Mapping[str, str]
    projects: list[_Project]
    may_kill: bool
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _Trial:
    def __init__(
        self, options: Options, outcome: Outcome, kind: str, server: postgres.PostgresServer, ledger_url: str
    ) -> None:
        self._options = options
        self._outcome = outcome
        self._kind = kind
        self._server = server
        self._ledger_url = ledger_url
        self._projects = max(2, options.scaled(PROJECTS))
        self._workers = max(2, options.scaled(WORKERS))
        self._hour_s = max(LEAST_HOUR_S, HOUR_S * options.size)
        self._random = random.Random(f"{options.seed} {kind}")

    def run(self) -> None:
        machine = self._calibrate()
        foretold = simulate(
            Amount(EVENTS_A_DAY * 3 // 2, DAYS, self._projects, bytes_per_event=150),
            workers=self._workers,
            machine=machine,
            server=Server(first_byte_s=0.02, bytes_per_s=1e8),
            windows=WindowLimits(1, None, None),
            count_events=False,
            typed_tables=False,
            limits={**settings.LIMITS, "export": ((REQUESTS, self._hour_s), (3, 1.0))},
        )
        whole = self._run("whole", may_kill=False)
        killed = self._run("killed", may_kill=True)
        self._tell(foretold, machine, whole, killed)

    def _tell(self, foretold: Simulation, machine: Machine, whole: _Run, killed: _Run) -> None:
        requests = sum(self._exports(project) for project in whole.projects)
        self._outcome.figures |= {
            f"{self._kind}: projects, workers": f"{self._projects}, {self._workers}",
            f"{self._kind}: seconds, and foretold": f"{whole.seconds:.0f}, {foretold.seconds:.0f}"
            f" ({whole.seconds / foretold.seconds - 1:+.0%}), bound by {foretold.bound_by}",
            f"{self._kind}: foretold without": {name: round(s) for name, s in foretold.seconds_without.items()},
            f"{self._kind}: requests, and foretold": f"{requests}, {foretold.requests['export']}",
            f"{self._kind}: a start, a package": f"{machine.start_s:.1f} s, {machine.package_s:.1f} s",
            f"{self._kind}: with kills": f"{killed.seconds:.0f} s, {sum(p.kills for p in killed.projects)} kills,"
            f" {sum(p.loads for p in killed.projects)} loads, {sum(map(self._exports, killed.projects))} requests",
        }
        if requests != foretold.requests["export"]:
            self._wrong("whole", f"{requests} requests, and {foretold.requests['export']} foretold")

    def _calibrate(self) -> Machine:
        """Of a project alone: what a load takes that has nothing to do, one small package, and the first one."""
        run_ = self._new_run("calibration", 1, may_kill=False)
        [project] = run_.projects
        with serving([project.sandbox]) as server:

            def seconds(day: int) -> float:
                began = time.monotonic()
                process = self._start(run_, server.url, 0, project, day, day)
                if process.wait():
                    raise RuntimeError(f"a load of one day failed: {_tail(run_.folder)}")
                return time.monotonic() - began

            first, nothing, next_ = seconds(0), seconds(0), seconds(1)
        package_s = max(next_ - nothing, 0.0)
        # Each project makes its tables once.
        return Machine(cores=available_cores(), package_s=package_s, start_s=nothing + max(first - next_, 0.0))

    # --- one run

    def _run(self, name: str, *, may_kill: bool) -> _Run:
        run_ = self._new_run(name, self._projects, may_kill)
        waiting: queue.SimpleQueue[_Project] = queue.SimpleQueue()
        for project in run_.projects:
            waiting.put(project)
        left = len(run_.projects)
        lock = threading.Lock()
        with self._reading(run_):  # two that come first at once would both make the lake, and one of them fail
            self._open(UNION_DATASET)
        began = time.monotonic()

        def work(number: int, chance: random.Random, url: str) -> None:
            nonlocal left
            while left and not run_.failed:
                try:
                    project = waiting.get(timeout=0.2)
                except queue.Empty:
                    continue
                if self._load(run_, url, number, project, chance):
                    with lock:
                        left -= 1
                else:
                    waiting.put(project)

        with serving([project.sandbox for project in run_.projects]) as server:
            threads = [
                threading.Thread(target=work, args=(number, random.Random(self._random.random()), server.url))
                for number in range(self._workers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            run_.seconds = time.monotonic() - began
        for problem in run_.failed:
            self._wrong(name, problem)
        if not run_.failed:
            self._check(name, run_)
        return run_

    def _load(self, run_: _Run, url: str, worker: int, project: _Project, chance: random.Random) -> bool:
        """Whether it came through; else it was killed, and is to be loaded again."""
        project.loads += 1
        process = self._start(run_, url, worker, project, 0, DAYS - 1)
        may_kill = run_.may_kill and project.kills < KILLS
        is_killed = may_kill and (not project.kills or chance.random() < KILLED)
        try:
            status = process.wait(chance.uniform(0, KILLED_WITHIN_HOURS * self._hour_s) if is_killed else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            project.kills += 1
            return False
        if status:
            run_.failed.append(f"{project.name}: ended with {status}: {_tail(run_.folder)}")
        return True

    def _start(
        self, run_: _Run, url: str, worker: int, project: _Project, first: int, last: int
    ) -> subprocess.Popen[bytes]:
        days = ("--from", str(day_number(first)), "--to", str(day_number(last)))
        how = ("--window-days", "1", "--no-count-events", "--accounts", project.name, "--destination", self._kind)
        limits = (str(REQUESTS), str(self._hour_s))
        environment = mpload_environment(url, run_.folder) | dict(run_.environment)
        environment |= {"MP_DATA_DIR": str(run_.folder / f"machine-{worker}"), "MP_LEDGER_URL": self._ledger_url}
        with (run_.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "soak.mpload_in_short_hours", *limits, "load", "events", *days, *how],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )

    def _new_run(self, name: str, projects: int, may_kill: bool) -> _Run:
        folder = self._options.folder / f"{self._kind}-{name}"
        (folder / ".mp").mkdir(parents=True)
        made = []
        account = {"username": "sandbox", "secret": "sandbox", "region": "us"}
        lines = []
        for number in range(projects):
            project_id = f"{len(name)}{number}{1 + (self._kind == 'ducklake')}"  # the ledger outlives a run
            sandbox = Sandbox(project_id=project_id)
            clock = sandbox.clock
            sandbox.rate_limits["export"] = RateLimit(REQUESTS, self._hour_s, 100, 3, clock)
            served = fill(sandbox, self._random, days=DAYS, events_a_day=EVENTS_A_DAY, profiles=5)
            made.append(_Project(f"p{number}", sandbox, served))
            keys = {**account, "project_id": project_id}
            lines += [f"[accounts.p{number}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        config = folder / ".mp" / "config.toml"
        config.write_text("\n".join([*lines, ""]))
        config.chmod(0o600)
        return _Run(folder, self._destination(name, folder), made, may_kill)

    def _destination(self, name: str, folder: Path) -> dict[str, str]:
        """An empty one, as the environment tells of it."""
        import psycopg2

        database = f"{self._kind}_{name}"
        with closing(psycopg2.connect(self._server.url)) as connection:
            connection.autocommit = True
            # DuckLake takes no password with blanks.
            connection.cursor().execute(f"CREATE ROLE {database} SUPERUSER LOGIN PASSWORD 'plain'")
            connection.cursor().execute(f"CREATE DATABASE {database} OWNER {database}")
        host = self._server.url.rpartition("@")[2].partition("/")[0]
        url = f"postgresql://{database}:plain@{host}/{database}"
        if self._kind == "postgres":
            return {"DESTINATION__POSTGRES__CREDENTIALS": url}
        extensions = "from duckdb_extensions import import_extension as i; i('ducklake'); i('postgres_scanner')"
        subprocess.run([sys.executable, "-c", extensions], check=True, env={**os.environ, "HOME": str(folder)})
        lake = {"DUCKLAKE_NAME": "lake", "CATALOG": url, "STORAGE__BUCKET_URL": str(folder / "lake")}
        return {f"DESTINATION__DUCKLAKE__CREDENTIALS__{key}": value for key, value in lake.items()}

    # --- what has to hold

    def _check(self, name: str, run_: _Run) -> None:
        for project in run_.projects:
            refused = Counter(request.endpoint for request in project.sandbox.requests if request.status == 429)
            if refused:
                self._wrong(name, f"{project.name}: answers of 429: {dict(refused)}")
        with self._reading(run_):
            for project in run_.projects:
                for problem in self._differences(project):
                    self._wrong(name, f"{project.name}: {problem}")
            counted = dict(self._ask(UNION_DATASET, "SELECT project_id, count(*) FROM events GROUP BY project_id"))
        served = {project.sandbox.project_id: project.served.events.total() for project in run_.projects}
        if counted != served:
            self._wrong(name, f"the view holds {counted}, and {served} events were served")

    def _differences(self, project: _Project) -> Iterator[str]:
        dataset, served = dataset_of(project.name), project.served
        loaded = Counter(text for (text,) in self._ask(dataset, "SELECT CAST(properties AS TEXT) FROM events"))
        lost, twice = served.events - loaded, loaded - served.events
        if lost or twice:
            yield f"{lost.total()} events lost, {twice.total()} too many"
        by_day = dict(self._ask(dataset, "SELECT event_date, count(*) FROM events GROUP BY event_date"))
        if by_day != served.by_day:
            yield f"{sum(by_day.get(day) != rows for day, rows in served.by_day.items())} days have other events"
        days = self._ask(dataset, "SELECT day, event_days.rows, complete FROM event_days")
        if sorted(days) != sorted((day, rows, True) for day, rows in served.by_day.items()):
            yield "event_days does not tell of what was served"

    def _reading(self, run_: _Run) -> AbstractContextManager[None]:
        folder = str(run_.folder / "reader")
        return _environment({**run_.environment, "HOME": str(run_.folder), "MP_DATA_DIR": folder})

    def _open(self, dataset: str) -> dlt.Pipeline:
        return open_pipeline(target_of(self._kind, dataset))

    def _ask(self, dataset: str, sql: str) -> list[Any]:
        with self._open(dataset).sql_client() as client:
            return [tuple(row) for row in client.execute_sql(sql) or []]

    def _exports(self, project: _Project) -> int:
        return sum(request.endpoint == "export" for request in project.sandbox.requests)

    def _wrong(self, run_: str, what: str) -> None:
        self._outcome.wrong.append(f"{self._kind}, {run_}: {what}")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _tail(folder: Path) -> str:
    lines = [line for line in (folder / "log").read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-6:])[-1500:]
