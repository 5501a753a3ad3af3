"""Profiles, page by page: /api/query/engage. Mixpanel docs: Query Profiles.

`total` on page 0 only, `page_size`, and the 400 for a page without its session are what clients report.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from .data import Block
from .export import parse_where
from .lines import dump
from .reply import ApiError, Reply

if TYPE_CHECKING:
    from .app import Call, Sandbox

PARAMS = frozenset(
    {
        "project_id",
        "workspace_id",
        "where",
        "output_properties",
        "distinct_id",
        "distinct_ids",
        "page",
        "page_size",
        "session_id",
        "filter_by_cohort",
        "include_all_users",
        "data_group_id",
        "as_of_timestamp",
    }
)

UNCACHED = "request for page in uncached query for params"
MAX_DISTINCT_IDS = 2000
"""The most ids in one `distinct_ids`, as a known client has it."""

_MAX_SESSIONS = 1000


@dataclass(frozen=True)
class Session:
    """The frozen result of a query, for its pages."""

    rows: list[bytes]
    page_size: int
    query: tuple[tuple[str, str], ...]
    started_s: float


class Sessions:
    """The sessions of engage, oldest first."""

    def __init__(self, ttl_s: float | None, clock: Callable[[], float]) -> None:
        self.ttl_s = ttl_s
        self._clock = clock
        self._numbers = count(1)
        self._open: OrderedDict[str, Session] = OrderedDict()

    def start(self, rows: list[bytes], page_size: int, query: tuple[tuple[str, str], ...], at: float) -> str:
        session_id = f"{int(at)}-S{next(self._numbers):05d}"
        self._open[session_id] = Session(list(rows), page_size, query, self._clock())
        while len(self._open) > _MAX_SESSIONS:
            self._open.popitem(last=False)
        return session_id

    def get(self, session_id: str) -> Session | None:
        """The session, unless it is unknown or has expired."""
        session = self._open.get(session_id)
        if session is None or (self.ttl_s is not None and self._clock() - session.started_s >= self.ttl_s):
            return None
        return session

    def drop(self, session_id: str) -> None:
        self._open.pop(session_id, None)


def engage(sandbox: Sandbox, call: Call) -> Reply:
    """One page of the profiles that the parameters choose."""
    params = call.params
    page = _whole(params, "page", 0, least=0)
    session_id = params.get("session_id", "")
    query = _query(params)
    if page == 0 and not session_id:
        page_size = _whole(params, "page_size", sandbox.page_size, least=1)
        rows = _rows(sandbox, params)
        session_id = sandbox.sessions.start(rows, page_size, query, sandbox.current_time().timestamp())
    session = sandbox.sessions.get(session_id)
    if session is None or session.query != query:
        # The result is kept for the parameters it was asked with; with others, there is none.
        raise ApiError(400, UNCACHED)
    head: dict[str, object] = {
        "page": page,
        "page_size": session.page_size,
        "session_id": session_id,
        "status": "ok",
    }
    if sandbox.engage_total == "always" or (sandbox.engage_total == "first" and page == 0):
        head["total"] = len(session.rows)
    rows = session.rows[page * session.page_size : (page + 1) * session.page_size]
    return Reply(200, [Block(dump(head)[:-1] + b',"results":[' + b",".join(rows) + b"]}")])


def is_follow_up(call: Call) -> bool:
    """Whether this is a page after the first, of a query that was counted already."""
    return call.params.get("page", "0") not in ("", "0") and "session_id" in call.params


def _query(params: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What has to be the same on each page."""
    return tuple(sorted(item for item in params.items() if item[0] not in ("page", "session_id")))


def _rows(sandbox: Sandbox, params: Mapping[str, str]) -> list[bytes]:
    output_properties = _names(params, "output_properties")
    ids = _names(params, "distinct_ids")
    if ids is not None and len(ids) > MAX_DISTINCT_IDS:
        raise ApiError(400, f"distinct_ids: at most {MAX_DISTINCT_IDS} ids")
    if "distinct_id" in params:
        ids = [params["distinct_id"]]
    where = parse_where(params)
    members = _members(sandbox, params)
    data_group_id = params.get("data_group_id") or None
    wanted = [set(some) for some in (ids, members) if some is not None]

    def keep(distinct_id: str, properties: Mapping[str, Any]) -> bool:
        return all(distinct_id in some for some in wanted) and (where is None or where(properties))

    rows = sandbox.profiles.rows(data_group_id, keep if wanted or where else None, output_properties)
    if members is None or where is not None or params.get("include_all_users", "true").lower() != "true":
        return rows
    # By default a cohort's members are all there, those without a profile too; the shape of their rows is not known.
    have = sandbox.profiles.ids(data_group_id)
    missing = [member for member in members if member not in have and (ids is None or member in ids)]
    return [*rows, *(dump({"$distinct_id": member, "$properties": {}}) for member in missing)]


def _members(sandbox: Sandbox, params: Mapping[str, str]) -> list[str] | None:
    text = params.get("filter_by_cohort")
    if text is None:
        return None
    cohort = _json(text, "filter_by_cohort")
    number = cohort.get("id") if isinstance(cohort, dict) else None
    if isinstance(number, str) and number.isdigit():
        number = int(number)
    if not isinstance(number, int) or number not in sandbox.profiles.cohorts:
        raise ApiError(400, "filter_by_cohort: no such cohort")
    return sandbox.profiles.cohorts[number]


def _names(params: Mapping[str, str], name: str) -> list[str] | None:
    if name not in params:
        return None
    names = _json(params[name], name)
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise ApiError(400, f"{name}: not a JSON array of strings")
    return names


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ApiError(400, f"Invalid JSON Format: {name}") from None


def _whole(params: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = params.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise ApiError(400, f"{name}: not a whole number from {least}")
    return int(text)
