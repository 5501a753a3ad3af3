"""The demo: a local Mixpanel with a month of one airline's flights, loaded as a real one would be, and some answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from mixpanel_source import settings
from mixpanel_source.cli.sandbox import open_sandbox
from mixpanel_source.credentials import Credentials
from mixpanel_source.load import LoadResult, load
from mixpanel_source.pipeline import start_over
from mixpanel_source.progress import LoadProgress
from mixpanel_source.project import Project
from mixpanel_source.sandbox import demo_folder
from mixpanel_source.warehouse import opened, query
from mixpanel_source.windows import DateRange

FIRST_DAY, LAST_DAY = date(2013, 3, 1), date(2013, 3, 28)

LANDED = {
    "days": "SELECT count(*) FROM event_days WHERE complete",
    "events": "SELECT count(*) FROM events",
    "aircraft": "SELECT count(DISTINCT distinct_id) FROM events",
    "profiles": "SELECT count(*) FROM profiles",
}

BY_EVENT = "SELECT event_name AS event, count(*) AS events FROM events GROUP BY ALL ORDER BY events DESC"


@dataclass(frozen=True)
class Question:
    title: str
    sql: str


QUESTIONS = (
    Question(
        "The busiest routes",
        """
SELECT properties->>'origin' || '-' || (properties->>'dest') AS route,
       count(*) AS flights,
       round(avg((properties->>'dep_delay')::INT), 1) AS minutes_late
FROM events WHERE event_name = 'Flight Departed'
GROUP BY ALL ORDER BY flights DESC, route LIMIT 5""",
    ),
    Question(
        "Delays grow through the day (New York time)",
        """
SELECT hour(event_time AT TIME ZONE 'America/New_York') // 4 * 4 AS from_hour,
       count(*) AS departures,
       round(avg((properties->>'dep_delay')::INT), 1) AS minutes_late
FROM events WHERE event_name = 'Flight Departed'
GROUP BY ALL ORDER BY from_hour""",
    ),
    Question(
        "The clocks change on 10 March: the day's first departure moves in UTC, and stays in New York",
        """
WITH first_departures AS (
    SELECT (event_time AT TIME ZONE 'America/New_York')::DATE AS day,
           min(event_time) FILTER (hour(event_time AT TIME ZONE 'America/New_York') >= 4) AS first
    FROM events WHERE event_name = 'Flight Departed' GROUP BY ALL)
SELECT CASE WHEN day < DATE '2013-03-10' THEN '1 to 9 March' ELSE '10 to 28 March' END AS days,
       strftime(median(first AT TIME ZONE 'UTC'
                       - (first AT TIME ZONE 'UTC')::DATE + TIMESTAMP '2013-01-01'), '%H:%M') AS utc,
       strftime(median(first AT TIME ZONE 'America/New_York'
                       - day + TIMESTAMP '2013-01-01'), '%H:%M') AS new_york
FROM first_departures WHERE first IS NOT NULL GROUP BY ALL ORDER BY min(day)""",
    ),
    Question(
        "The aircraft with the most miles, and what its profile says it is",
        """
SELECT distinct_id AS aircraft,
       profiles.properties->>'model' AS model,
       (profiles.properties->>'year')::INT AS built,
       count(*) AS flights,
       sum((events.properties->>'distance')::INT) AS miles
FROM events LEFT JOIN profiles USING (distinct_id)
WHERE event_name = 'Flight Arrived'
GROUP BY ALL ORDER BY miles DESC LIMIT 5""",
    ),
)

NEXT_SQL = "SELECT dayname(event_time) AS weekday, count(*) AS events FROM events GROUP BY ALL ORDER BY events DESC"


@dataclass(frozen=True)
class Answer:
    title: str
    sql: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Demo:
    load: LoadResult
    landed: dict[str, int]
    events: list[dict[str, Any]]
    answers: list[Answer]
    next_sql: str = NEXT_SQL


def demo_database() -> Path:
    return settings.data_folder() / f"{settings.DEMO_PROJECT}.duckdb"


def run_demo(progress: LoadProgress, on_wait: Callable[[float, str], None]) -> Demo:
    """Load the demo data over HTTP into `demo_database()`, made anew, and ask it. Raises what a load raises."""
    database = demo_database()
    with open_sandbox(demo_folder(), now=datetime(2013, 3, 29, 12, tzinfo=UTC)) as server:
        sandbox = server.sandbox
        project = Project(
            Credentials(sandbox.username, sandbox.secret, sandbox.project_id, "us"),
            window_days=7,
            base_url=server.url,
            on_wait=on_wait,
        )
        start_over(database)
        result = load(project, database, asked=DateRange(FIRST_DAY, LAST_DAY), progress=progress)
    if result.error is not None:
        raise result.error
    with opened(database) as connection:

        def ask(sql: str) -> list[dict[str, Any]]:
            answer = query(connection, sql)
            return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]

        return Demo(
            result,
            {name: query(connection, sql).rows[0][0] for name, sql in LANDED.items()},
            ask(BY_EVENT),
            [Answer(question.title, question.sql.strip(), ask(question.sql)) for question in QUESTIONS],
        )
