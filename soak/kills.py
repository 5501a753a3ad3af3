"""Backfills of 30 days, killed with SIGKILL again and again until one comes through: nothing lost, nothing twice.

Each run is killed at a random moment of a load's length, and before or after a step by name (`warm_loads.STEPS`); then
it is started again until it is through. After each kill the file is read as anybody might: each day is there whole or
not at all. In the end it holds what was served, and no export has asked for a day that had been committed.

Most loads are forked from a process that has imported dlt. They are killed with all their threads, and nothing of them
is in memory when the next one begins; what a kill while Python starts and imports does, they do not show. Each
REAL_EVERYth run is an `mpload load` as users start it, its packages a minute long, killed anywhere from its start on.
SIGKILL leaves the machine running: what a power cut does to pages that are not on the disk yet is not tried.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Literal

from mixpanel_source.event_days import LOADED_DAYS_SQL
from mixpanel_source.sandbox import Sandbox, SandboxServer
from soak.processes import mpload_command, mpload_environment, write_account
from soak.served import FIRST_DAY, day_number, fill, reading, tables_of
from soak.trial import Options, Outcome
from soak.warm_loads import STEPS, Ended, Kill, Load

RUNS = 200
REAL_EVERY = 10
TIMED_EVERY = 10
"""So often one is timed that nobody stops: moments are shares of what the last such one took."""
DAYS = 30
EVENTS_A_DAY = 40
PROFILE_COUNT = 60
WINDOW_DAYS = 8
"""Of each export: so that a backfill is some packages."""
ATTEMPTS = 3
"""More that nobody stops would mean that a run does not come forward."""
AGAIN = 3
LEAST_LEFT = 0.4
"""Share of a load's time that one takes which has little left to load."""


def run(options: Options) -> Outcome:
    return _Trial(options).run()


@dataclass
class _Attempt:
    """A load, and what the file held when it had ended."""

    ended: Ended
    asked_days: set[date]
    committed: set[date] = field(default_factory=set)

    @property
    def is_killed(self) -> bool:
        return self.ended.status == -signal.SIGKILL


class _Trial:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._random = random.Random(options.seed)
        self._outcome = Outcome()
        self._sandbox = Sandbox(limits=False, page_size=25)
        self._served = fill(self._sandbox, self._random, days=DAYS, events_a_day=EVENTS_A_DAY, profiles=PROFILE_COUNT)
        self._seconds: list[float] = []
        """Of warm loads that nobody stopped."""
        self._real_seconds: list[float] = []
        self._taken: dict[str, int] = {}
        self._kills: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()
        """Steps that random moments met."""
        self._committed: Counter[int] = Counter()
        """Days that were committed when a load was killed."""
        self._late = 0
        """Kills that came when the load was through."""

    def run(self) -> Outcome:
        runs = self._options.scaled(RUNS)
        moments = [(number + self._random.random()) / runs for number in range(runs)]
        self._random.shuffle(moments)
        with SandboxServer(self._sandbox) as server, _warm_runner(server.url) as self._runner:
            self._url = server.url
            self._run_once("first", [])  # imports, and does not count
            self._seconds.clear()
            for number, moment in enumerate(moments):
                if number % TIMED_EVERY == 0:
                    self._run_once(f"whole-{number}", [])
                if self._outcome.wrong:
                    break
                if number % REAL_EVERY == REAL_EVERY - 1:
                    self._run_real(f"real-{number}", moment)
                else:
                    self._run_once(f"run-{number}", self._plan_kills(number, moment))
        self._outcome.figures = {
            "runs": runs,
            "seconds of a load that nobody stops": f"{median(self._seconds):.1f} warm"
            + (f", {median(self._real_seconds):.1f} mpload" if self._real_seconds else ""),
            "kills": dict(self._kills),
            "kills that came when the load was through": self._late,
            "steps that kills at random moments met": dict(self._inside.most_common()),
            "days committed at a kill": dict(sorted(self._committed.items())),
        }
        return self._outcome

    def _plan_kills(self, number: int, moment: float) -> list[Kill | float]:
        """A step by name, and a random moment as a share of a load, the one or the other first."""
        step = STEPS[number % len(STEPS)].name
        is_first = self._random.random() < 0.5
        when: Literal["before", "after"] = self._random.choice(("before", "after"))
        nth = self._random.randint(1, max(1, self._taken[step])) if is_first else 1
        kill = Kill(step=step, nth=nth, when=when)
        return [kill, moment] if is_first else [moment, kill]

    def _run_once(self, name: str, kills: list[Kill | float]) -> None:
        """One backfill. It starts over where it was through before its random moment: a load may be a quick one."""
        for again in range(AGAIN + 1):
            folder = self._options.folder / f"{name}.{again}"
            folder.mkdir()
            is_late = self._load_until_through(folder, kills)
            if not is_late:
                return
            self._late += 1

    def _load_until_through(self, folder: Path, kills: list[Kill | float]) -> bool:
        """Whether it was through before the random moment."""
        attempts: list[_Attempt] = []
        is_late = False
        for planned in [*kills, *[None] * ATTEMPTS]:
            kill = self._at(planned, attempts) if isinstance(planned, float) else planned
            told = f"{folder.name}, {kill}"
            attempt = self._attempt(folder, kill)
            self._check_attempt(told, folder, attempt, attempts)
            attempts.append(attempt)
            if attempt.ended.status == 0:
                is_late = is_late or isinstance(planned, float)
                if kill is None:
                    if not kills:
                        self._seconds.append(attempt.ended.seconds)
                        self._taken = attempt.ended.taken
                    self._check_end(told, folder)
                    return is_late
            elif attempt.is_killed and kill is not None:
                self._note_kill(kill.step or "random moment", attempt)
            else:
                self._wrong(f"{told}: ended with {attempt.ended.status}: {_tail(folder / 'log')}")
                return False
        self._wrong(f"{folder.name}: not through after {len(attempts)} loads")
        return False

    def _at(self, moment: float, before: list[_Attempt]) -> Kill:
        """A share of the time that a load takes for what is left to it."""
        left = 1 - len(before[-1].committed) / DAYS if before else 1.0
        return Kill(after_s=moment * self._seconds[-1] * max(left, LEAST_LEFT))

    def _run_real(self, name: str, moment: float) -> None:
        """Two loads of `mpload` first, so that days are committed; the second one is killed, then a third is not."""
        folder = self._options.folder / name
        write_account(folder)
        attempts: list[_Attempt] = []
        last = day_number(DAYS - 1)
        if not self._real_seconds:  # how long one takes
            timed = self._real_load(folder, last, None)
            self._real_seconds.append(timed.ended.seconds)
            shutil.rmtree(folder)
            write_account(folder)
        kill = Kill(after_s=moment * median(self._real_seconds))
        for until, killed in ((day_number(9), None), (last, kill), (last, None)):
            attempt = self._real_load(folder, until, killed)
            self._check_attempt(f"{name}, {killed}", folder, attempt, attempts)
            attempts.append(attempt)
            if attempt.is_killed and killed is not None:
                self._note_kill("mpload, random moment", attempt)
            elif attempt.ended.status:
                self._wrong(f"{name}, {killed}: ended with {attempt.ended.status}: {_tail(folder / 'log')}")
                return
            elif killed is not None:
                self._late += 1
        self._check_end(name, folder)

    def _note_kill(self, what: str, attempt: _Attempt) -> None:
        self._kills[what] += 1
        self._committed[len(attempt.committed)] += 1
        if what == "random moment":
            self._inside.update(attempt.ended.inside or ["between"])

    # --- one load

    def _attempt(self, folder: Path, kill: Kill | None) -> _Attempt:
        load = Load(
            database=str(folder / "m.duckdb"),
            data_folder=str(folder / "data"),
            log=str(folder / "log"),
            first=str(FIRST_DAY),
            last=str(day_number(DAYS - 1)),
            max_window_days=WINDOW_DAYS,
            kill=None if kill is None else asdict(kill),
        )
        before = len(self._sandbox.requests)
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        self._runner.stdin.write(json.dumps(asdict(load)) + "\n")
        self._runner.stdin.flush()
        ended = Ended(**json.loads(self._runner.stdout.readline()))
        return _Attempt(ended, self._asked_since(before), _committed_days(folder / "m.duckdb"))

    def _real_load(self, folder: Path, last: date, kill: Kill | None) -> _Attempt:
        before = len(self._sandbox.requests)
        started = time.monotonic()
        with (folder / "log").open("ab") as log:
            dates = ("--from", str(FIRST_DAY), "--to", str(last), "--max-window-days", str(WINDOW_DAYS))
            process = subprocess.Popen(
                mpload_command("load", *dates, "--db", str(folder / "m.duckdb")),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=mpload_environment(self._url, folder),
            )
            try:
                status = process.wait(None if kill is None else kill.after_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                status = process.wait()
        ended = Ended(status, time.monotonic() - started, [], {})
        return _Attempt(ended, self._asked_since(before), _committed_days(folder / "m.duckdb"))

    def _asked_since(self, before: int) -> set[date]:
        asked: set[date] = set()
        for request in self._sandbox.requests[before:]:
            if request.endpoint == "export":
                first, last = (date.fromisoformat(request.params[name]) for name in ("from_date", "to_date"))
                asked.update(first + timedelta(n) for n in range((last - first).days + 1))
        return asked

    # --- what has to hold

    def _check_attempt(self, name: str, folder: Path, attempt: _Attempt, before: list[_Attempt]) -> None:
        committed = before[-1].committed if before else set()
        if again := attempt.asked_days & committed:
            self._wrong(f"{name}: asked again for {len(again)} days that were committed")
        if lost := committed - attempt.committed:
            self._wrong(f"{name}: {len(lost)} days were committed and are not any more")
        if not (folder / "m.duckdb").exists():
            return
        days = _rows_by_day(folder / "m.duckdb")
        for day, rows in days.items():
            if rows != self._served.by_day[day]:
                self._wrong(f"{name}: {day} has {rows} events of {self._served.by_day[day]}")
        if missing := attempt.committed - days.keys():
            self._wrong(f"{name}: {len(missing)} days are called complete and have no events")

    def _check_end(self, name: str, folder: Path) -> None:
        for problem in self._served.differences(folder / "m.duckdb"):
            self._wrong(f"{name}: {problem}")
        kept = [path for path in (folder / "data" / "spool").glob("*/*") if path.is_file()]
        if kept:
            self._wrong(f"{name}: {len(kept)} files of exports are still kept: {kept[0].name}")
        if not self._outcome.wrong:
            shutil.rmtree(folder)

    def _wrong(self, what: str) -> None:
        self._outcome.wrong.append(what)


# --- loads and files


@contextmanager
def _warm_runner(url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "soak.warm_loads", url]
    environment = {**os.environ, "RUNTIME__DLTHUB_TELEMETRY": "false"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _committed_days(database: Path) -> set[date]:
    """Those that a load would not ask for again."""
    if not database.exists():
        return set()
    with reading(database) as ask:
        if not {"event_days", "_dlt_loads"} <= tables_of(ask):
            return set()
        return {day for day, _, _, complete, _, _ in ask(LOADED_DAYS_SQL) if complete}


def _rows_by_day(database: Path) -> dict[date, int]:
    with reading(database) as ask:
        return dict(ask("select event_date, count(*) from events group by all")) if "events" in tables_of(ask) else {}


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return " | ".join(lines[-6:])[-1500:]
