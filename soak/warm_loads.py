"""Loads in processes forked from one that has imported everything: what starts a load costs no second then.

    python -m soak.warm_loads URL

Reads a `Load` as JSON from each line of stdin and writes an `Ended` for it. It forks, so it has no thread and opens no
database itself. The limits of requests are lifted, and each package is written as soon as it holds a window, which a
load does otherwise after a minute or some 500 MB.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import dlt
from dlt.destinations.impl.duckdb.sql_client import DuckDbSqlClient
from dlt.destinations.job_client_impl import SqlJobClientBase

from mixpanel_source import bodies, load_record, settings, typed
from mixpanel_source.credentials import Credentials
from mixpanel_source.kept_exports import KeptExports
from mixpanel_source.load import load
from mixpanel_source.parquet_file import ParquetFile
from mixpanel_source.parsing.events import EventParser
from mixpanel_source.project import Project
from mixpanel_source.resources.events import PackageLimits
from mixpanel_source.windows import DateRange


class Step(NamedTuple):
    """A function of the product, or of dlt, that a load comes through."""

    name: str
    owner: Any
    function: str


LOADS = import_module("mixpanel_source.load")
"""Not by `from mixpanel_source import load`: that is the function of this name."""

STEPS = (
    Step("opening", LOADS, "open_pipeline"),
    Step("taking up exports", KeptExports, "take_up"),
    Step("spooling", bodies.Spool, "write"),
    Step("keeping an export", KeptExports, "keep"),
    Step("dropping an export", KeptExports, "drop"),
    Step("converting", EventParser, "parse"),
    Step("package file", ParquetFile, "write"),
    Step("extract", dlt.Pipeline, "extract"),
    Step("normalize", dlt.Pipeline, "normalize"),
    Step("load", dlt.Pipeline, "load"),
    Step("load: commit", DuckDbSqlClient, "commit_transaction"),
    Step("load: noted", SqlJobClientBase, "complete_load"),
    Step("state write", dlt.Pipeline, "_save_state"),
    Step("typed tables", typed, "_days_in_step"),
    Step("typed tables: rows", typed._Events, "add"),
    Step("typed tables: end", typed._Events, "finish"),
    Step("typed tables: profiles", typed, "_profiles_in_step"),
    Step("load record", load_record, "_write"),
    Step("load_runs", load_record, "write_runs"),
)


@dataclass(frozen=True)
class Kill:
    """When a load is killed: some seconds after its start, or before or after a step is taken for the nth time."""

    after_s: float | None = None
    step: str | None = None
    nth: int = 1
    when: Literal["before", "after"] = "before"

    def __str__(self) -> str:
        return f"after {self.after_s:.2f} s" if self.after_s is not None else f"{self.when} {self.step} ({self.nth})"


@dataclass(frozen=True)
class Load:
    """`data_folder` is MP_DATA_DIR; `log` gets what the load says."""

    database: str
    data_folder: str
    log: str
    first: str
    last: str
    max_window_days: int
    kill: dict[str, Any] | None = None


@dataclass(frozen=True)
class Ended:
    """`status`: 0, or what it ended with, less than 0 for a signal. `inside`: the steps it was in at its end."""

    status: int
    seconds: float
    inside: list[str]
    taken: dict[str, int]
    """How often each step was begun."""


class _Marks:
    """Which step a child is in, in memory that it shares with us: it can be read when the child is dead."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8 * len(STEPS))
        self._numbers = memoryview(self._shared).cast("I")
        self._lock = threading.Lock()

    def clear(self) -> None:
        self._shared[:] = bytes(len(self._shared))

    def enter(self, step: int) -> int:
        with self._lock:
            self._numbers[2 * step] += 1
            self._numbers[2 * step + 1] += 1
            return self._numbers[2 * step + 1]

    def leave(self, step: int) -> None:
        with self._lock:
            self._numbers[2 * step] -= 1

    @property
    def inside(self) -> list[str]:
        return [step.name for number, step in enumerate(STEPS) if self._numbers[2 * number]]

    @property
    def taken(self) -> dict[str, int]:
        return {step.name: self._numbers[2 * number + 1] for number, step in enumerate(STEPS)}


def _watch_steps(marks: _Marks, kill: Kill | None) -> None:
    for number, step in enumerate(STEPS):
        original = vars(step.owner)[step.function]
        setattr(step.owner, step.function, _stepping(original, marks, number, kill))


def _stepping(original: Callable[..., Any], marks: _Marks, number: int, kill: Kill | None) -> Callable[..., Any]:
    name = STEPS[number].name

    def step(*args: Any, **kwargs: Any) -> Any:
        nth = marks.enter(number)
        is_last = kill is not None and kill.step == name and kill.nth == nth
        if is_last and kill is not None and kill.when == "before":
            os.killpg(0, signal.SIGKILL)
        try:
            result = original(*args, **kwargs)
        finally:
            marks.leave(number)
        if is_last:
            os.killpg(0, signal.SIGKILL)
        return result

    return step


def _load(url: str, asked: Load) -> None:
    os.environ["MP_DATA_DIR"] = asked.data_folder
    project = Project(
        Credentials("sandbox", "sandbox", "1", "us"), max_window_days=asked.max_window_days, base_url=url, retries=0
    )
    days = DateRange(date.fromisoformat(asked.first), date.fromisoformat(asked.last))
    with patch.object(LOADS, "PackageLimits", partial(PackageLimits, seconds=0.0)):
        result = load(project, Path(asked.database), asked=days)
    if result.error is not None:
        raise result.error
    _modules(asked).write_text("\n".join(sys.modules))


def _modules(asked: Load) -> Path:
    """The file in which a load that is through leaves what it has imported."""
    return Path(asked.log).with_name("modules")


def _import(names: list[str]) -> None:
    """What a load imports on its way, so that the next ones have it."""
    for name in names:
        if name not in sys.modules:
            with suppress(ImportError):
                import_module(name)


def _fork(work: Callable[[], object], log: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _ended(child: int, kill_after_s: float | None, marks: _Marks) -> Ended:
    started = time.monotonic()
    is_killed = False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - started
        if found:
            return Ended(os.waitstatus_to_exitcode(status), seconds, marks.inside, marks.taken)
        if kill_after_s is not None and seconds >= kill_after_s and not is_killed:
            os.killpg(child, signal.SIGKILL)
            is_killed = True
        time.sleep(0.002)


def main(url: str) -> None:
    for family in settings.LIMITS:
        settings.LIMITS[family] = ((100_000, 1.0),)
    marks = _Marks()
    for line in sys.stdin:
        asked = Load(**json.loads(line))
        kill = None if asked.kill is None else Kill(**asked.kill)
        marks.clear()

        def work(asked: Load = asked, kill: Kill | None = kill) -> None:
            _watch_steps(marks, kill)
            _load(url, asked)

        child = _fork(work, Path(asked.log))
        with suppress(OSError):
            os.setpgid(child, child)  # as it does itself: whichever of the two comes first
        ended = _ended(child, kill.after_s if kill else None, marks)
        if ended.status == 0:
            _import(_modules(asked).read_text().split())
        print(json.dumps(asdict(ended)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
