"""A storm: 30% of all answers are 429, 5xx, resets, cut bodies, stalls; a backfill loaded until it is done is exact.

With the limits of Mixpanel, their hour scaled to HOUR_S. A load whose retries are used up ends with an error and is
started again, as a user would.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

from mixpanel_source import settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.load import load
from mixpanel_source.project import Project
from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer
from mixpanel_source.sandbox.faults import STORM
from mixpanel_source.windows import DateRange
from soak.served import day_number, fill
from soak.trial import Options, Outcome

DAYS = 365
PAGES = 40
PAGE_SIZE = 50
SHARE = 0.3
HOUR_S = 30.0
BACKOFF_S = 0.05
TIMEOUT_S = 1.0
MOST_LOADS = 40

FAULTS = (
    *STORM,
    Fault.rate_limited(),
    Fault.rate_limited(1),
    Fault.rate_limited(datetime.now(UTC) + timedelta(seconds=1)),
    Fault.http(502, "<html>Bad gateway</html>"),
    Fault.http(503, headers={"retry-after": "1"}),
    Fault.html(),
    Fault.cut(end="reset"),
    Fault.stall(1.5 * TIMEOUT_S),
    Fault.stall(1.5 * TIMEOUT_S, after_bytes=100),
)


def run(options: Options) -> Outcome:
    outcome = Outcome()
    days = options.scaled(DAYS)
    profiles = options.scaled(PAGES) * PAGE_SIZE
    sandbox = Sandbox(hour_s=HOUR_S, page_size=PAGE_SIZE)
    served = fill(sandbox, random.Random(options.seed), days=days, events_a_day=30, profiles=profiles)
    sandbox.faults.random(options.seed, SHARE, FAULTS)
    sandbox.faults.next("engage", *[Fault.none()] * (profiles // PAGE_SIZE // 2), Fault.expired_session())
    database = options.folder / "m.duckdb"
    asked = DateRange(day_number(0), day_number(days - 1))
    limits = {family: tuple((count, min(seconds, HOUR_S)) for count, seconds in limit)
              for family, limit in settings.LIMITS.items()}  # fmt: skip
    ended: Counter[str] = Counter()
    with (
        SandboxServer(sandbox) as server,
        patch.dict(settings.LIMITS, limits),
        patch.object(settings, "BACKOFF_FIRST_S", BACKOFF_S),
        patch.dict("os.environ", {"MP_DATA_DIR": str(options.folder / "data")}),
    ):
        project = Project(
            Credentials("sandbox", "sandbox", "1", "us"), base_url=server.url, window_days=1,
            timeout_s=TIMEOUT_S, export_timeout_s=TIMEOUT_S,
        )  # fmt: skip
        for _ in range(MOST_LOADS):
            result = load(project, database, asked=asked)
            ended.update(type(table.error).__name__ for table in result.tables if table.error is not None)
            if result.error is None:
                break
        else:
            outcome.wrong.append(f"not through after {MOST_LOADS} loads: {result.error}")
            return outcome
    outcome.wrong += served.differences(database)
    statuses = Counter(str(request.status) for request in sandbox.requests)
    outcome.figures = {
        "days": days,
        "events": served.events.total(),
        "profiles": profiles,
        "loads that ended with an error": dict(ended),
        "requests by status (None: reset)": dict(sorted(statuses.items())),
    }
    return outcome
