"""Profiles, page by page: /api/query/engage. Mixpanel docs: Query Profiles.

`total` on page 0 only, `page_size`, `behaviors` as a JSON list, and the 400 for a page without its session, or of
`behaviors` without `as_of_timestamp`, are what clients report.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from . import parameters
from .counting import events_between
from .data import Block
from .expressions import Row
from .lines import dump
from .reply import ApiError, Reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

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
        "behaviors",
        "as_of_timestamp",
    }
)

UNCACHED = "request for page in uncached query for params"
MAX_DISTINCT_IDS = 2000
"""The most ids in one `distinct_ids`, as a known client has it."""

_MAX_SESSIONS = 1000
_INT64 = range(-(2**63), 2**63)
_WINDOW = re.compile("([0-9]{1,5})d")


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
    page = parameters.whole(params, "page", 0, least=0)
    session_id = params.get("session_id", "")
    query = _query(params)
    if page and "behaviors" in params and "as_of_timestamp" not in params:
        raise ApiError(400, UNCACHED)
    if page == 0 and not session_id:
        page_size = parameters.whole(params, "page_size", sandbox.page_size)
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
    output_properties = parameters.names(params, "output_properties")
    ids = parameters.names(params, "distinct_ids")
    if ids is not None and len(ids) > MAX_DISTINCT_IDS:
        raise ApiError(400, f"distinct_ids: at most {MAX_DISTINCT_IDS} ids")
    if "distinct_id" in params:
        ids = [params["distinct_id"]]
    where = parameters.where(params)
    members = _members(sandbox, params)
    include_all = parameters.truth(params, "include_all_users", default=True)
    data_group_id = _data_group_id(params)
    behaviors = _behaviors(sandbox, params)
    wanted = [set(some) for some in (ids, members) if some is not None]

    def keep(distinct_id: str, properties: Mapping[str, Any]) -> bool:
        done = {name: counts[distinct_id] for name, counts in behaviors.items()}
        return all(distinct_id in some for some in wanted) and (where is None or where(Row(properties, behaviors=done)))

    rows = sandbox.profiles.rows(data_group_id, keep if wanted or where else None, output_properties)
    if members is None or where is not None or not include_all:
        return rows
    # By default a cohort's members are all there, those without a profile too; the shape of their rows is not known.
    have = sandbox.profiles.by_id(data_group_id)
    missing = [member for member in members if member not in have and (ids is None or member in ids)]
    return [*rows, *(dump({"$distinct_id": member, "$properties": {}}) for member in missing)]


def _members(sandbox: Sandbox, params: Mapping[str, str]) -> list[str] | None:
    if not params.get("filter_by_cohort"):
        return None
    asked = parameters.json_value(params["filter_by_cohort"], "filter_by_cohort")
    number = asked.get("id") if isinstance(asked, dict) and len(asked) == 1 else None
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ApiError(400, 'filter_by_cohort: not a JSON object of the form {"id": 1}')
    cohort = sandbox.saved.cohort(number)
    if cohort is None:
        # What a deleted cohort answers is not known.
        raise ApiError(400, "filter_by_cohort: no such cohort")
    return cohort.members


def _behaviors(sandbox: Sandbox, params: Mapping[str, str]) -> dict[str, Counter[str]]:
    """How often each user did what each behavior names, in its window of days up to `as_of_timestamp`, else now.

    A window in other units, and more in a selector than the event's name, are not known here.
    """
    as_of = parameters.whole(params, "as_of_timestamp", None)
    if "behaviors" not in params:
        return {}
    if params.get("filter_by_cohort"):
        raise ApiError(400, "give either behaviors or filter_by_cohort")
    asked = parameters.json_value(params["behaviors"], "behaviors")
    if not isinstance(asked, list):
        raise ApiError(400, "Invalid JSON Format: behaviors")
    try:
        now = sandbox.current_time()
        until = now if as_of is None else min(now, datetime.fromtimestamp(as_of, UTC))
        wall = until.astimezone(sandbox.local_time.zone).replace(tzinfo=None)
        named = {
            str(one["name"]): (
                wall - _window(one["window"]),
                {selector["event"] for selector in one["event_selectors"]},
            )
            for one in asked
        }
    except (TypeError, KeyError, ValueError, OverflowError, OSError):
        raise ApiError(400, "behaviors: not a JSON array of objects with window, name and event_selectors") from None
    events = events_between(sandbox, min((start for start, _ in named.values()), default=wall).date(), wall.date())
    return {
        name: Counter(event.distinct_id for event in events if event.name in names and start < event.wall <= wall)
        for name, (start, names) in named.items()
    }


def _window(text: str) -> timedelta:
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return timedelta(days=int(found[1]))


def _data_group_id(params: Mapping[str, str]) -> str | None:
    """A signed 64-bit number, as text. Mixpanel docs: Group Analytics."""
    given = params.get("data_group_id")
    if not given:
        return None
    if not re.fullmatch("-?[0-9]{1,19}", given) or int(given) not in _INT64:
        raise ApiError(400, "data_group_id: not a 64-bit whole number")
    return given
