"""`MixpanelClient`: signs, waits, sends and retries, and hands on only what is known to be whole.

An export or a walk over profiles is first spooled to a file and checked; every retry happens before its first byte is
handed on, so nothing is ever handed on twice.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import requests
import requests.exceptions

from mixpanel_source import bodies, settings, transport
from mixpanel_source.credentials import Credentials, Secret, spellings
from mixpanel_source.errors import (
    AuthenticationError,
    ConfigError,
    IncompleteExportError,
    MixpanelDataError,
    PlanError,
    QueryError,
    RateLimitError,
    ServerError,
)
from mixpanel_source.profile_walk import ProfileWalk, WalkBrokenError, read_page
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.raw_json import ExactFloat
from mixpanel_source.settings import ApiFamily
from mixpanel_source.windows import Window

log = logging.getLogger(__name__)
T = TypeVar("T")
B = TypeVar("B", bound=bodies.ExportBody | bodies.ProfilePages)

MESSAGE_CHARS: Final = 500
HOURLY_WAITS_S: Final = 3900.0
"""Longest wait in all for an hourly limit that others use up: after an hour each request made so far is forgotten."""
HOURLY_FIRST_S: Final = 60.0
HOURLY_MAX_S: Final = 600.0

_TIMED_OUT = re.compile(r"\W*((query|request) )?(timeout|timed out)( error)?\W*")


class MixpanelClient:
    """Mixpanel's read APIs for one project. Opens nothing until the first request; usable by several threads.

    `base_url` (else `MP_BASE_URL`) sends every API family to one origin. `ledger_url` (else `MP_LEDGER_URL`) and
    `request_share` are the ledger's, unless one is given. `wait` allows waiting for an hourly limit;
    without it such a wait is a `RateLimitError`. `on_wait` is told (seconds, why) before every wait. `clock` gives
    epoch seconds, in place of the machine's clocks, and `sleep` has to move it. `stats` counts what several clients
    spend together. A closed client stays closed: waits end, and what it handed out ends with a `RuntimeError`.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        base_url: str | None = None,
        retries: int = settings.RETRIES,
        timeout_s: float = settings.TIMEOUT_S,
        export_timeout_s: float = settings.EXPORT_TIMEOUT_S,
        spool_folder: Path | None = None,
        ledger: RequestLedger | None = None,
        ledger_url: str | Secret | None = None,
        request_share: float = 1.0,
        wait: bool = True,
        session: requests.Session | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], object] | None = None,
        jitter: Callable[[], float] = random.random,
        on_wait: Callable[[float, str], None] | None = None,
        max_line_bytes: int = bodies.MAX_LINE_BYTES,
        stats: RequestStats | None = None,
        max_body_bytes: int = settings.MAX_BODY_BYTES,
    ) -> None:
        if retries < 0:
            raise ConfigError(f"retries is 0 or more, not {retries}")
        if not (timeout_s > 0 and export_timeout_s > 0):
            raise ConfigError("timeout_s and export_timeout_s are more than 0 seconds")
        if max_body_bytes < 1:
            raise ConfigError(f"max_body_bytes is a number from 1, not {max_body_bytes}")
        self.credentials = credentials
        self.stats = stats or RequestStats()
        self._base_url = transport.base_origin(base_url or os.environ.get("MP_BASE_URL") or None)
        self._retries = retries
        self._timeout_s = timeout_s
        self._export_timeout_s = export_timeout_s
        self._spool_folder = spool_folder
        self._wait_allowed = wait
        self._session = session
        self._own_session = session is None
        self._sockets = transport.LiveSockets()
        self._clock = clock or time.time
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait  # so that closing ends a wait
        self._jitter = jitter
        self._on_wait = on_wait
        self._max_line_bytes = max_line_bytes
        self._max_body_bytes = max_body_bytes
        self._lock = threading.Lock()
        self._handed_out: weakref.WeakSet[bodies.ExportBody | bodies.ProfilePages] = weakref.WeakSet()
        self._secrets = spellings(credentials)
        self.ledger = ledger or RequestLedger(
            settings.data_folder() / "ledger.sqlite",
            origin=self.origin("query"),
            project_id=credentials.project_id,
            share=request_share,
            url=ledger_url or os.environ.get("MP_LEDGER_URL"),
            clock=clock,
        )

    def __repr__(self) -> str:
        return f"MixpanelClient(project_id={self.credentials.project_id!r}, region={self.credentials.region!r})"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything, from any thread, and removes the spooled files.

        At once, but for a name that is being looked up, and for what waits in a `session` that was given: these end
        with their time-outs.
        """
        with self._lock:
            self._closing.set()
            handed_out = list(self._handed_out)
            session = self._session if self._own_session else None
        for body in handed_out:
            body.close()
        self._sockets.shut_down()
        if session is not None:
            session.close()

    def origin(self, family: ApiFamily) -> str:
        """Scheme, host and port of an API family."""
        return self._base_url or settings.HOSTS[family][self.credentials.region]

    # --- what can be asked

    def export(
        self,
        window: Window,
        *,
        events: Sequence[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> bodies.ExportBody:
        """The window's events, spooled to disk and checked to be whole. Mixpanel docs: Download Data.

        `on_bytes` is told the bytes received so far, compressed; a retry starts again from 0. Raises
        `IncompleteExportError` if no attempt came whole; it and `ServerError` tell of the attempts.
        """
        params: dict[str, str] = {
            "project_id": self.credentials.project_id,
            "from_date": window.first.isoformat(),
            "to_date": window.last.isoformat(),
            "time_in_ms": "true",  # else two events of one second cannot be told apart
        }
        if events is not None:
            if isinstance(events, str) or not events:
                raise ConfigError("events is a list of one event name or more; leave it out for all events")
            params["event"] = compact(list(events))
        if where is not None:
            params["where"] = where
        if limit is not None:
            params["limit"] = str(limit)
        call = _Call("export", "GET", "/api/2.0/export", params, timeout_s=self._export_timeout_s)

        def download(response: requests.Response) -> bodies.ExportBody:
            spool = bodies.Spool(self._folder(), "export-")
            try:
                received = self._spool_export(response, call, spool, on_bytes)
                spool.finish()
            except BaseException:
                spool.discard()
                raise
            return bodies.ExportBody(spool, *received, attempts=call.attempts)

        try:
            return self._hand_out(self._retrying(call, download))
        except (IncompleteExportError, ServerError) as error:
            error.attempts = call.attempts
            raise

    def profiles(
        self,
        *,
        where: str | None = None,
        output_properties: Sequence[str] | None = None,
        filter_by_cohort: int | str | Mapping[str, Any] | None = None,
        include_all_users: bool | None = None,
        data_group_id: str | int | None = None,
        distinct_id: str | None = None,
        distinct_ids: Sequence[str] | None = None,
        behaviors: Sequence[Mapping[str, Any]] | None = None,
        as_of_timestamp: int | None = None,
        page_size: int | None = None,
        on_page: Callable[[int, int | None], None] | None = None,
    ) -> bodies.ProfilePages:
        """The pages of one complete walk over the profiles. Mixpanel docs: Query Profiles (reference/engage-query).

        A walk that breaks starts again from page 0 with a new session, as the order differs between sessions.
        `behaviors` name what users did, for `where` to speak of; with more than a page of profiles they need
        `as_of_timestamp`, in epoch seconds. `on_page` is told (profiles so far, total or None). Raises
        `IncompleteExportError` if no walk was complete.
        """
        if include_all_users is not None and filter_by_cohort is None:
            raise ConfigError("include_all_users goes with filter_by_cohort only")
        if behaviors is not None and filter_by_cohort is not None:
            raise ConfigError("either behaviors or filter_by_cohort, and not both")
        form: dict[str, str] = {}
        if where is not None:
            form["where"] = where
        if output_properties is not None:
            form["output_properties"] = compact(list(output_properties))
        if filter_by_cohort is not None:
            cohort = filter_by_cohort if isinstance(filter_by_cohort, Mapping) else {"id": int(filter_by_cohort)}
            form["filter_by_cohort"] = compact(dict(cohort))
        if include_all_users is not None:
            form["include_all_users"] = "true" if include_all_users else "false"
        if data_group_id is not None:
            form["data_group_id"] = str(data_group_id)  # 19 digits and a sign: never a float
        if distinct_id is not None:
            form["distinct_id"] = distinct_id
        if distinct_ids is not None:
            form["distinct_ids"] = compact(list(distinct_ids))
        if behaviors is not None:
            form["behaviors"] = compact([dict(behavior) for behavior in behaviors])
        if as_of_timestamp is not None:
            form["as_of_timestamp"] = str(as_of_timestamp)
        if page_size is not None:
            form["page_size"] = str(page_size)

        attempts = 0

        def ask(fields: Mapping[str, str]) -> tuple[bytes, dict[str, Any]]:
            nonlocal attempts
            call = self._json_call("query", "POST", "/api/query/engage", data=fields)
            try:
                return self._retrying(call, lambda response: self._profile_page(response, call))
            finally:
                attempts += call.attempts

        for restart in range(self._retries + 1):
            try:
                walk = ProfileWalk(ask, form, on_page, self._max_body_bytes)
                pages = walk.run(bodies.Spool(self._folder(), "profiles-"))
            except WalkBrokenError as broken:
                failure = broken.error
            else:
                pages.attempts = attempts
                return self._hand_out(pages)
            if restart < self._retries:
                log.debug("profiles: starting again from page 0: %s", failure.message)
                self._pause(self._backoff(restart), "the walk over profiles broke and starts again")
        raise failure

    def me(self) -> dict[str, Any]:
        """Who the credentials belong to, and their projects with time zones. Not a documented endpoint."""
        answer = self.request_json("app", "GET", "/api/app/me", send_project=False)
        if not isinstance(answer, dict):
            raise ServerError("GET /api/app/me answered with something that is not a JSON object")
        return answer

    def request_json(
        self,
        family: ApiFamily,
        method: str,
        path: str,
        params: Mapping[str, str | int] | None = None,
        data: Mapping[str, str | int] | None = None,
        *,
        json_body: Any = None,
        send_project: bool | None = None,
        wait: bool | None = None,
        timeout_s: float | None = None,
        exact: bool = False,
    ) -> Any:
        """The parsed answer of any endpoint. `path` begins with "/" and `data` is sent as a form.

        `project_id` is added to `params` unless `send_project` says otherwise (by default not for the App API, whose
        paths hold it), and the account's `workspace_id` for the Query API. An error inside a 200 is a `QueryError`.
        `wait` takes the place of the client's own for this request; `timeout_s` does where it is longer. `exact` has
        numbers with a decimal point keep their text, as `ExactFloat`.
        """
        call = self._json_call(family, method, path, params, data, json_body, send_project)
        call.wait = wait
        call.timeout_s = max(call.timeout_s, timeout_s or 0.0)

        def parse(response: requests.Response) -> Any:
            answer = _read_json(call, self._whole_body(response, call), _parse_exact if exact else _parse_json)
            self._refuse_error_inside(call, answer)
            return answer

        return self._retrying(call, parse)

    # --- sending

    def _json_call(
        self,
        family: ApiFamily,
        method: str,
        path: str,
        params: Mapping[str, str | int] | None = None,
        data: Mapping[str, str | int] | None = None,
        json_body: Any = None,
        send_project: bool | None = None,
    ) -> _Call:
        if not path.startswith("/"):
            raise ConfigError(f"a path begins with /, not {path[:40]!r}")
        query: dict[str, str | int] = {}
        if family not in ("app", "lexicon") if send_project is None else send_project:
            query["project_id"] = self.credentials.project_id
        if family == "query" and self.credentials.workspace_id is not None:
            query["workspace_id"] = self.credentials.workspace_id
        query.update(params or {})
        return _Call(family, method, path, query, data, json_body, timeout_s=self._timeout_s)

    def _retrying(self, call: _Call, receive: Callable[[requests.Response], T]) -> T:
        """What `receive` makes of the first answer that it, and the status, do not refuse."""
        retries = hourly = 0
        hourly_waited_s = 0.0
        while True:
            try:
                return self._attempt(call, receive)
            except _FailedError as failed:
                # Nothing is raised in here: the next error would carry this one, and its request, as its context.
                failure = failed
            self._check_open()
            log.debug("%s: attempt %d failed: %s", call, call.attempts, failure.error.message)
            wait_s = self._wait_before_retry(failure, retries, hourly)
            if failure.limited:
                self.ledger.penalize(call.family, wait_s)
                error = RateLimitError(failure.error.message, hint=failure.error.hint, retry_after=round(wait_s, 3))
                if not self._may_wait(call) or self._retries == 0 or wait_s > HOURLY_WAITS_S:
                    raise error
                failure.error = error
            if failure.hourly:
                # An hourly limit that somebody else uses up is waited out, however few the retries.
                hourly += 1
                hourly_waited_s += wait_s
                retry = hourly_waited_s <= HOURLY_WAITS_S
            else:
                retry = failure.retry and retries < self._retries
                retries += 1
            if not retry:
                raise failure.error
            self.stats.add(retries=1)
            self._pause(wait_s, f"{call}: {failure.error.message}")

    def _may_wait(self, call: _Call) -> bool:
        return self._wait_allowed if call.wait is None else call.wait

    def _wait_before_retry(self, failure: _FailedError, retries: int, hourly: int) -> float:
        if failure.retry_after_s is not None:
            return max(failure.retry_after_s, settings.BACKOFF_FIRST_S)
        if failure.hourly:
            return self._with_jitter(min(HOURLY_FIRST_S * 2**hourly, HOURLY_MAX_S))
        return self._backoff(retries)

    def _backoff(self, retries: int) -> float:
        return self._with_jitter(min(settings.BACKOFF_FIRST_S * 2**retries, settings.BACKOFF_MAX_S))

    def _with_jitter(self, seconds: float) -> float:
        return seconds * (1 + settings.BACKOFF_JITTER * self._jitter())

    def _attempt(self, call: _Call, receive: Callable[[requests.Response], T]) -> T:
        self._check_open()
        why = f"the request limit of the {call.family} API is used up"
        with self.ledger.permit(
            call.family,
            wait=self._may_wait(call),
            on_wait=lambda seconds: self._tell_of_wait(seconds, why),
            sleep=self._rest,
        ) as permit:
            self._check_open()
            with self._sent(call) as response:
                if call.family == "export":  # other answers are here in a moment
                    permit.arrived()
                if response.status_code != 200:
                    raise self._refused(call, response)
                return receive(response)

    @contextmanager
    def _sent(self, call: _Call) -> Iterator[requests.Response]:
        """As `_send`; how it went is logged, and counted, once all of the answer was received."""
        began = time.monotonic()
        call.received_bytes = 0
        status: int | None = None
        try:
            with self._send(call) as response:
                status = response.status_code
                yield response
        finally:
            seconds = time.monotonic() - began
            self.stats.add(seconds=seconds)
            log.info(
                "%s%s: %s in %.2f s, %d bytes (attempt %d)",
                call,
                f" ({' to '.join(map(str, call.days.values()))})" if call.days else "",
                "no answer" if status is None else status,
                seconds,
                call.received_bytes,
                call.attempts,
                extra={
                    "api": call.family,
                    "method": call.method,
                    "path": call.path,
                    "status": status,
                    "seconds": round(seconds, 3),
                    "bytes": call.received_bytes,
                    "attempt": call.attempts,
                    **call.days,
                },
            )

    def _send(self, call: _Call) -> requests.Response:
        session = self._open_session()
        call.attempts += 1
        self.stats.add(requests=1, api=call.family)
        log.debug("%s: sent", call)
        try:
            return session.request(
                call.method,
                self.origin(call.family) + call.path,
                params=dict(call.params),
                data=None if call.data is None else dict(call.data),
                json=call.json_body,
                headers={"Accept-Encoding": "gzip", "Accept": "*/*", "User-Agent": "mixpanel-source"},
                # Given here, and not as a header: requests then leaves netrc alone.
                auth=transport.Authorization(self.credentials),
                timeout=(self._timeout_s, call.timeout_s),
                allow_redirects=False,
                stream=True,
            )
        except UnicodeEncodeError:
            failure = _FailedError(ConfigError(f"{call}: an argument holds half of a surrogate pair, which is no text"))
        except transport.NETWORK_ERRORS as error:
            failure = self._network_failure(call, error)
        # Out of the handler: exceptions of requests carry the request, and so the Authorization header.
        raise failure

    def _network_failure(self, call: _Call, error: BaseException) -> _FailedError:
        message = f"{call} failed: {self._clean(transport.reason(error))}"
        if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "behind a proxy with a certificate of its own, name its bundle in REQUESTS_CA_BUNDLE"
            return _FailedError(ServerError(message, hint=hint))
        if isinstance(error, requests.exceptions.InvalidProxyURL):
            return _FailedError(ConfigError(message, hint="look at HTTPS_PROXY and NO_PROXY"))
        is_slow = isinstance(error, requests.exceptions.ReadTimeout)
        hint = "check the network, and try again later"
        return _FailedError(ServerError(message, hint=hint, is_slow=is_slow), retry=True)

    def _open_session(self) -> requests.Session:
        with self._lock:
            self._check_open()
            if self._session is None:
                self._session = transport.new_session(self._base_url, self._sockets)
            return self._session

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise RuntimeError("this MixpanelClient is closed")

    def _pause(self, seconds: float, why: str) -> None:
        self._tell_of_wait(seconds, why)
        self._rest(seconds)

    def _tell_of_wait(self, seconds: float, why: str) -> None:
        self.stats.add(waits=1)
        log.info("waiting %.1f s: %s", seconds, why, extra={"wait_s": round(seconds, 3), "why": why})
        if self._on_wait is not None:
            self._on_wait(seconds, why)

    def _rest(self, seconds: float) -> None:
        self.stats.add(waited_s=seconds)
        self._sleep(seconds)
        self._check_open()

    # --- answers

    def _refused(self, call: _Call, response: requests.Response) -> _FailedError:
        """What a status other than 200 means. Mixpanel docs: API overview; the texts are as clients have met them."""
        status = response.status_code
        text = self._clean(bodies.error_text(transport.some_of_body(response)))
        message = f"{call} answered {status}" + (f": {text}" if text else "")
        low = text.lower()
        if status == 429:
            retry_after_s = transport.retry_after(response.headers.get("Retry-After"), self._clock())
            hourly = transport.is_hourly(low) if retry_after_s is None else retry_after_s > settings.BACKOFF_MAX_S
            limited = RateLimitError(message, hint="wait, and ask again")
            return _FailedError(limited, retry=True, limited=True, hourly=hourly, retry_after_s=retry_after_s)
        if 300 <= status < 400:
            hint = "credentials are never sent on to another place; look at MP_BASE_URL and any proxy"
            return _FailedError(ServerError(f"{message} (a redirect, not followed)", hint=hint))
        if status >= 500 or status == 408 or status < 300:
            retry_after_s = transport.retry_after(response.headers.get("Retry-After"), self._clock())
            if retry_after_s is not None and retry_after_s > settings.BACKOFF_MAX_S:
                retry_after_s = None
            is_slow = status in (408, 504)
            error = ServerError(message, hint="Mixpanel has a problem: try again later", is_slow=is_slow)
            return _FailedError(error, retry=True, retry_after_s=retry_after_s)
        if status == 400 and _TIMED_OUT.fullmatch(low):
            hint = "ask for less at once, or try again later"
            return _FailedError(ServerError(message, hint=hint, is_slow=True), retry=True)
        if status == 402 or "date range exceeds" in low or "your plan" in low:
            hint = "the project's Mixpanel plan does not include this"
            return _FailedError(PlanError(message, hint=hint, status=status))
        if status == 401 or status == 403 or "unable to authenticate" in low:
            region = self.credentials.region
            hint = (
                f"check username, secret, project and region (now {region!r}), and the account's rights to the project:"
                " mpload auth test tells which"
            )
            return _FailedError(AuthenticationError(message, hint=hint, status=status))
        return _FailedError(QueryError(message, hint=self._query_hint(call, status, text), status=status))

    def _query_hint(self, call: _Call, status: int, text: str) -> str | None:
        if status == 404:
            region = self.credentials.region
            return f"look at the region (now {region!r}), the project id and MP_BASE_URL; or it does not exist any more"
        if status != 400:
            return None
        words = set(re.findall(r"\w+", text))
        named = [name for name in {**call.params, **(call.data or {})} if name in words]
        return "Mixpanel refuses the question: look at " + (", ".join(named) or "its dates, names and expressions")

    def _refuse_error_inside(self, call: _Call, answer: Any) -> None:
        """An error with status 200: insights, flags and old endpoints answer so."""
        if not isinstance(answer, dict):
            return
        # Only text: endpoints that answer with a map by name may have a property named "error".
        if isinstance(answer.get("error"), str) or answer.get("status") == "error":
            text = self._clean(bodies.error_text(json.dumps(answer).encode()))
            raise _FailedError(QueryError(f"{call} answered 200 with an error inside: {text}", status=200))

    def _whole_body(self, response: requests.Response, call: _Call) -> bytes:
        """The decompressed body of an answer whose JSON will prove it whole."""
        pieces: list[bytes] = []
        inflater = bodies.Inflater(_content_encoding(response))
        try:
            for chunk in self._chunks(response, call):
                for piece in inflater.feed(chunk):
                    pieces.append(piece)
                    if inflater.decompressed_bytes > settings.MAX_ANSWER_BYTES:
                        raise _too_large(call, f"more than {settings.MAX_ANSWER_BYTES >> 20} MiB")
            inflater.finish()
        except bodies.CutError as cut:
            problem = str(cut)
        else:
            body = b"".join(pieces)
            if sum(map(body.count, (b",", b"[", b"{"))) > settings.MAX_ANSWER_VALUES:
                raise _too_large(call, f"more than {settings.MAX_ANSWER_VALUES:,} values")
            return body
        raise _FailedError(ServerError(f"{call}: {problem}", hint="try again later"), retry=True)

    def _chunks(self, response: requests.Response, call: _Call) -> Iterator[bytes]:
        """The body as sent, still compressed. Raises `CutError` if its framing shows that some of it is missing."""
        raw = response.raw
        length = raw.length_remaining
        transport.make_chunks_strict(raw)
        received = 0
        problem = ""
        try:
            for chunk in raw.stream(bodies.READ_BYTES, decode_content=False):
                self._check_open()
                received += len(chunk)
                call.received_bytes += len(chunk)
                self.stats.add(received_bytes=len(chunk))
                yield chunk
        except transport.NETWORK_ERRORS as error:
            problem = self._clean(transport.reason(error))
        self._check_open()
        if problem:
            raise bodies.CutError(f"the connection broke after {received} bytes: {problem}")
        if length is not None and received != length:
            raise bodies.CutError(f"{received} bytes came of {length}")

    def _spool_export(
        self, response: requests.Response, call: _Call, spool: bodies.Spool, on_bytes: Callable[[int], None] | None
    ) -> tuple[str, int, int, int]:
        """(content encoding, bytes as sent, bytes decompressed, lines) of an export that is whole, now in `spool`."""
        if on_bytes is not None:
            on_bytes(0)
        received = 0
        encoding = _content_encoding(response)
        framed = getattr(response.raw, "chunked", False) or response.raw.length_remaining is not None
        inflater = bodies.Inflater(encoding, min(bodies.PIECE_BYTES, self._max_line_bytes))
        lines = bodies.LineWatch(self._max_line_bytes)
        try:
            for chunk in self._chunks(response, call):
                received += len(chunk)
                if received > self._max_body_bytes:
                    raise bodies.CutError(f"it has more than {self._max_body_bytes} bytes", retry=False)
                spool.write(chunk)
                for piece in inflater.feed(chunk):
                    if inflater.decompressed_bytes > max(
                        settings.INFLATION_FREE_BYTES, settings.MAX_INFLATION * received
                    ):
                        raise bodies.CutError(
                            f"{received} bytes of gzip hold more than {inflater.decompressed_bytes}", retry=False
                        )
                    lines.feed(piece)
                if on_bytes is not None:
                    on_bytes(received)
            inflater.finish()
            if not framed and (not received or not inflater.compressed):
                raise bodies.CutError("it came without gzip, chunks or a length, so nothing shows whether it is all")
            lines.finish()
        except bodies.CutError as cut:
            problem, retry = self._clean(str(cut)), cut.retry
        else:
            return encoding, received, inflater.decompressed_bytes, lines.count
        error = IncompleteExportError(
            f"{call} did not come whole: {problem}", hint="try again, or ask for fewer days or events at once"
        )
        raise _FailedError(error, retry=retry)

    def _profile_page(self, response: requests.Response, call: _Call) -> tuple[bytes, dict[str, Any]]:
        """The body as it was sent, decompressed, and what it says."""
        body = self._whole_body(response, call)
        answer = _read_json(call, body, read_page)
        self._refuse_error_inside(call, answer)
        if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
            raise _FailedError(ServerError(f"{call} answered without results", hint="try again later"), retry=True)
        return body, answer

    def _clean(self, text: str) -> str:
        """Text from outside as a message may hold it: short, on one line, without our secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = transport.USER_INFO.sub("//***@", text)  # a proxy's password
        text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MESSAGE_CHARS]).split())
        return text if len(text) <= MESSAGE_CHARS else text[:MESSAGE_CHARS] + " ..."

    def _folder(self) -> Path:
        folder = self._spool_folder or settings.data_folder() / "spool"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise bodies.spool_error(error) from None
        bodies.remove_stale(folder)
        return folder

    def _hand_out(self, body: B) -> B:
        with self._lock:
            if not self._closing.is_set():
                self._handed_out.add(body)
                return body
        body.close()
        raise RuntimeError("this MixpanelClient is closed")


@dataclass
class RequestStats:
    """What a client spent so far."""

    requests: int = 0
    retries: int = 0
    waits: int = 0
    waited_s: float = 0.0
    received_bytes: int = 0
    """Of answers, as sent."""
    seconds: float = 0.0
    """From sending a request to its last byte, of all together."""
    by_api: Counter[ApiFamily] = field(default_factory=Counter)
    """Requests."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(
        self,
        *,
        requests: int = 0,
        api: ApiFamily | None = None,
        retries: int = 0,
        waits: int = 0,
        waited_s: float = 0.0,
        received_bytes: int = 0,
        seconds: float = 0.0,
    ) -> None:
        with self._lock:
            if api is not None:
                self.by_api[api] += requests
            self.seconds += seconds
            self.requests += requests
            self.retries += retries
            self.waits += waits
            self.waited_s += waited_s
            self.received_bytes += received_bytes


# --- one call


@dataclass
class _Call:
    """One request as it is sent again and again until it succeeds."""

    family: ApiFamily
    method: str
    path: str
    params: Mapping[str, str | int]
    data: Mapping[str, str | int] | None = None
    json_body: Any = None
    timeout_s: float = settings.TIMEOUT_S
    wait: bool | None = None
    """Whether to wait for an hourly limit; None: as the client does."""
    attempts: int = 0
    received_bytes: int = 0
    """Of the last attempt's answer, as sent."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def days(self) -> dict[str, str | int]:
        """The dates that it asks for, where it does."""
        return {name: self.params[name] for name in ("from_date", "to_date") if name in self.params}


class _FailedError(Exception):
    """An attempt that did not succeed: the error it would be, and whether another may help."""

    def __init__(
        self,
        error: MixpanelDataError,
        *,
        retry: bool = False,
        limited: bool = False,
        hourly: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry = retry
        self.limited = limited
        self.hourly = hourly
        self.retry_after_s = retry_after_s


def _content_encoding(response: requests.Response) -> str:
    """ "gzip", or "" for none. Nothing else was asked for."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        return "gzip"
    if encoding in ("", "identity"):
        return ""
    raise _FailedError(ServerError(f"the answer came in the encoding {encoding[:40]!r}, which was not asked for"))


def _too_large(call: _Call, size: str) -> _FailedError:
    return _FailedError(ServerError(f"{call} answered with {size}, which is too large", hint="ask for less at once"))


def _parse_json(body: bytes, parse_float: Callable[[str], float] = float) -> Any:
    return json.loads(body.decode("utf-8", "replace"), parse_int=_int_or_text, parse_float=parse_float)


def _parse_exact(body: bytes) -> Any:
    return _parse_json(body, ExactFloat)


def _read_json(call: _Call, body: bytes, read: Callable[[bytes], Any]) -> Any:
    try:
        return read(body)
    except (ValueError, RecursionError):
        start = body[:200].lstrip()
    text = "an HTML page" if start.startswith(b"<") else "what is not JSON, or not all of it"
    raise _FailedError(ServerError(f"{call} answered 200 with {text}", hint="try again later"), retry=True)


def _int_or_text(digits: str) -> int | str:
    """Python reads no whole number of more than 4300 digits."""
    return int(digits) if len(digits) <= 4300 else digits


def compact(value: Any, *, ascii_only: bool = True) -> str:
    """`value` as JSON without blanks: as requests hold it, or with other letters than ASCII's left as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)
