"""Four processes load one project within its request limits, and one of them is killed: nothing is refused, or wasted.

Each loads days into a database of its own, and walks over the profiles meanwhile. They share the request ledger of a
machine; where Postgres or Redis is installed, once more that of several machines in each.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak import postgres, redis_server
from soak.trial import Options, Outcome

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event as _Event

PROCESSES: Final = 4
HOURS: Final = 4
HOUR_S: Final = 30.0
FIRST: Final = date(2010, 1, 1)
PROFILES: Final = 500
LEAST_USED: Final = 0.95
START_S: Final = 120.0


def run(options: Options) -> Outcome:
    outcome = Outcome()
    hours = options.scaled(HOURS)
    chance = random.Random(options.seed)
    _share(outcome, "file", options.folder / "file", hours, chance, None)
    if postgres.installed():
        with postgres.running() as server:
            _share(outcome, "Postgres", options.folder / "postgres", hours, chance, server.url)
    else:
        outcome.figures["Postgres"] = "left out: it is not installed"
    if redis_server.installed():
        with redis_server.running() as redis:
            _share(outcome, "Redis", options.folder / "redis", hours, chance, redis.url)
    else:
        outcome.figures["Redis"] = "left out: it is not installed"
    return outcome


def _share(
    outcome: Outcome, kind: str, folder: Path, hours: int, chance: random.Random, ledger_url: str | None
) -> None:
    from mixpanel_source.sandbox import Sandbox, SandboxServer

    folder.mkdir()
    sandbox = Sandbox(now=datetime(2020, 1, 1, tzinfo=UTC), hour_s=HOUR_S, page_size=100)
    sandbox.set_profiles(
        [{"$distinct_id": f"u{n}", "$properties": {"$last_seen": "2019-01-01T00:00:00"}} for n in range(PROFILES)]
    )
    context = multiprocessing.get_context("spawn")
    with SandboxServer(sandbox) as server, ExitStack() as at_end:
        begin = context.Event()
        workers = []
        for number in range(PROCESSES):
            ready = context.Event()
            arguments = (number, folder, server.url, ledger_url, ready, begin)
            workers.append(context.Process(target=_load, args=arguments, daemon=True))
            workers[-1].start()
            at_end.callback(workers[-1].kill)
            if not ready.wait(START_S):
                raise RuntimeError(f"process {number} has not started")
        began = sandbox.clock()
        begin.set()
        time.sleep(hours * HOUR_S * chance.uniform(0.3, 0.7))
        workers[chance.randrange(PROCESSES)].kill()
        while sandbox.clock() < began + hours * HOUR_S + 5.0:
            time.sleep(0.5)
        alive = sum(worker.is_alive() for worker in workers)
    requests = list(sandbox.requests)
    if alive != PROCESSES - 1:
        outcome.wrong.append(f"{kind}: {alive} processes of {PROCESSES - 1} were alive at the end")
    refused = [request.endpoint for request in requests if request.status == 429]
    if refused:
        outcome.wrong.append(f"{kind}: {len(refused)} answers of 429 ({', '.join(sorted(set(refused)))})")
    for endpoint in ("export", "engage"):
        served = [request.at for request in requests if request.endpoint == endpoint and request.status == 200]
        first = min(served, default=began)
        used = sum(at < first + hours * HOUR_S for at in served) / (60 * hours)
        outcome.figures[f"{kind}, {endpoint}: allowed requests used in {hours} hours of {HOUR_S:.0f} s"] = f"{used:.1%}"
        if used < LEAST_USED:
            outcome.wrong.append(f"{kind}: only {used:.1%} of the allowed requests of {endpoint} were used")


def _load(number: int, folder: Path, base_url: str, ledger_url: str | None, ready: _Event, begin: _Event) -> None:
    """Loads days that nobody else loads, and walks over the profiles, until it is killed."""
    # Each would be a machine of its own, where they share a ledger on a server.
    data = folder / (f"machine{number}" if ledger_url else "machine")
    os.environ["MP_DATA_DIR"] = str(data)
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"

    from mixpanel_source import settings
    from mixpanel_source.credentials import Credentials
    from mixpanel_source.load import load
    from mixpanel_source.project import Project
    from mixpanel_source.windows import DateRange

    settings.LIMITS["export"] = ((60, HOUR_S), (3, 1.0))
    settings.LIMITS["query"] = ((60, HOUR_S),)
    project = Project(
        Credentials("sandbox", "sandbox", "1", "us"), base_url=base_url, window_days=1, ledger_url=ledger_url
    )

    def walk() -> None:
        with project.client() as client:
            while True:
                client.profiles().close()

    ready.set()
    begin.wait()
    threading.Thread(target=walk, daemon=True).start()
    first = FIRST + timedelta(days=number * 500)
    load(project, folder / f"{number}.duckdb", ["events"], asked=DateRange(first, first + timedelta(days=499)))
