"""The local Mixpanel itself: what it holds, who may ask, how often, and which path answers what."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import engage, parameters, saved
from .access import Region, authorize
from .data import Block, EventStore, LocalTime, Profiles
from .endpoints import ENDPOINTS, Call, Endpoint, LimitName
from .faults import Fault, Faults, Framing
from .limits import RateLimit, Refusal
from .lines import dump
from .reply import EXPORT_429, ApiError, encoded, error_reply, send_reply, spoiled

EXPORT_PER_HOUR, EXPORT_PER_SECOND, EXPORT_AT_ONCE = 60, 3, 100
QUERY_PER_HOUR, QUERY_AT_ONCE = 60, 5
LEXICON_PER_MINUTE = 5
"""For one project. Mixpanel docs: Rate Limits. At once, the Lexicon API takes as many as it takes in a minute."""

_NO_FAULT = Fault.none()


@dataclass
class RequestRecord:
    """A request as it came in. `status` is what it was answered with; None if no answer was begun."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    at: float
    endpoint: str
    status: int | None = None


class Sandbox:
    """A local Mixpanel with one project; `app` serves it over ASGI, SandboxServer over HTTP.

    folder: `events/` (files named for their UTC day, or any JSONL), `profiles.jsonl`, `groups/<data_group_id>.jsonl`,
    each plain or gzip; `saved.json` (see `saved.Saved`). Times in it are true UTC times, in seconds or milliseconds.
    """

    def __init__(
        self,
        folder: Path | None = None,
        project_id: str | int = "1",
        username: str = "sandbox",
        secret: str = "sandbox",
        project_secret: str | None = None,
        oauth_token: str | None = None,
        region: Region | None = None,
        project_timezone: str = "UTC",
        legacy_local_time: bool = False,
        now: datetime | None = None,
        limits: bool = True,
        hour_s: float = 3600.0,
        retry_after: bool = True,
        count_engage_pages: bool = True,
        plan_402: Collection[str] = (),
        other_shape: Collection[str] = (),
        history_days: int | None = None,
        late_events: bool = False,
        export_lines: int | None = None,
        page_size: int = 1000,
        session_ttl_s: float | None = None,
        engage_total: Literal["first", "always", "never"] = "first",
        auth_failure: Literal[400, 401] = 401,
        strict_params: bool = True,
        framing: Framing = "chunked",
        gzip_level: int = 6,
        chunk_size: int = 65_536,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The switches that are not plain from their names:

        project_secret: the older credential, for export and Query only. oauth_token: a bearer token, for everything.
        region: a request that names a Mixpanel host of another region (in `Host`) is not authenticated.
        legacy_local_time: the zone rule of projects created before 2023.
        now: a fixed clock, aware; None is the real one. The limits and sessions keep to `clock`, in seconds.
        hour_s: how long an hour of the limits is; export's limit a second is not scaled.
        retry_after: whether 429 carries Retry-After; Mixpanel's docs are silent.
        count_engage_pages: whether engage's pages after the first count toward the 60 an hour.
        plan_402: endpoints that the plan does not include. history_days: how far back the plan lets dates reach.
        other_shape: endpoints that answer in the form that clients met, where it is not that of the docs:
        retention/addiction without `data`; annotations/tags and (a single one of) schemas under `results`;
        events/properties/top with entries that have no count.
        late_events: an event is there only from its mp_processing_time_ms on, so that moving `now` brings in late ones.
        export_lines: an export of more lines ends early, after so many, and says so, as servers that give up do.
        strict_params: unknown parameters are a 400, so that a client's mistake shows. Mixpanel's way is not known.
        engage_total, auth_failure, framing: which of the forms that were seen is used.
        """
        self.project_id = str(project_id)
        self.username, self.secret = username, secret
        self.project_secret, self.oauth_token = project_secret, oauth_token
        self.region = region
        self.project_timezone = project_timezone
        self.local_time = LocalTime(project_timezone, legacy_local_time)
        self.now = now
        self.limits = limits
        self.retry_after = retry_after
        self.count_engage_pages = count_engage_pages
        self.plan_402 = plan_402
        self.other_shape = other_shape
        self.history_days = history_days
        self.late_events = late_events
        self.export_lines = export_lines
        self.page_size = page_size
        self.engage_total = engage_total
        self.auth_failure = auth_failure
        self.strict_params = strict_params
        self.framing = framing
        self.gzip_level = gzip_level
        self.chunk_size = chunk_size
        self.clock = clock
        self.events = EventStore(folder, self.local_time)
        self.profiles = Profiles(folder)
        self.saved = saved.Saved(folder)
        self.sessions = engage.Sessions(session_ttl_s, clock)
        self.faults = Faults()
        self.requests: list[RequestRecord] = []
        self.rate_limits: dict[LimitName, RateLimit] = {
            "export": RateLimit(EXPORT_PER_HOUR, hour_s, EXPORT_AT_ONCE, EXPORT_PER_SECOND, clock),
            "query": RateLimit(QUERY_PER_HOUR, hour_s, QUERY_AT_ONCE, None, clock),
            "lexicon": RateLimit(LEXICON_PER_MINUTE, hour_s / 60, LEXICON_PER_MINUTE, None, clock),
        }
        self.app = _app(self)

    @property
    def now(self) -> datetime | None:
        """The fixed clock; None: the real one. May be set at any time."""
        return self._now

    @now.setter
    def now(self, moment: datetime | None) -> None:
        if moment is not None and moment.tzinfo is None:
            raise ValueError("now needs a time zone")
        self._now = moment

    def current_time(self) -> datetime:
        return self._now or datetime.now(UTC)

    def set_day(self, day: str, lines: Sequence[bytes], rewrite_time: bool = False) -> None:
        """Replace an export day by these lines, served byte for byte, whatever they are (without their newlines).

        rewrite_time: under `time_in_ms=true`, their times in whole seconds are served in milliseconds after all.
        """
        self.events.set_day(day, Block(b"".join(line + b"\n" for line in lines)), rewrite_time)

    def set_day_gzip(self, day: str, body: bytes) -> None:
        """Replace an export day by a gzip file, sent as it is to a client that accepts gzip and filters nothing."""
        self.events.set_day(day, Block(ready_gzip=body), rewrite_time=False)

    def add_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Put each event on the export day of its properties.time, a true UTC time in seconds or milliseconds."""
        self.events.add(events)

    def set_profiles(self, profiles: Sequence[Mapping[str, Any] | bytes], data_group_id: str | None = None) -> None:
        """Replace the profiles of users, or of a group; bytes are served as they are."""
        self.profiles.replace(profiles, data_group_id)

    def set_cohorts(self, cohorts: saved.Rows) -> None:
        """Replace the cohorts. A row has `id`, and the other fields of `saved.Cohort` where they matter.

        Members need no profile.
        """
        self.saved.cohorts = saved.cohorts_of(cohorts)

    def set_funnels(self, funnels: saved.Rows) -> None:
        """Replace the saved funnels. A row has `funnel_id`, `name`, `steps` (see `saved.funnels_of`), `length`..."""
        self.saved.funnels = saved.funnels_of(funnels)

    def set_bookmarks(self, bookmarks: saved.Rows) -> None:
        """Replace the saved reports. A row has `id`, `name`, `type`, and `report` or `query` (see `insights`)."""
        self.saved.bookmarks = bookmarks

    def set_annotations(self, annotations: saved.Rows, tags: saved.Rows = ()) -> None:
        """Replace the annotations, each with an `id` and a `date`; `tags` are tags that none of them has."""
        self.saved.annotations, self.saved.annotation_tags = annotations, tags

    def set_schemas(self, schemas: saved.Rows) -> None:
        """Replace the Lexicon's schemas, each with entityType, name and schemaJson."""
        self.saved.schemas = schemas

    def set_lookup_tables(self, tables: saved.Rows) -> None:
        """Replace the lookup tables, each with an id and a name."""
        self.saved.lookup_tables = tables

    def set_experiments(self, experiments: saved.Rows) -> None:
        """Replace the experiments, each with an id."""
        self.saved.experiments = experiments

    def set_flags(self, flags: saved.Rows) -> None:
        """Replace the feature flags, each with an id; `status` archived hides one."""
        self.saved.feature_flags = flags

    def set_jql(self, script: str, answer: saved.JqlAnswer) -> None:
        """What this script, blanks around it aside, yields: rows, or a function of its `params`."""
        self.saved.jql[script.strip()] = answer

    def forget_requests(self) -> None:
        """Empty `requests`, and start a new hour of the limits."""
        self.requests.clear()
        for limit in self.rate_limits.values():
            limit.forget()


class _Serving:
    """The ASGI side of an endpoint: record, authenticate, limit, answer, spoil, send."""

    def __init__(self, sandbox: Sandbox, endpoint: Endpoint) -> None:
        self._sandbox = sandbox
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sandbox, endpoint = self._sandbox, self._endpoint
        request = Request(scope, receive)
        headers = dict(request.headers.items())
        body = await request.body()
        if request.method == "GET":
            body = b""  # it means nothing there: what stands in it was not asked for
        params, repeated = _params(request.url.query, body, headers.get("content-type", ""))
        record = RequestRecord(request.method, request.url.path, params, headers, sandbox.clock(), endpoint.name)
        sandbox.requests.append(record)
        call = Call(params, headers, {name: str(value) for name, value in request.path_params.items()})
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        fault = _NO_FAULT
        limit = None
        quick = True
        try:
            try:
                if request.method not in endpoint.methods:
                    raise ApiError(405)
                authorize(sandbox, endpoint, call)
                limit = _admit(sandbox, endpoint, call)
                fault = sandbox.faults.take(endpoint.name, endpoint.is_follow_up(call)) or _NO_FAULT
                if fault.kind == "expired_session":
                    sandbox.sessions.drop(params["session_id"])
                if endpoint.name in sandbox.plan_402:
                    raise ApiError(402)
                _check_params(sandbox, endpoint, params, repeated)
                quick = endpoint.is_quick(sandbox, call)
                if quick:
                    reply = endpoint.answer(sandbox, call)
                else:
                    reply = await asyncio.to_thread(endpoint.answer, sandbox, call)
            except ApiError as error:
                reply = error_reply(endpoint.family, target, error)
            reply = spoiled(reply, fault, endpoint.family, target)
            encode = (reply, _accepts_gzip(headers), fault, sandbox.gzip_level, sandbox.chunk_size)
            wire = encoded(*encode) if quick else await asyncio.to_thread(encoded, *encode)
            record.status = None if fault.kind == "reset" else wire.status
            await send_reply(wire, fault, scope, send)
        finally:
            if limit is not None:
                limit.done()


def _app(sandbox: Sandbox) -> Starlette:
    routes = [
        Route(path + slash, _Serving(sandbox, endpoint))
        for endpoint in ENDPOINTS
        for path in endpoint.paths
        for slash in ("", "/")
    ]
    return Starlette(routes=routes)


def _params(query: str, body: bytes, content_type: str) -> tuple[dict[str, str], list[str]]:
    """The parameters from the query string, else from a form, else from a JSON body; and those given twice in a place.

    All three forms are in use by clients. A JSON value that is no string counts as its JSON text.
    """
    from_query = parse_qsl(query, keep_blank_values=True)
    from_body: list[tuple[str, str]] = []
    if body and "json" in content_type:
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if isinstance(value, dict):
            from_body = [(key, item if isinstance(item, str) else dump(item).decode()) for key, item in value.items()]
    elif body:
        from_body = parse_qsl(body.decode(errors="replace"), keep_blank_values=True)
    repeated = [
        name
        for place in (from_query, from_body)
        for name in {name for name, _ in place}
        if sum(1 for other, _ in place if other == name) > 1
    ]
    return {**dict(from_body), **dict(from_query)}, repeated


def _check_params(sandbox: Sandbox, endpoint: Endpoint, params: Mapping[str, str], repeated: list[str]) -> None:
    if endpoint.params is None:
        return
    parameters.whole(params, "workspace_id", None)
    if not sandbox.strict_params:
        return
    unknown = sorted(params.keys() - endpoint.params)
    if unknown:
        raise ApiError(400, f"Unknown parameter: {', '.join(unknown)}")
    if repeated:
        raise ApiError(400, f"Parameter given more than once: {', '.join(sorted(repeated))}")


def _admit(sandbox: Sandbox, endpoint: Endpoint, call: Call) -> RateLimit | None:
    """Take a place within the limits; raises 429 in the words of the endpoint's family."""
    if endpoint.limit is None or not sandbox.limits:
        return None
    limit = sandbox.rate_limits[endpoint.limit]
    refusal = limit.admit(counts=sandbox.count_engage_pages or not endpoint.is_follow_up(call))
    if refusal is None:
        return limit
    texts = {"export": EXPORT_429, "query": _query_429(sandbox, refusal), "lexicon": None}
    text = texts[endpoint.limit]
    raise ApiError(429, text, headers={"retry-after": refusal.retry_after} if sandbox.retry_after else None)


def _query_429(sandbox: Sandbox, refusal: Refusal) -> str:
    """The text tells which limit it was: the request itself is in the number that is over."""
    at_once = refusal.running >= refusal.at_once
    return (
        f"Query rate limit exceeded for project_id: {sandbox.project_id}. "
        f"{refusal.running + at_once}/{refusal.at_once} queries running concurrently and "
        f"{refusal.in_window + (not at_once)}/{refusal.per_window} queries running in the last hour. "
        "Please reduce the rate of your queries."
    )


def _accepts_gzip(headers: Mapping[str, str]) -> bool:
    for item in headers.get("accept-encoding", "").split(","):
        name, _, parameter = item.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            quality = parameter.replace(" ", "").lower().removeprefix("q=")
            return quality.strip("0.") != "" if quality else True
    return False
