"""Raw event export: GET /api/2.0/export. Mixpanel docs: Raw Event Export; Export Methods for the zone of its days."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from . import parameters
from .data import Block
from .expressions import Row
from .lines import time_ms
from .reply import ApiError, Reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

MAX_LIMIT = 100_000
"""The most that `limit` may ask for. Mixpanel docs: Raw Event Export."""

PARAMS = frozenset({"project_id", "from_date", "to_date", "event", "where", "limit", "time_in_ms"})

_PROCESSED = re.compile(rb'"mp_processing_time_ms":([0-9]{1,18})')


def export(sandbox: Sandbox, call: Call) -> Reply:
    """The events of the days asked for, a line each, in the order they are held."""
    params = call.params
    if "range" in call.headers:
        # A known client tried to resume this way and got nowhere.
        raise ApiError(416, "Requested range not satisfiable")
    from_day, to_day = parameters.days(sandbox, params, export=True)
    in_ms = parameters.truth(params, "time_in_ms")
    limit = parameters.whole(params, "limit", None, most=MAX_LIMIT)
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
    if sandbox.export_lines is not None:
        blocks = _ended_early(blocks, sandbox.export_lines)
    return Reply(200, blocks, "text/plain", framing=sandbox.framing)


def is_quick(sandbox: Sandbox, call: Call) -> bool:
    """Whether the answer needs no reading or filtering, so that nobody else has to wait for it."""
    days = [call.params.get(name, "") for name in ("from_date", "to_date")]
    if sandbox.late_events or sandbox.export_lines is not None:
        return False
    if days[0] != days[1] or not call.params.keys().isdisjoint({"where", "event", "limit"}):
        return False
    try:
        return sandbox.events.is_ready(date.fromisoformat(days[0]), call.params.get("time_in_ms") == "true")
    except ValueError:
        return True


def _filter(params: Mapping[str, str]) -> Callable[[bytes], bool] | None:
    """The test for lines that `event` and `where` make up; None if neither is given."""
    names = parameters.names(params, "event")
    where = parameters.where(params)
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
        return where is None or where(Row(properties if isinstance(properties, dict) else {}))

    return keep


def _until(block: Block, served_ms: int) -> Block:
    """Today's lines so far: those of a later time are not there yet. A line without a time is."""
    lines = [(line, time_ms(line)) for line in block.lines()]
    return Block(b"".join(line + b"\n" for line, time in lines if time is None or time <= served_ms))


def _processed(block: Block, now_ms: int) -> Block:
    """Lines that Mixpanel has processed by now. A line without such a time is one of them."""
    lines = [(line, _PROCESSED.search(line)) for line in block.lines()]
    return Block(b"".join(line + b"\n" for line, found in lines if found is None or int(found[1]) <= now_ms))


def _ended_early(blocks: list[Block], most: int) -> list[Block]:
    lines = [line for block in blocks for line in block.lines()]
    if len(lines) <= most:
        return blocks
    return [Block(b"".join(line + b"\n" for line in [*lines[:most], b"terminated early"]))]


def _chosen(blocks: list[Block], keep: Callable[[bytes], bool] | None, limit: int | None) -> Block:
    lines: list[bytes] = []
    for block in blocks:
        for line in block.lines():
            if limit is not None and len(lines) >= limit:
                break
            if keep is None or keep(line):
                lines.append(line)
    return Block(b"".join(line + b"\n" for line in lines))
