"""Raw event export: GET /api/2.0/export. Mixpanel docs: Raw Event Export; Export Methods for the zone of its days."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from .data import Block
from .expressions import ExpressionError, parse
from .lines import time_ms
from .reply import ApiError, Reply

if TYPE_CHECKING:
    from .app import Call, Sandbox

MAX_LIMIT = 100_000
"""The most that `limit` may ask for. Mixpanel docs: Raw Event Export."""

PARAMS = frozenset({"project_id", "from_date", "to_date", "event", "where", "limit", "time_in_ms"})

_FIRST_YEAR = 2000
_PROCESSED = re.compile(rb'"mp_processing_time_ms":([0-9]{1,18})')
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def export(sandbox: Sandbox, call: Call) -> Reply:
    """The events of the days asked for, a line each, in the order they are held."""
    params = call.params
    if "range" in call.headers:
        # A known client tried to resume this way and got nowhere.
        raise ApiError(416, "Requested range not satisfiable")
    from_day, to_day = _days(sandbox, params)
    in_ms = _truth(params, "time_in_ms")
    limit = _limit(params)
    keep = _filter(params)
    now = sandbox.current_time()
    today = sandbox.local_time.today(now)
    blocks = []
    for day in sandbox.events.days(from_day, to_day):
        block = sandbox.events.block(day, in_ms)
        if day == today:
            block = _until(block, sandbox.local_time.served_ms(now))
        if sandbox.late_events:
            block = _processed(block, int(now.timestamp() * 1000))
        blocks.append(block)
    if keep is not None or limit is not None:
        blocks = [_chosen(blocks, keep, limit)]
    return Reply(200, blocks, "text/plain", framing=sandbox.framing)


def is_quick(sandbox: Sandbox, call: Call) -> bool:
    """Whether the answer needs no reading or filtering, so that nobody else has to wait for it."""
    days = [call.params.get(name, "") for name in ("from_date", "to_date")]
    if sandbox.late_events:
        return False
    if days[0] != days[1] or not call.params.keys().isdisjoint({"where", "event", "limit"}):
        return False
    try:
        return sandbox.events.is_ready(date.fromisoformat(days[0]), call.params.get("time_in_ms", "").lower() == "true")
    except ValueError:
        return True


def _days(sandbox: Sandbox, params: Mapping[str, str]) -> tuple[date, date]:
    from_day, to_day = _day(params, "from_date"), _day(params, "to_date")
    today = sandbox.local_time.today(sandbox.current_time())
    if to_day > today:
        raise ApiError(400, " to_date cannot be later than today", plain=True)
    if from_day > to_day:
        raise ApiError(400, "from_date cannot be later than to_date")
    if sandbox.history_days is not None and from_day < today - timedelta(days=sandbox.history_days):
        raise ApiError(403, f"Date range exceeds {sandbox.history_days} days into the past")
    return from_day, to_day


def _day(params: Mapping[str, str], name: str) -> date:
    text = params.get(name)
    if not text:
        raise ApiError(400, f"{name} is a required parameter")
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ApiError(400, f"Error in {name}: invalid date, expected yyyy-mm-dd")
    if int(text[:4]) < _FIRST_YEAR:
        raise ApiError(400, f"Error in {name}: invalid date, bad year")
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ApiError(400, f"Error in {name}: invalid date, {error}") from None


def _truth(params: Mapping[str, str], name: str) -> bool:
    text = params.get(name, "false").lower()
    if text not in _TRUTHS:
        raise ApiError(400, f"Error in {name}: not a boolean")
    return _TRUTHS[text]


def _limit(params: Mapping[str, str]) -> int | None:
    text = params.get("limit")
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise ApiError(400, f"Error in limit: not a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _filter(params: Mapping[str, str]) -> Callable[[bytes], bool] | None:
    """The test for lines that `event` and `where` make up; None if neither is given."""
    names = _event_names(params["event"]) if "event" in params else None
    where = parse_where(params)
    if names is None and where is None:
        return None

    def keep(line: bytes) -> bool:
        try:
            event: Any = json.loads(line)
        except ValueError:
            return False
        if not isinstance(event, dict) or (names is not None and event.get("event") not in names):
            return False
        properties = event.get("properties")
        return where is None or where(properties if isinstance(properties, dict) else {})

    return keep


def _event_names(text: str) -> list[str]:
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ApiError(400, "Invalid JSON Format: event")
    return names


def parse_where(params: Mapping[str, str]) -> Callable[[Mapping[str, Any]], bool] | None:
    """The `where` parameter as a test of properties; None without one."""
    text = params.get("where")
    if not text:
        return None
    try:
        test = parse(text)
    except (ExpressionError, RecursionError) as error:
        raise ApiError(400, f"Invalid expression in where: {error}") from None

    def apply(properties: Mapping[str, Any]) -> bool:
        try:
            return test(properties)
        except ExpressionError as error:
            raise ApiError(400, f"Invalid expression in where: {error}") from None

    return apply


def _until(block: Block, served_ms: int) -> Block:
    """Today's lines so far: those of a later time are not there yet. A line without a time is."""
    lines = [(line, time_ms(line)) for line in block.lines()]
    return Block(b"".join(line + b"\n" for line, time in lines if time is None or time <= served_ms))


def _processed(block: Block, now_ms: int) -> Block:
    """Lines that Mixpanel has processed by now. A line without such a time is one of them."""
    lines = [(line, _PROCESSED.search(line)) for line in block.lines()]
    return Block(b"".join(line + b"\n" for line, found in lines if found is None or int(found[1]) <= now_ms))


def _chosen(blocks: list[Block], keep: Callable[[bytes], bool] | None, limit: int | None) -> Block:
    lines: list[bytes] = []
    for block in blocks:
        for line in block.lines():
            if limit is not None and len(lines) >= limit:
                break
            if keep is None or keep(line):
                lines.append(line)
    return Block(b"".join(line + b"\n" for line in lines))
