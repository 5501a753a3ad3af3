"""A million profiles at the server's page size, one session of which expires in the middle: exact, in flat memory.

By `mpload load` without the limits of requests, once with a tenth of them and once with all: memory must not grow with
their number. Each session gives them in another order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer
from mixpanel_source.sandbox.data import Profiles
from mixpanel_source.settings import DATASET, TYPED_DATASET
from soak.processes import MIB, Finished, run_mpload, write_account
from soak.served import reading
from soak.trial import Options, Outcome

PROFILES = 1_000_000
PAGE_SIZE = 1000
MOST_S = 4 * 3600.0
MOST_MEMORY = 1.25
ALLOWANCE_BYTES = 64 * MIB

_ROW = (
    b'{"$distinct_id":"user-%d","$properties":{"$name":"Ann %d","$email":"ann.%d@example.com","n":%d,"plan":"pro",'
    b'"$last_seen":"2024-03-01T12:00:00","$city":"Lyon","visits":%d}}'
)


class GeneratedProfiles(Profiles):
    """So many profiles, in another order each time they are asked for."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(None)
        self._made = [_ROW % (n, n, n, n, n % 91) for n in range(count)]
        self._random = random.Random(seed)

    def rows(
        self,
        data_group_id: str | None,
        keep: Callable[[str, Mapping[str, Any]], bool] | None,
        output_properties: Sequence[str] | None,
    ) -> list[bytes]:
        place = self._random.randrange(len(self._made))
        return self._made[place:] + self._made[:place]


def run(options: Options) -> Outcome:
    outcome = Outcome()
    count = options.scaled(PROFILES)
    few, many = (_load(options, some, outcome) for some in (max(PAGE_SIZE, count // 10), count))
    outcome.figures = {
        "profiles": count,
        "seconds": round(many.seconds),
        "most memory": f"{many.peak_bytes / MIB:.0f} MiB, with a tenth of them {few.peak_bytes / MIB:.0f}",
    }
    if many.peak_bytes > MOST_MEMORY * few.peak_bytes + ALLOWANCE_BYTES:
        outcome.wrong.append(f"memory grows with profiles: {few.peak_bytes / MIB:.0f}, {many.peak_bytes / MIB:.0f} MiB")
    return outcome


def _load(options: Options, count: int, outcome: Outcome) -> Finished:
    pages = -(-count // PAGE_SIZE)
    sandbox = Sandbox(limits=False, page_size=PAGE_SIZE, gzip_level=1)
    sandbox.profiles = GeneratedProfiles(count, options.seed)
    sandbox.faults.next("engage", *[Fault.none()] * max(1, pages // 2), Fault.expired_session())
    home = options.folder / f"home-{count}"
    write_account(home)
    database = home / "m.duckdb"
    with SandboxServer(sandbox) as server:
        arguments = ["load", "profiles", "--db", str(database)]
        finished = run_mpload(arguments, server.url, home, most_s=MOST_S, without_limits=True)
    if finished.status:
        outcome.wrong.append(f"the load of {count} ended with {finished.status}: {finished.err[-1500:]}")
        return finished
    starts = sum(1 for request in sandbox.requests if "session_id" not in request.params)
    if pages > 1 and starts != 2:
        outcome.wrong.append(f"{starts} walks were begun, and one session expired")
    with reading(database) as ask:
        for table, n in ((f"{DATASET}.profiles", "(properties->>'n')::bigint"), (f"{TYPED_DATASET}.profiles", "n")):
            found = ask(f"select count(*), count(distinct distinct_id), sum({n}) from {table}")
            if found != [(count, count, count * (count - 1) // 2)]:
                outcome.wrong.append(f"{table} has {found}, and {count} profiles came")
    return finished
