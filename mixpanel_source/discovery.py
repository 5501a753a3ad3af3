"""What there is to ask for: events, their properties and values, what is saved, projects. Kept for an hour."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Any, Final
from urllib.parse import quote

from mixpanel_source import settings
from mixpanel_source.answer_cache import AnswerCache
from mixpanel_source.client import MixpanelClient, compact
from mixpanel_source.errors import (
    AuthenticationError,
    ConfigError,
    EntityNotFoundError,
    PlanError,
    QueryError,
    RateLimitError,
    ServerError,
)
from mixpanel_source.listings import LISTINGS, Listing, Rows
from mixpanel_source.reports import Reports
from mixpanel_source.windows import days_between

EVENTS: Final = 5000
"""Event names asked for at once: more are never served, as a known client has it."""
PROPERTIES: Final = 255
VALUES: Final = 100

NOT_TOLD: Final = (PlanError, AuthenticationError, QueryError, RateLimitError, ServerError)
"""Errors of Mixpanel's that leave a question open, where an answer would only have helped."""

NAMES_BYTES: Final = 6000
"""Of a URL, at most, for names of events: web servers commonly take 8 kB of it."""

PROPERTY_COLUMNS: Final = ("property", "count")
PROJECT_COLUMNS: Final = ("id", "name", "timezone", "organization_id", "organization")


def _bookmarks(answer: Any) -> Rows:
    """Nested twice, as v=2 is; or once."""
    found = answer["results"]
    rows = found["results"] if isinstance(found, dict) else found
    return [dict(row) for row in rows]


BOOKMARKS: Final = Listing(
    "bookmarks",
    ("id",),
    {"id": "bigint", "name": "text", "type": "text", "dashboard_id": "bigint", "created": "text", "modified": "text"},
    "app",
    "/api/app/projects/{project_id}/bookmarks",
    _bookmarks,
    params={"v": "2"},
)
"""Saved reports. Not a documented endpoint."""


class Discovery:
    """Asks what is there, and keeps the answers beside the request ledger for `cache_s` seconds, for all processes.

    Without `cache_s`, `MP_CACHE_S` says how long, else an hour; 0 keeps nothing. `fresh` asks again, and keeps that.
    `on_cached` is told the age of each kept answer in seconds. `wait` allows waiting for the hourly limit. Each answer
    that is not kept costs one of the Query API's 60 requests an hour; those of bookmarks and projects, none of them.
    """

    def __init__(
        self,
        client: MixpanelClient,
        *,
        cache_s: float | None = None,
        fresh: bool = False,
        wait: bool = False,
        on_cached: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._cache_s = _cache_time(cache_s)
        self._fresh = fresh
        self._wait = wait
        self._on_cached = on_cached
        ledger = client.ledger.path
        self._cache = AnswerCache(ledger.parent / "discovery", clock=clock) if ledger and self._cache_s else None

    def events(self, limit: int = EVENTS) -> list[str]:
        """The names of the most common events of the last 31 days. Mixpanel docs: Top Events (events/names)."""
        _at_least_one(limit)
        return self._texts("events/names", {"type": "general", "limit": str(limit)})

    def day_counts(self, first: date, last: date, events: Sequence[str] = ()) -> dict[date, int]:
        """How many events each day had, by the project's time zone: `events`, else the most common of the last 31 days.

        No request tells of all events: what has another name is missing. Empty where there are no names to ask for, or
        more of `events` than one request holds. Mixpanel docs: Aggregate Event Counts.
        """
        known = events or self.events(settings.COUNTED_EVENTS)
        names = next(by_request([name for name in known if name.strip()]), [])
        if not names or (events and names != list(events)) or last < first:
            return {}

        def read() -> dict[str, int]:
            counts = Counter({day.isoformat(): 0 for day in days_between(first, last)})
            for row in Reports(self._client, wait=self._wait).event_counts(names, first, last).rows:
                if row["date"] in counts:
                    counts[row["date"]] += int(row["value"])
            return dict(counts)

        found: dict[str, int] = self._kept(["events", str(first), str(last), *names], read)
        return {date.fromisoformat(day): count for day, count in found.items()}

    def properties(self, event: str, limit: int = PROPERTIES) -> Rows:
        """The most common properties of an event, with the number of events that have them; None of what Mixpanel
        computes for sessions. Mixpanel docs: Top Event Properties.

        Raises `EntityNotFoundError` where there are none, and `events` does not know the event either.
        """
        _at_least_one(limit)

        def read() -> Rows:
            path = "/api/query/events/properties/top"
            answer = self._client.request_json(
                "query", "GET", path, {"event": event, "limit": str(limit)}, wait=self._wait
            )
            try:
                return [{"property": name, "count": found.get("count")} for name, found in answer.items()]
            except AttributeError:
                raise _no_list(path) from None

        rows: Rows = self._kept(["events/properties/top", event, str(limit)], read)
        if not rows:
            self._check_event(event)
        return rows

    def values(self, event: str, name: str, limit: int = VALUES) -> list[str]:
        """The most common values of an event's property, as text. Mixpanel docs: Top Event Property Values.

        Raises `EntityNotFoundError` as `properties` does.
        """
        _at_least_one(limit)
        found = self._texts("events/properties/values", {"event": event, "name": name, "limit": str(limit)})
        if not found:
            self._check_event(event)
        return found

    def funnels(self) -> Rows:
        """Saved funnels. Mixpanel docs: Funnels, List Saved Funnels."""
        return self._listed(LISTINGS["funnels"])

    def cohorts(self) -> Rows:
        """Saved cohorts. Mixpanel docs: Cohorts, List Saved Cohorts."""
        return self._listed(LISTINGS["cohorts"])

    def bookmarks(self, type: str | None = None) -> Rows:  # noqa: A002
        """Saved reports; or those of one type, such as insights, funnels or retention. Not a documented endpoint."""
        return [row for row in self._listed(BOOKMARKS) if type is None or row.get("type") == type]

    def projects(self) -> Rows:
        """The projects that the credentials see, with their time zones. Not a documented endpoint."""
        rows: Rows = self._kept(["app/me"], self._ask_for_projects)
        return rows

    def _ask_for_projects(self) -> Rows:
        try:
            known = self._client.me()["results"]
            organizations = known.get("organizations") or {}
            return [
                {
                    "id": str(number),
                    "name": project.get("name"),
                    "timezone": project.get("timezone"),
                    "organization_id": project.get("organization_id"),
                    "organization": (organizations.get(str(project.get("organization_id"))) or {}).get("name"),
                }
                for number, project in (known.get("projects") or {}).items()
            ]
        except (TypeError, KeyError, AttributeError):
            raise _no_list("/api/app/me") from None

    def _listed(self, listing: Listing) -> Rows:
        rows: Rows = self._kept([listing.table], lambda: listing.ask(self._client, wait=self._wait))
        return rows

    def _texts(self, path: str, params: dict[str, str]) -> list[str]:
        def read() -> list[str]:
            answer = self._client.request_json("query", "GET", f"/api/query/{path}", params, wait=self._wait)
            if not isinstance(answer, list):
                raise _no_list(f"/api/query/{path}")
            return [one if isinstance(one, str) else compact(one, ascii_only=False) for one in answer]

        found: list[str] = self._kept([path, *params.values()], read)
        return found

    def _check_event(self, event: str) -> None:
        if event not in self.events():
            raise EntityNotFoundError(
                f"the project has no event {event!r} of the last 31 days", hint="mpload events lists them"
            )

    def _kept(self, request: list[str], ask: Callable[[], Any]) -> Any:
        """The answer to `request`, kept or asked for. Others than who asked are asked anew."""
        if self._cache is None:
            return ask()
        who = self._client.credentials
        question = [self._client.origin("query"), who.project_id, who.workspace_id or "", who.fingerprint()]
        question += request
        if not self._fresh and (kept := self._cache.get(question, self._cache_s)) is not None:
            if self._on_cached is not None:
                self._on_cached(kept.age_s)
            return kept.answer
        answer = ask()
        self._cache.put(question, answer)
        return answer


def by_request(names: Sequence[str]) -> Iterator[list[str]]:
    """The names in lists that one request can hold each."""
    some: list[str] = []
    size = 0
    for name in names:
        length = len(quote(compact([name]), safe=""))
        if some and size + length > NAMES_BYTES:
            yield some
            some, size = [], 0
        some.append(name)
        size += length
    if some:
        yield some


def _cache_time(given: float | None) -> float:
    text = os.environ.get("MP_CACHE_S", "").strip()
    if given is None and not text:
        return settings.DISCOVERY_CACHE_S
    try:
        seconds = float(text) if given is None else given
        if not 0 <= seconds < math.inf:
            raise ValueError
    except ValueError:
        name, value = ("MP_CACHE_S", text) if given is None else ("cache_s", str(given))
        raise ConfigError(f"{name} is a number of seconds, 0 or more, not {value[:40]!r}") from None
    return seconds


def _at_least_one(limit: int) -> None:
    if limit < 1:
        raise ConfigError(f"limit is a number from 1, not {limit}")


def _no_list(path: str) -> ServerError:
    return ServerError(f"GET {path} answered with something that is no such list", hint="try again later")
