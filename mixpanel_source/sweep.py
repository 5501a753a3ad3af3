"""Late events of settled days: found by the time Mixpanel processed them, and their days exported again as a whole.

Not verified on a live project: whether `where` sees `mp_processing_time_ms` in an export, as Mixpanel's own script has
it (Mixpanel docs: Hot Shard Limits), and how many days one export may span.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import duckdb
import pyarrow.compute as pc

from mixpanel_source import settings
from mixpanel_source.bodies import ExportBody
from mixpanel_source.client import MixpanelClient
from mixpanel_source.errors import AuthenticationError, ConfigError, MixpanelDataError
from mixpanel_source.parsing.events import EventParser
from mixpanel_source.project import Project
from mixpanel_source.warehouse import OnWait, fetched_tables, identifier, opened, refuse_snapshots, table_names
from mixpanel_source.windows import LoadedDay, Window, settles_at

logger = logging.getLogger(__name__)

EVENT_SWEEPS: Final = "event_sweeps"
SWEEP_REQUESTS: Final = 3
"""Exports of one load at most. Days that were exported at different times need several, until all were swept once."""
LAG: Final = timedelta(hours=1)
"""An export may lack what was processed so shortly before it: up to 45 minutes were seen."""

_KNOWN_ROWS: Final = 100
"""So many rows that are here are asked for as well: an answer without any of them is not to be believed."""
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Sweep:
    """One export of a sweep: of all days from the first to the last of `since`, with the moments after which a row that
    was processed is late."""

    since: Mapping[date, datetime]

    @property
    def window(self) -> Window:
        return Window(min(self.since), max(self.since))

    @property
    def first_moment(self) -> datetime:
        return min(self.since.values())


@dataclass
class SweepResult:
    """`late` are the days that hold late events; `swept_at` says of each day that was asked for when that was."""

    late: set[date] = field(default_factory=set)
    swept_at: dict[date, datetime] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def unsettled(self, loaded: Sequence[LoadedDay]) -> list[LoadedDay]:
        """`loaded`, with the late days as ones that a load has to export again."""
        return [replace(day, exported_at=_NEVER) if day.day in self.late else day for day in loaded]


def sweeps_due(
    loaded: Iterable[LoadedDay],
    swept_at: Mapping[date, datetime],
    *,
    sweep_days: int,
    lookback_days: int,
    now: datetime,
    calendar: ZoneInfo,
    most: int = SWEEP_REQUESTS,
) -> list[Sweep]:
    """The exports to ask for: of settled days, the newest first; unsettled ones are exported again anyway.

    Days share one as long as it asks for nothing that was processed before the last of them was over: then it brings
    late events alone, and not whole days. So days that were all swept before share one.
    """
    first = now.astimezone(calendar).date() - timedelta(days=sweep_days)
    sweeps: list[dict[date, datetime]] = []
    for day in sorted(loaded, key=lambda day: day.day, reverse=True):
        if day.day < first or not day.is_settled(lookback_days, calendar):
            continue
        since = max(day.exported_at, swept_at.get(day.day, _NEVER)) - LAG
        if not sweeps or since < settles_at(max(sweeps[-1]), 0, calendar):
            if len(sweeps) == most:
                break
            sweeps.append({})
        sweeps[-1][day.day] = since
    return [Sweep(since) for since in sweeps]


def swept_days(connection: duckdb.DuckDBPyConnection) -> dict[date, datetime]:
    """When each day was swept last."""
    if EVENT_SWEEPS not in table_names(connection) - fetched_tables(connection).keys():
        return {}
    return dict(connection.execute(f"SELECT day, swept_at FROM {_TABLE}").fetchall())


def due_in(
    project: Project, connection: duckdb.DuckDBPyConnection, loaded: Sequence[LoadedDay], now: datetime
) -> list[Sweep]:
    """As `sweeps_due`, for the settings of `project`."""
    return sweeps_due(
        loaded,
        swept_days(connection),
        sweep_days=project.sweep_days,
        lookback_days=project.lookback_days,
        now=now,
        calendar=project.calendar,
    )


def sweep(project: Project, database: Path, loaded: Sequence[LoadedDay], now: datetime | None = None) -> SweepResult:
    """Ask which settled days hold late events. Nothing is changed; what fails is a warning, and the rest is left.

    Raises AuthenticationError and ConfigError alone.
    """
    result = SweepResult()
    with opened(database) as connection:
        due = due_in(project, connection, loaded, now or datetime.now(UTC))
        filled = {day.day for day in loaded if day.rows}
        known = [_known_since(connection, max(filled & one.since.keys(), default=None)) for one in due]
    if not due:
        return result
    with project.client() as client:
        for one, known_since in zip(due, known, strict=True):
            swept_at = datetime.now(UTC)
            try:
                late = _late_days(client, project, one, known_since)
            except (AuthenticationError, ConfigError):
                raise
            except MixpanelDataError as error:
                result.warnings.append(
                    f"late events of {one.window} were not looked for (the next load tries again): {error.message}"
                )
                break
            result.late |= late
            result.swept_at |= dict.fromkeys(one.since, swept_at)
            logger.info(
                "%s: late events in %d days",
                one.window,
                len(late),
                extra={"from_date": one.window.first, "to_date": one.window.last, "late_days": sorted(late)},
            )
    return result


def note_sweep(
    database: Path, result: SweepResult, loaded: Iterable[LoadedDay], *, wait_s: float, on_wait: OnWait
) -> None:
    """Keep when days were swept; a late one only where `loaded` says that it was exported again.

    Raises WarehouseError.
    """
    exported_at = {day.day: day.exported_at for day in loaded}
    done = {
        day: swept_at
        for day, swept_at in result.swept_at.items()
        if day not in result.late or exported_at.get(day, _NEVER) >= swept_at
    }
    if not done:
        return
    rows = ", ".join(f"(DATE '{day}', TIMESTAMPTZ '{moment.isoformat()}')" for day, moment in sorted(done.items()))
    days = ", ".join(f"DATE '{day}'" for day in sorted(done))
    with opened(database, write=True, wait_s=wait_s, on_wait=on_wait) as connection:
        refuse_snapshots(connection, [EVENT_SWEEPS])
        connection.execute("BEGIN")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (day DATE, swept_at TIMESTAMPTZ)")
        connection.execute(f"DELETE FROM {_TABLE} WHERE day IN ({days})")
        connection.execute(f"INSERT INTO {_TABLE} VALUES {rows}")
        connection.execute("COMMIT")


def _known_since(connection: duckdb.DuckDBPyConnection, day: date | None) -> datetime | None:
    """After when the last rows that are here of `day` were processed; None where no row tells."""
    if day is None:
        return None
    [(moment,)] = connection.execute(
        f"SELECT min(processed_at) FROM (SELECT processed_at FROM events WHERE event_date = DATE '{day}'"
        f" AND processed_at IS NOT NULL ORDER BY processed_at DESC LIMIT {_KNOWN_ROWS})"
    ).fetchall()
    known: datetime | None = moment
    return known


def _where(since: datetime) -> str:
    """As Mixpanel's own script has it (Mixpanel docs: Hot Shard Limits)."""
    return f'number(properties["mp_processing_time_ms"]) >= {int(since.timestamp() * 1000)}'


def _late_days(client: MixpanelClient, project: Project, asked: Sweep, known_since: datetime | None) -> set[date]:
    if project.disk is not None:
        project.disk.check()
    since = min(asked.first_moment, known_since or asked.first_moment)
    with client.export(asked.window, where=_where(since)) as body:
        newest, is_known, is_narrowed = _newest_by_day(body, asked.window, project, since)
    if known_since is not None and not is_known:
        raise MixpanelDataError(
            "the answer lacks rows that are here: Mixpanel may not take mp_processing_time_ms for a filter"
        )
    if not is_narrowed:
        raise MixpanelDataError(
            "Mixpanel did not narrow the export to mp_processing_time_ms, so that it was one of all these days: set"
            " sweep_days to 0"
        )
    return {day for day, moment in newest.items() if day in asked.since and moment >= asked.since[day]}


def _newest_by_day(
    body: ExportBody, window: Window, project: Project, since: datetime
) -> tuple[dict[date, datetime], bool, bool]:
    """When the last row of each day was processed; whether there was one at all, and none that was processed before
    `since`."""
    newest: dict[date, datetime] = {}
    oldest: datetime | None = None
    parser = EventParser(window, project.local_zone)
    try:
        for block in body.blocks():
            rows = parser.parse(block).rows
            # Without a usable time it is not known which day a row belongs to.
            rows = rows.select(["event_date", "event_time", "processed_at"]).drop_null()
            by_day = rows.group_by("event_date").aggregate([("processed_at", "max")])
            for row in by_day.to_pylist():
                day, moment = row["event_date"], row["processed_at_max"]
                newest[day] = max(moment, newest.get(day, _NEVER))
            if len(rows):
                first = pc.min(rows.column("processed_at")).as_py()
                oldest = first if oldest is None else min(oldest, first)
    finally:
        parser.close()
    return newest, oldest is not None, oldest is None or oldest >= since - timedelta(milliseconds=1)


_TABLE: Final = f"{identifier(settings.DATASET)}.{EVENT_SWEEPS}"
