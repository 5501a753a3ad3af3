"""What some commands show: more than rows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mixpanel_source.cli.messages import PROGRAM, redacted
from mixpanel_source.cli.output import Format, write_record, write_records, write_text
from mixpanel_source.cli.words import metrics_in_words
from mixpanel_source.load_record import LoadRecord
from mixpanel_source.status import LoadStatus, Status
from mixpanel_source.windows import Window

if TYPE_CHECKING:
    from mixpanel_source.cli.demo import Demo

_SHOWN_RANGES = 10


def write_status(status: Status, format_: Format) -> None:
    loaded = status.loaded
    record: dict[str, Any] = {
        "database": status.where,
        "problem": status.problem,
        "running": status.running and {"began_at": status.running.began_at, "pid": status.running.pid},
        "last_run": status.last_run and _run_record(status.last_run),
    }
    record |= dict.fromkeys(field.name for field in fields(LoadStatus)) if loaded is None else _loaded(loaded)
    record |= {
        "wrong": list(status.wrong),
        "kept_bytes": status.kept_bytes,
        "requests": status.requests,
        "requests_problem": status.requests_problem,
    }
    write_record(_in_words(status) if format_ is Format.TABLE else record, format_)


def _loaded(loaded: LoadStatus) -> dict[str, Any]:
    record = {field.name: getattr(loaded, field.name) for field in fields(LoadStatus)}
    for name in ("missing_days", "incomplete_days", "unsettled_days", "suspect_days"):
        record[name] = ranges(record[name])
    record["parts"] = [
        {"filter": json.loads(label), "days": ranges(windows)} for label, windows in loaded.parts.items()
    ]
    return record


def ranges(windows: Sequence[Window]) -> list[dict[str, Any]]:
    return [{"from": window.first, "to": window.last, "days": len(window)} for window in windows]


def _in_words(status: Status) -> dict[str, str | None]:
    """For eyes: only what there is to say, a line each."""
    words: dict[str, str | None] = {"database": status.where}
    if status.running:
        words["running"] = f"since {_moment(status.running.began_at)} (PID {status.running.pid})"
    words["last run"] = _run(status.last_run) if status.last_run else "not known"
    if status.last_run and status.last_run.metrics and status.last_run.ended_at:
        took = status.last_run.ended_at - status.last_run.began_at
        words["it took"] = metrics_in_words(status.last_run.metrics, took.total_seconds())
    if status.last_run and status.last_run.warnings:
        words["it warned"] = "; ".join(_warnings(status.last_run))
    if status.loaded is None:
        words["problem"] = status.problem
    else:
        words |= _loaded_in_words(status.loaded)
    if status.wrong:
        words["wrong"] = "\n".join(status.wrong)
    if status.kept_bytes:
        words["exports kept"] = f"{status.kept_bytes:,} bytes, for the next load"
    for budget in status.requests:
        free = "the next is free now" if budget.next_free_s == 0 else f"the next is free in {budget.next_free_s:.0f} s"
        words[f"requests ({budget.api})"] = f"{budget.spent} of {budget.allowed} this hour, {free}"
    if status.requests_problem:
        words["requests"] = f"not known: {status.requests_problem}"
    return words


def _run_record(run: LoadRecord) -> dict[str, Any]:
    record = {**asdict(run), "error": _error(run), "warnings": _warnings(run)}
    del record["is_in_table"]
    return record


def _warnings(run: LoadRecord) -> list[str]:
    return [redacted(warning) for warning in run.warnings]


def _error(run: LoadRecord) -> str | None:
    return redacted(run.error) if run.error else None


def _run(run: LoadRecord) -> str:
    until = f"to {_moment(run.ended_at)}" if run.ended_at else "without a word of its end"
    error = f": {_error(run)}" if run.error else ""
    return f"{run.outcome}{error} ({_moment(run.began_at)} {until}, PID {run.pid})"


def _loaded_in_words(loaded: LoadStatus) -> dict[str, str | None]:
    words: dict[str, str | None] = {
        "days": f"{loaded.days:,}: {loaded.first_day} to {loaded.last_day}" if loaded.days else "none",
        "missing": days_in_words(loaded.missing_days),
    }
    at_end = sum(len(window) for window in loaded.missing_days if loaded.last_day and window.first > loaded.last_day)
    if at_end:
        words["missing"] = f"{words['missing']}; {at_end:,} of them at the end"
    if loaded.incomplete_days:
        words["incomplete"] = f"{days_in_words(loaded.incomplete_days)}; not over when they were loaded"
    words["unsettled"] = days_in_words(loaded.unsettled_days)
    if loaded.suspect_days:
        words["suspect"] = f"{days_in_words(loaded.suspect_days)}; not as their loads left them"
    if loaded.parts:
        words["only parts"] = "\n".join(f"{label}: {days_in_words(windows)}" for label, windows in loaded.parts.items())
    words["events"] = f"{loaded.rows:,}" + (f", the newest of {_moment(loaded.newest_event)}" if loaded.rows else "")
    words["rejected lines"] = f"{loaded.rejected_lines:,}"
    if loaded.profiles is None:
        words["profiles"] = "not loaded"
    else:
        words["profiles"] = f"{loaded.profiles:,}, loaded {_moment(loaded.profiles_loaded_at)}"
    words["last written"] = _moment(loaded.last_load)
    return words


def days_in_words(windows: Sequence[Window]) -> str:
    if not windows:
        return "none"
    days = sum(map(len, windows))
    more = len(windows) - _SHOWN_RANGES
    shown = ", ".join(map(str, windows[:_SHOWN_RANGES])) + (f" and {more} more ranges" if more > 0 else "")
    return f"{days:,} {'day' if days == 1 else 'days'}: {shown}"


def _moment(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else "never"


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
