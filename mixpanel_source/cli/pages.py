"""What some commands show: more than rows."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpanel_source import __version__, settings
from mixpanel_source.cli.messages import PROGRAM
from mixpanel_source.cli.output import Format, write_record, write_records, write_text
from mixpanel_source.warehouse import Status, pipelines_folder
from mixpanel_source.windows import windows_over

if TYPE_CHECKING:
    from mixpanel_source.cli.demo import Demo

_SHOWN_GAPS = 10


def write_status(status: Status, format_: Format) -> None:
    loaded = status.loaded
    record: dict[str, Any] = {
        "database": str(status.database),
        "problem": status.problem,
        "days": loaded and loaded.days,
        "first_day": loaded and loaded.first_day,
        "last_day": loaded and loaded.last_day,
        "missing_days": loaded and loaded.missing,
        "days_behind": status.days_behind,
        "rows": loaded and loaded.rows,
        "newest_event": loaded and loaded.newest_event,
        "rejected_lines": loaded and loaded.rejected_lines,
        "last_load": loaded and loaded.last_load,
        "requests": status.requests,
    }
    if format_ is Format.TABLE:
        record["missing_days"] = _ranges(loaded.missing) if loaded else None
        del record["requests"]
        for budget in status.requests:
            free = (
                "the next is free now" if budget.next_free_s == 0 else f"the next is free in {budget.next_free_s:.0f} s"
            )
            record[f"requests ({budget.api})"] = f"{budget.spent} of {budget.allowed} this hour, {free}"
    write_record(record, format_)


def _ranges(days: Sequence[date]) -> str:
    ranges = [str(window) for window in windows_over(days, max_days=1_000_000)]
    more = len(ranges) - _SHOWN_GAPS
    return ", ".join(ranges[:_SHOWN_GAPS]) + (f" and {more} more gaps" if more > 0 else "") or "none"


def info_record(database: Path, project_id: str | None) -> dict[str, Any]:
    folder = pipelines_folder(database)
    return {
        "database": str(database.resolve()),
        "size_bytes": database.stat().st_size if database.exists() else None,
        "dataset": settings.DATASET,
        "project_id": project_id,
        "data_folder": str(settings.data_folder()),
        "pipeline_folder": str(folder),
        "dlt_command": f"dlt pipeline --pipelines-dir {shlex.quote(str(folder))} {settings.PIPELINE} info",
        "versions": {
            PROGRAM: __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("dlt", "duckdb", "pyarrow", "requests", "typer")},
        },
        "python": sys.executable,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def demo_record(demo: Demo) -> dict[str, Any]:
    return {
        "database": str(demo.load.database),
        "landed": demo.landed,
        "events": demo.events,
        "answers": demo.answers,
        "next": _next_command(demo),
    }


def write_demo(demo: Demo) -> None:
    seconds = sum(table.seconds for table in demo.load.tables)
    landed = demo.landed
    write_text(
        f"Loaded in {seconds:.1f} s: {landed['events']:,} events of {landed['days']} days and {landed['aircraft']}"
        f" aircraft, {landed['profiles']} profiles.\n\n"
    )
    write_records(demo.events, Format.TABLE)
    for answer in demo.answers:
        write_text(f"\n{answer.title}\n\n")
        write_records(answer.rows, Format.TABLE)
    write_text(f"\nThe file: {demo.load.database}\nAsk it yourself:\n\n  {_next_command(demo)}\n\n")


def _next_command(demo: Demo) -> str:
    return f"{PROGRAM} sql --db {shlex.quote(str(demo.load.database))} {shlex.quote(demo.next_sql)}"
