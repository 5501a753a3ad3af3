"""Eight projects of 30 days into one destination by four workers that share the request ledger, and are killed.

Each worker is a machine: a data folder of its own, and one `mpload load --accounts` after the other, each of one
project. Into Postgres with the ledger in Postgres, and into DuckLake with its catalog in Postgres and the ledger in
Redis, where it is installed. First nobody is killed, and the time is compared with what a simulation foretold; then
loads are killed with SIGKILL at random moments, and whichever worker is free next goes on with the project. In the end
each dataset holds what was served, the views hold all of it, and no request was refused.

The hours of the limit are short and hold few requests, for the sandbox and the ledger alike, so that they are what the
loads wait for. Then once more with larger days and the limit as it is, where the processors are.
"""

from __future__ import annotations

import itertools
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
from dataclasses import dataclass, field, replace
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
LEAST_HOUR_S: Final = 8.0
"""In small samples: three requests a second take four of them."""
KILLED: Final = 0.5
"""Share of the loads that are killed, of those that may be; the first of each project always is."""
KILLS: Final = 3
"""Of one project at the most, so that it is over once."""
KILLED_WITHIN_HOURS: Final = 1.5
REQUESTS_AT_ONCE: Final = 3
"""Within a second, by the limit."""
KINDS: Final = ("postgres", "ducklake")


@dataclass(frozen=True)
class Shape:
    """What is loaded, within which limit."""

    name: str
    events_a_day: int
    """And up to twice as many."""
    requests: int
    """Of an hour."""
    hour_s: float
    kills: bool
    """Whether it is loaded once more, with kills."""

    @property
    def events(self) -> int:
        """Of a day, on average."""
        return self.events_a_day * 3 // 2


SHORT_HOURS: Final = Shape("short hours", events_a_day=40, requests=12, hour_s=30.0, kills=True)
LARGE_DAYS: Final = Shape("large days", events_a_day=16_000, requests=60, hour_s=3600.0, kills=False)
SHAPES: Final = (SHORT_HOURS, LARGE_DAYS)


def run(options: Options, kinds: Sequence[str] = KINDS, shapes: Sequence[Shape] = SHAPES) -> Outcome:
    outcome = Outcome()
    if not postgres.installed() or not all(map(find_spec, ("psycopg", "psycopg2", "adbc_driver_postgresql"))):
        outcome.figures["left out"] = "needs initdb and pg_ctl, and the packages of `make test-destinations`"
        return outcome
    with postgres.running() as server:
        for kind, shape in itertools.product(kinds, shapes):
            if kind == "ducklake" and not find_spec("duckdb_extensions"):
                outcome.figures[kind] = "left out: needs the packages duckdb-extensions"
            elif kind == "ducklake" and redis_server.installed() and find_spec("redis"):
                with redis_server.running() as redis:
                    _Trial(options, outcome, kind, shape, server, redis.url).run()
            else:
                _Trial(options, outcome, kind, shape, server, server.url).run()
    return outcome


@dataclass
class _Project:
    name: str
    sandbox: Sandbox
    served: Served
    kills: int = 0
    loads: int = 0


@dataclass(frozen=True)
class _Spent:
    wall_s: float
    cpu_s: float


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
        self,
        options: Options,
        outcome: Outcome,
        kind: str,
        shape: Shape,
        server: postgres.PostgresServer,
        ledger_url: str,
    ) -> None:
        self._options = options
        self._outcome = outcome
        self._kind = kind
        self._shape = shape
        self._server = server
        self._ledger_url = ledger_url
        self._projects = max(2, options.scaled(PROJECTS))
        self._workers = max(2, options.scaled(WORKERS))
        self._hour_s = max(LEAST_HOUR_S, shape.hour_s * options.size)
        self._random = random.Random(f"{options.seed} {kind} {shape.name}")

    def run(self) -> None:
        machine = self._calibrate()
        foretold = simulate(
            Amount(self._shape.events, DAYS, self._projects, bytes_per_event=150),
            workers=self._workers,
            machine=machine,
            server=Server(first_byte_s=0.02, bytes_per_s=1e8),
            windows=WindowLimits(1, None, None),
            count_events=False,
            typed_tables=False,  # what they take is part of what an event and a package take
            limits={**settings.LIMITS, "export": ((self._shape.requests, self._hour_s), (REQUESTS_AT_ONCE, 1.0))},
        )
        self._tell(foretold, machine, self._run("whole", may_kill=False))
        if self._shape.kills:
            killed = self._run("killed", may_kill=True)
            self._figure(
                "with kills",
                f"{killed.seconds:.0f} s, {sum(p.kills for p in killed.projects)} kills,"
                f" {sum(p.loads for p in killed.projects)} loads, {sum(map(self._exports, killed.projects))} requests",
            )

    def _tell(self, foretold: Simulation, machine: Machine, whole: _Run) -> None:
        requests = sum(self._exports(project) for project in whole.projects)
        self._figure("projects, workers", f"{self._projects}, {self._workers}")
        self._figure(
            "seconds, and foretold",
            f"{whole.seconds:.0f}, {foretold.seconds:.0f} ({whole.seconds / foretold.seconds - 1:+.0%}),"
            f" bound by {foretold.bound_by}",
        )
        self._figure("foretold without", {name: round(s) for name, s in foretold.seconds_without.items()})
        self._figure("requests, and foretold", f"{requests}, {foretold.requests['export']}")
        self._figure(
            "a start, a package, an event",
            f"{machine.start_s:.1f} s, {machine.package_s:.1f} s, {machine.event_s * 1e6:.0f} us"
            f" of a CPU, on {machine.threads:.1f} cores",
        )
        if requests != foretold.requests["export"]:
            self._wrong("whole", f"{requests} requests, and {foretold.requests['export']} foretold")

    def _calibrate(self) -> Machine:
        """Of a project alone: what a load takes that has nothing to do, one small package, and the first one.

        Of another one what large days take more. All of it is what the processors of the whole machine do, which has
        nothing else to do: the loads, what serves them, and the database.
        """
        is_large = self._shape.events_a_day > SHORT_HOURS.events_a_day
        events_a_day = [SHORT_HOURS.events_a_day, self._shape.events_a_day]
        run_ = self._new_run("calibration", events_a_day, may_kill=False)
        small, large = run_.projects
        with serving([project.sandbox for project in run_.projects]) as server:

            def spent(project: _Project, first: int, last: int) -> _Spent:
                before, began = _processor_s(), time.monotonic()
                process = self._start(run_, server.url, 0, project, first, last)
                if process.wait():
                    raise RuntimeError(f"a load of one day failed: {_tail(run_.folder)}")
                return _Spent(time.monotonic() - began, _processor_s() - before)

            first, nothing, next_ = (spent(small, day, day) for day in (0, 0, 1))
            machine = Machine(
                cores=available_cores(),
                # Each project makes its tables once.
                start_s=nothing.cpu_s + max(first.cpu_s - next_.cpu_s, 0.0),
                package_s=max(next_.cpu_s - nothing.cpu_s, 0.0),
                event_s=0.0,
                threads=next_.cpu_s / next_.wall_s,
            )
            if not is_large:
                return machine
            spent(large, 0, 0)
            # In as many requests as in the run: each takes some of it. They wait for the limit, which takes nothing.
            days = spent(large, 1, DAYS - 1)
            events = large.served.events.total() - large.served.by_day[day_number(0)]
            return replace(machine, event_s=max(days.cpu_s - next_.cpu_s, 0.0) / events)

    # --- one run

    def _run(self, name: str, *, may_kill: bool) -> _Run:
        run_ = self._new_run(name, [self._shape.events_a_day] * self._projects, may_kill)
        waiting: queue.SimpleQueue[_Project] = queue.SimpleQueue()
        for project in run_.projects:
            waiting.put(project)
        left = len(run_.projects)
        lock = threading.Lock()
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
        limits = (str(self._shape.requests), str(self._hour_s))
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

    def _new_run(self, name: str, events_a_day: Sequence[int], may_kill: bool) -> _Run:
        """A project for each of these."""
        name = f"{name}_{self._shape.name.replace(' ', '_')}"
        folder = self._options.folder / f"{self._kind}-{name}"
        (folder / ".mp").mkdir(parents=True)
        made = []
        account = {"username": "sandbox", "secret": "sandbox", "region": "us"}
        lines = []
        for number, events in enumerate(events_a_day):
            project_id = f"{len(name)}{number}{1 + (self._kind == 'ducklake')}"  # the ledger outlives a run
            sandbox = Sandbox(project_id=project_id)
            clock = sandbox.clock
            sandbox.rate_limits["export"] = RateLimit(self._shape.requests, self._hour_s, 100, REQUESTS_AT_ONCE, clock)
            served = fill(sandbox, self._random, days=DAYS, events_a_day=events, profiles=5)
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
        for table, (count, total) in served.typed.items() if self._kind == "ducklake" else ():
            place = f'"{dataset}{settings.TYPED_SUFFIX}"."{table}"'
            found = self._ask(dataset, f"SELECT count(*), sum(n), count(DISTINCT event_id) FROM {place}")
            if found != [(count, total, count)]:
                yield f"the typed table {table} holds {found}, and {count} events came"

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
        self._outcome.wrong.append(f"{self._kind}, {self._shape.name}, {run_}: {what}")

    def _figure(self, name: str, value: object) -> None:
        self._outcome.figures[f"{self._kind}, {self._shape.name}: {name}"] = value


def _processor_s() -> float:
    """That all processors of the machine were busy, since it began."""
    user, nice, system, _idle, _waiting, *more = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, *more[:2]))) / os.sysconf("SC_CLK_TCK")


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
