"""Events and profiles that a sandbox serves, and what a file lacks of them or has too much."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from mixpanel_source.property_columns import PROFILES, table_name
from mixpanel_source.sandbox import Sandbox
from mixpanel_source.settings import DATASET, TYPED_DATASET

FIRST_DAY = date(2023, 1, 1)
NAMES = ("Open", "Search", "Buy")

Ask = Callable[[str], list[Any]]


@dataclass
class Served:
    events: Counter[str] = field(default_factory=Counter)
    """By the text of their properties."""
    by_day: Counter[date] = field(default_factory=Counter)
    typed: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Rows of each typed table, and the sum of their `n`."""
    profiles: int = 0

    def differences(self, database: Path) -> list[str]:
        """What is wrong with a file that should hold just this, and its typed tables, too."""
        wrong: list[str] = []
        with reading(database) as ask:
            loaded = Counter(dict(ask("select properties::varchar, count(*) from events group by all")))
            lost, twice = self.events - loaded, loaded - self.events
            if lost or twice:
                wrong.append(f"{lost.total()} events lost, {twice.total()} too many")
            [(rows, ids)] = ask("select count(*), count(distinct event_id) from events")
            if rows != ids:
                wrong.append(f"{ids} event_ids of {rows} events")
            [(days, complete)] = ask("select count(*), count(*) filter (complete) from event_days")
            if (days, complete) != (len(self.by_day), len(self.by_day)):
                wrong.append(f"event_days has {days} days, {complete} of them complete, of {len(self.by_day)}")
            for table, (count, total) in self.typed.items():
                found = ask(f'select count(*), sum(n), count(distinct event_id) from {TYPED_DATASET}."{table}"')
                if found != [(count, total, count)]:
                    wrong.append(f"the typed table {table} holds {found}, and {count} events came")
            for dataset, table in ((DATASET, "profiles"), (TYPED_DATASET, PROFILES)):
                [found] = ask(f"select count(*), count(distinct distinct_id) from {dataset}.{table}")
                if found != (self.profiles, self.profiles):
                    wrong.append(f"{dataset}.{table} has {found}, and {self.profiles} profiles came")
        return wrong


def fill(sandbox: Sandbox, random_: random.Random, *, days: int, events_a_day: int, profiles: int) -> Served:
    """Days of `events_a_day` events and up to twice as many."""
    served = Served(profiles=profiles)
    for number in range(days):
        day = day_number(number)
        midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
        lines = []
        for place in range(events_a_day + random_.randrange(events_a_day)):
            name = random_.choice(NAMES)
            n = 1000 * number + place
            properties = compact(
                {
                    "time": midnight + random_.randrange(86_400_000),
                    "distinct_id": f"u{random_.randrange(profiles)}",
                    "$insert_id": f"i{n}",
                    "n": n,
                    f"only {name}": random_.choice(["a", "b", None]),
                }
            )
            lines.append(f'{{"event":"{name}","properties":{properties}}}'.encode())
            served.events[properties] += 1
            rows, total = served.typed.get(table_name(name), (0, 0))
            served.typed[table_name(name)] = rows + 1, total + n
        served.by_day[day] = len(lines)
        sandbox.set_day(str(day), lines)
    sandbox.set_profiles([{"$distinct_id": f"u{n}", "$properties": {"n": n}} for n in range(profiles)])
    return served


def day_number(number: int) -> date:
    return FIRST_DAY + timedelta(days=number)


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def reading(database: Path) -> Iterator[Ask]:
    """Asks the file, in the dataset of what is loaded where there is one; changes nothing in it."""
    connection = duckdb.connect(str(database), read_only=True)
    try:
        if connection.execute(f"select 1 from duckdb_schemas() where schema_name = '{DATASET}'").fetchall():
            connection.execute(f"SET schema = '{DATASET}'")
        yield lambda sql: connection.execute(sql).fetchall()
    finally:
        connection.close()


def tables_of(ask: Ask) -> set[str]:
    return {name for (name,) in ask(f"select table_name from duckdb_tables() where schema_name = '{DATASET}'")}
