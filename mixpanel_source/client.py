"""`MixpanelClient`: signs, waits, sends and retries, and hands on only what is known to be whole.

An export or a walk over profiles is first spooled to a file and checked; every retry happens before its first byte is
handed on, so nothing is ever handed on twice.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import http.cookiejar
import importlib
import ipaddress
import json
import logging
import os
import random
import re
import socket
import tempfile
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any, Final, Self, TypeVar, cast
from urllib.parse import quote, urlsplit

import requests
import requests.adapters
import requests.auth
import requests.exceptions
import urllib3.exceptions
from isal import igzip_lib, isal_zlib
from urllib3.connection import HTTPConnection

from mixpanel_source import settings
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import (
    AuthenticationError,
    ConfigError,
    IncompleteExportError,
    MixpanelDataError,
    PlanError,
    QueryError,
    RateLimitError,
    ServerError,
    WarehouseError,
)
from mixpanel_source.rate_limit import RequestLedger
from mixpanel_source.settings import ApiFamily
from mixpanel_source.windows import Window

fcntl: ModuleType | None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)
T = TypeVar("T")
B = TypeVar("B", bound="ExportBody | ProfilePages")

READ_BYTES: Final = 256 << 10
PIECE_BYTES: Final = 1 << 20
"""Most that is decompressed at a time: a small body can hold gigabytes of one repeated line."""
BLOCK_BYTES: Final = 8 << 20
"""Large enough that the cost of a block's parse call does not show, small enough to fit beside others."""
MAX_LINE_BYTES: Final = 64 << 20
ERROR_BODY_BYTES: Final = 64 << 10
MESSAGE_CHARS: Final = 500
STALE_SPOOL_S: Final = 3600.0
HOURLY_WAITS_S: Final = 3900.0
"""Longest wait in all for an hourly limit that others use up: after an hour each request made so far is forgotten."""
HOURLY_FIRST_S: Final = 60.0
HOURLY_MAX_S: Final = 600.0

_SPOOL_PREFIX = "mpload-"
_SPACE = b" \t\r\n"
_NETWORK_ERRORS = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
    AttributeError,  # http.client's, when another thread closes the connection
)
_GZIP_ERROR = cast(type[Exception], igzip_lib.IsalError)
_TIMED_OUT = re.compile(r"\W*((query|request) )?(timeout|timed out)( error)?\W*")
_QUERIES_RUNNING = re.compile(r"(\d+)/(\d+) queries running (concurrently|in the last hour)")
_USER_INFO = re.compile(r"//[^/@\s]*@")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-_:\[\]]+/?")
_ODD_LINE_STARTS = re.compile(rb'\n(?!\{"event":)')
_MESSAGE_WORDS = re.compile(
    rb"\b(terminated|timed?[ -]?out|errors?|failed|failure|abort(ed)?|unavailable|exceeded)\b", re.IGNORECASE
)
_ERROR_AT_END = re.compile(rb'\{"error"\s*:\s*"[^"]*"\s*\}$')


class MixpanelClient:
    """Mixpanel's read APIs for one project. Opens nothing until the first request; usable by several threads.

    `base_url` (else `MP_BASE_URL`) sends every API family to one origin. `wait` allows waiting for an hourly limit;
    without it such a wait is a `RateLimitError`. `on_wait` is told (seconds, why) before every sleep. `clock` gives
    epoch seconds and `sleep` has to move it. A closed client stays closed: waits end, and what it handed out ends with a
    `RuntimeError`.
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
        wait: bool = True,
        session: requests.Session | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] | None = None,
        jitter: Callable[[], float] = random.random,
        on_wait: Callable[[float, str], None] | None = None,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        if retries < 0:
            raise ConfigError(f"retries is 0 or more, not {retries}")
        if not (timeout_s > 0 and export_timeout_s > 0):
            raise ConfigError("timeout_s and export_timeout_s are more than 0 seconds")
        self.credentials = credentials
        self.stats = RequestStats()
        self._base_url = base_origin(base_url or os.environ.get("MP_BASE_URL") or None)
        self._retries = retries
        self._timeout_s = timeout_s
        self._export_timeout_s = export_timeout_s
        self._spool_folder = spool_folder
        self._wait_allowed = wait
        self._session = session
        self._own_session = session is None
        self._clock = clock
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait  # so that closing ends a wait
        self._jitter = jitter
        self._on_wait = on_wait
        self._max_line_bytes = max_line_bytes
        self._lock = threading.Lock()
        self._handed_out: weakref.WeakSet[ExportBody | ProfilePages] = weakref.WeakSet()
        self._secrets = _spellings(credentials)
        self.ledger = ledger or RequestLedger(
            settings.data_folder() / "ledger.sqlite",
            origin=self.origin("query"),
            project_id=credentials.project_id,
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
        """Ends everything, from any thread, and removes the spooled files."""
        with self._lock:
            self._closing.set()
            handed_out = list(self._handed_out)
            session = self._session if self._own_session else None
        for body in handed_out:
            body.close()
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
    ) -> ExportBody:
        """The window's events, spooled to disk and checked to be whole. Mixpanel docs: Download Data.

        `on_bytes` is told the bytes received so far, compressed; a retry starts again from 0. Raises
        `IncompleteExportError` if no attempt came whole.
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
            params["event"] = _compact(list(events))
        if where is not None:
            params["where"] = where
        if limit is not None:
            params["limit"] = str(limit)
        call = _Call("export", "GET", "/api/2.0/export", params, timeout_s=self._export_timeout_s)

        def download(response: requests.Response) -> ExportBody:
            spool = _Spool(self._folder(), "export-")
            try:
                received = self._spool_export(response, call, spool, on_bytes)
                spool.finish()
            except BaseException:
                spool.discard()
                raise
            return ExportBody(spool, *received, attempts=call.attempts)

        return self._hand_out(self._retrying(call, download))

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
        page_size: int | None = None,
        on_page: Callable[[int, int | None], None] | None = None,
    ) -> ProfilePages:
        """The pages of one complete walk over the profiles. Mixpanel docs: Query Profiles (reference/engage-query).

        A walk that breaks starts again from page 0 with a new session, as the order differs between sessions.
        `on_page` is told (profiles so far, total or None). Raises `IncompleteExportError` if no walk was complete.
        """
        if include_all_users is not None and filter_by_cohort is None:
            raise ConfigError("include_all_users goes with filter_by_cohort only")
        form: dict[str, str] = {}
        if where is not None:
            form["where"] = where
        if output_properties is not None:
            form["output_properties"] = _compact(list(output_properties))
        if filter_by_cohort is not None:
            cohort = filter_by_cohort if isinstance(filter_by_cohort, Mapping) else {"id": int(filter_by_cohort)}
            form["filter_by_cohort"] = _compact(dict(cohort))
        if include_all_users is not None:
            form["include_all_users"] = "true" if include_all_users else "false"
        if data_group_id is not None:
            form["data_group_id"] = str(data_group_id)  # 19 digits and a sign: never a float
        if distinct_id is not None:
            form["distinct_id"] = distinct_id
        if distinct_ids is not None:
            form["distinct_ids"] = _compact(list(distinct_ids))
        if page_size is not None:
            form["page_size"] = str(page_size)

        attempts = 0
        for restart in range(self._retries + 1):
            walk = _ProfileWalk(self, form, on_page)
            try:
                pages = walk.run()
            except _WalkBrokenError as broken:
                failure = broken.error
                attempts += walk.attempts
            else:
                pages.attempts += attempts
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
    ) -> Any:
        """The parsed answer of any endpoint. `path` begins with "/" and `data` is sent as a form.

        `project_id` is added to `params` unless `send_project` says otherwise (by default not for the App API, whose
        paths hold it), and the account's `workspace_id` for the Query API. An error inside a 200 is a `QueryError`.
        """
        call = self._json_call(family, method, path, params, data, json_body, send_project)

        def parse(response: requests.Response) -> Any:
            answer = _parse_json(call, self._whole_body(response, call))
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
        if family != "app" if send_project is None else send_project:
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
            log.debug("%s: attempt %d failed: %s", call, call.attempts, failure.error.message)
            wait_s = self._wait_before_retry(failure, retries, hourly)
            if failure.limited:
                self.ledger.penalize(call.family, wait_s)
                error = RateLimitError(failure.error.message, hint=failure.error.hint, retry_after=round(wait_s, 3))
                if not self._wait_allowed or self._retries == 0 or wait_s > HOURLY_WAITS_S:
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
        with self.ledger.slot(call.family):
            self.ledger.acquire(
                call.family,
                wait=self._wait_allowed,
                sleep=lambda seconds: self._pause(seconds, f"the request limit of the {call.family} API is used up"),
            )
            self._check_open()
            with self._send(call) as response:
                if response.status_code != 200:
                    raise self._refused(call, response)
                return receive(response)

    def _send(self, call: _Call) -> requests.Response:
        session = self._open_session()
        call.attempts += 1
        self.stats.add(requests=1)
        log.debug("%s", call)
        try:
            return session.request(
                call.method,
                self.origin(call.family) + call.path,
                params=dict(call.params),
                data=None if call.data is None else dict(call.data),
                json=call.json_body,
                headers={"Accept-Encoding": "gzip", "Accept": "*/*", "User-Agent": "mixpanel-source"},
                # Given here, and not as a header: requests then leaves netrc alone.
                auth=_Authorization(self.credentials),
                timeout=(self._timeout_s, call.timeout_s),
                allow_redirects=False,
                stream=True,
            )
        except UnicodeEncodeError:
            failure = _FailedError(ConfigError(f"{call}: an argument holds half of a surrogate pair, which is no text"))
        except _NETWORK_ERRORS as error:
            failure = self._network_failure(call, error)
        # Out of the handler: exceptions of requests carry the request, and so the Authorization header.
        raise failure

    def _network_failure(self, call: _Call, error: BaseException) -> _FailedError:
        message = f"{call} failed: {self._clean(_reason(error))}"
        if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "behind a proxy with a certificate of its own, name its bundle in REQUESTS_CA_BUNDLE"
            return _FailedError(ServerError(message, hint=hint))
        if isinstance(error, requests.exceptions.InvalidProxyURL):
            return _FailedError(ConfigError(message, hint="look at HTTPS_PROXY and NO_PROXY"))
        return _FailedError(ServerError(message, hint="check the network, and try again later"), retry=True)

    def _open_session(self) -> requests.Session:
        with self._lock:
            self._check_open()
            if self._session is None:
                self._session = _new_session(self._base_url)
            return self._session

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise RuntimeError("this MixpanelClient is closed")

    def _pause(self, seconds: float, why: str) -> None:
        self.stats.add(waits=1, waited_s=seconds)
        log.debug("waiting %.1f s: %s", seconds, why)
        if self._on_wait is not None:
            self._on_wait(seconds, why)
        self._sleep(seconds)
        self._check_open()

    # --- answers

    def _refused(self, call: _Call, response: requests.Response) -> _FailedError:
        """What a status other than 200 means. Mixpanel docs: API overview; the texts are as clients have met them."""
        status = response.status_code
        text = self._clean(_error_text(_some_of_body(response)))
        message = f"{call} answered {status}" + (f": {text}" if text else "")
        low = text.lower()
        if status == 429:
            retry_after_s = _retry_after(response.headers.get("Retry-After"), self._clock())
            hourly = _is_hourly(low) if retry_after_s is None else retry_after_s > settings.BACKOFF_MAX_S
            limited = RateLimitError(message, hint="wait, and ask again")
            return _FailedError(limited, retry=True, limited=True, hourly=hourly, retry_after_s=retry_after_s)
        if 300 <= status < 400:
            hint = "credentials are never sent on to another place; look at MP_BASE_URL and any proxy"
            return _FailedError(ServerError(f"{message} (a redirect, not followed)", hint=hint))
        if status >= 500 or status == 408 or status < 300:
            retry_after_s = _retry_after(response.headers.get("Retry-After"), self._clock())
            if retry_after_s is not None and retry_after_s > settings.BACKOFF_MAX_S:
                retry_after_s = None
            error = ServerError(message, hint="Mixpanel has a problem: try again later")
            return _FailedError(error, retry=True, retry_after_s=retry_after_s)
        if status == 400 and _TIMED_OUT.fullmatch(low):
            return _FailedError(ServerError(message, hint="ask for less at once, or try again later"), retry=True)
        if status == 402 or "date range exceeds" in low or "your plan" in low:
            return _FailedError(PlanError(message, hint="the project's Mixpanel plan does not include this"))
        if status == 401 or status == 403 or "unable to authenticate" in low:
            region = self.credentials.region
            hint = (
                f"check username, secret, project and region (now {region!r}), and the account's rights to the project"
            )
            return _FailedError(AuthenticationError(message, hint=hint))
        return _FailedError(QueryError(message, status=status))

    def _refuse_error_inside(self, call: _Call, answer: Any) -> None:
        """An error with status 200: insights, flags and old endpoints answer so."""
        if not isinstance(answer, dict):
            return
        # Only text: endpoints that answer with a map by name may have a property named "error".
        if isinstance(answer.get("error"), str) or answer.get("status") == "error":
            text = self._clean(_error_text(json.dumps(answer).encode()))
            raise _FailedError(QueryError(f"{call} answered 200 with an error inside: {text}", status=200))

    def _whole_body(self, response: requests.Response, call: _Call) -> bytes:
        """The decompressed body of an answer whose JSON will prove it whole."""
        pieces: list[bytes] = []
        inflater = _Inflater(_content_encoding(response))
        try:
            for chunk in self._chunks(response, call):
                pieces.extend(inflater.feed(chunk))
            inflater.finish()
        except _CutError as cut:
            problem = str(cut)
        else:
            return b"".join(pieces)
        raise _FailedError(ServerError(f"{call}: {problem}", hint="try again later"), retry=True)

    def _chunks(self, response: requests.Response, call: _Call) -> Iterator[bytes]:
        """The body as sent, still compressed. Raises `_CutError` if its framing shows that some of it is missing."""
        raw = response.raw
        length = raw.length_remaining
        if getattr(raw, "chunked", False):
            _make_chunk_sizes_strict(raw)
        received = 0
        problem = ""
        try:
            for chunk in raw.stream(READ_BYTES, decode_content=False):
                self._check_open()
                received += len(chunk)
                self.stats.add(received_bytes=len(chunk))
                yield chunk
        except _NETWORK_ERRORS as error:
            problem = self._clean(_reason(error))
        self._check_open()
        if problem:
            raise _CutError(f"the connection broke after {received} bytes: {problem}")
        if length is not None and received != length:
            raise _CutError(f"{received} bytes came of {length}")

    def _spool_export(
        self, response: requests.Response, call: _Call, spool: _Spool, on_bytes: Callable[[int], None] | None
    ) -> tuple[str, int, int]:
        """(content encoding, bytes as sent, bytes decompressed) of an export that is whole, now in `spool`."""
        if on_bytes is not None:
            on_bytes(0)
        received = 0
        encoding = _content_encoding(response)
        framed = getattr(response.raw, "chunked", False) or response.raw.length_remaining is not None
        inflater = _Inflater(encoding, min(PIECE_BYTES, self._max_line_bytes))
        lines = _LineWatch(self._max_line_bytes)
        try:
            for chunk in self._chunks(response, call):
                spool.write(chunk)
                received += len(chunk)
                for piece in inflater.feed(chunk):
                    lines.feed(piece)
                if on_bytes is not None:
                    on_bytes(received)
            inflater.finish()
            if not framed and (not received or not inflater.compressed):
                raise _CutError("it came without gzip, chunks or a length, so nothing shows whether it is all")
            lines.finish()
        except _CutError as cut:
            problem, retry = self._clean(str(cut)), cut.retry
        else:
            return encoding, received, inflater.decompressed_bytes
        error = IncompleteExportError(
            f"{call} did not come whole: {problem}", hint="try again, or ask for fewer days or events at once"
        )
        raise _FailedError(error, retry=retry)

    def _clean(self, text: str) -> str:
        """Text from outside as a message may hold it: short, on one line, without our secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = _USER_INFO.sub("//***@", text)  # a proxy's password
        text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MESSAGE_CHARS]).split())
        return text if len(text) <= MESSAGE_CHARS else text[:MESSAGE_CHARS] + " ..."

    def _folder(self) -> Path:
        folder = self._spool_folder or settings.data_folder() / "spool"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _spool_error(error) from None
        _remove_stale(folder)
        return folder

    def _hand_out(self, body: B) -> B:
        with self._lock:
            if not self._closing.is_set():
                self._handed_out.add(body)
                return body
        body.close()
        raise RuntimeError("this MixpanelClient is closed")


# --- what is handed out


class ExportBody:
    """An export that came whole, in a file of its own until it is closed."""

    def __init__(
        self, spool: _Spool, encoding: str, compressed_bytes: int, decompressed_bytes: int, *, attempts: int
    ) -> None:
        self._spool = spool
        self._encoding = encoding
        self.compressed_bytes = compressed_bytes
        """Size as it was sent."""
        self.decompressed_bytes = decompressed_bytes
        self.attempts = attempts
        """Requests it took, this one included."""

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The lines in blocks of about `size` bytes, each of whole lines and ending in b"\\n". Can be called again.

        Lines end at b"\\n" only: `str.splitlines` also cuts at U+2028, which a property may hold raw.
        """
        parts: list[bytes] = []
        held = 0
        for piece in self._pieces(min(PIECE_BYTES, max(size, 1))):
            parts.append(piece)
            held += len(piece)
            if held >= size and (end := piece.rfind(b"\n") + 1):
                parts[-1] = piece[:end]
                yield b"".join(parts)
                parts = [piece[end:]]
                held = len(parts[0])
        rest = b"".join(parts)
        if rest:
            yield rest if rest.endswith(b"\n") else rest + b"\n"

    def _pieces(self, size: int) -> Iterator[bytes]:
        inflater = _Inflater(self._encoding, size)
        problem = ""
        with self._spool.open() as file:
            try:
                while chunk := self._spool.read(file, READ_BYTES):
                    for piece in inflater.feed(chunk):
                        self._spool.check_open()
                        yield piece
                inflater.finish()
            except _CutError as cut:
                problem = str(cut)
        if problem:
            raise WarehouseError(f"the spooled export is damaged: {problem}", hint="check the disk MP_DATA_DIR is on")

    def close(self) -> None:
        """Removes the file. What is still reading it fails."""
        self._spool.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ProfilePages:
    """The raw bodies of the pages of one complete walk, in a file of its own until it is closed.

    Iterating gives each page's JSON as Mixpanel sent it, decompressed; it can be done again.
    """

    def __init__(
        self, spool: _Spool, ends: Sequence[int], *, total: int | None, profiles: int, distinct: int, attempts: int
    ) -> None:
        self._spool = spool
        self._ends = ends
        self.pages = len(ends)
        self.total = total
        """The profiles Mixpanel said there are, where it said so."""
        self.profiles = profiles
        self.distinct = distinct
        """How many different `$distinct_id`s there are among `profiles`."""
        self.attempts = attempts
        """Requests it took, those of broken walks included."""

    def __len__(self) -> int:
        return self.pages

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        with self._spool.open() as file:
            for end in self._ends:
                self._spool.check_open()
                yield self._spool.read(file, end - start)
                start = end

    def close(self) -> None:
        """Removes the file. What is still reading it fails."""
        self._spool.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class RequestStats:
    """What a client spent so far."""

    requests: int = 0
    retries: int = 0
    waits: int = 0
    waited_s: float = 0.0
    received_bytes: int = 0
    """Of answers, as sent."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(
        self, *, requests: int = 0, retries: int = 0, waits: int = 0, waited_s: float = 0.0, received_bytes: int = 0
    ) -> None:
        with self._lock:
            self.requests += requests
            self.retries += retries
            self.waits += waits
            self.waited_s += waited_s
            self.received_bytes += received_bytes


# --- one walk over the profiles


class _ProfileWalk:
    def __init__(
        self, client: MixpanelClient, form: Mapping[str, str], on_page: Callable[[int, int | None], None] | None
    ) -> None:
        self._client = client
        self._form = form
        self._on_page = on_page
        self.attempts = 0

    def run(self) -> ProfilePages:
        """Raises `_WalkBrokenError` where a new session may help."""
        spool = _Spool(self._client._folder(), "profiles-")
        try:
            pages = self._walk(spool)
            spool.finish()
        except BaseException:
            spool.discard()
            raise
        return pages

    def _walk(self, spool: _Spool) -> ProfilePages:
        ends = array("Q")
        # 8 bytes a profile: the ids themselves would take memory that grows with their length.
        ids = array("q")
        nameless = 0
        total: int | None = None
        session_id: str | None = None
        previous: list[int] = []
        while True:
            body, answer = self._page(len(ends), session_id)
            spool.write(body)
            ends.append((ends[-1] if ends else 0) + len(body))
            results: list[Any] = answer["results"]
            if len(ends) == 1:
                total = _count(answer.get("total"))
            named = [hash(str(row["$distinct_id"])) for row in results if _has_id(row)]
            nameless += len(results) - len(named)
            if named and named == previous:
                raise _broken("the same page came twice")
            previous = named
            ids.extend(named)
            if self._on_page is not None:
                self._on_page(len(ids) + nameless, total)
            session_id = answer.get("session_id") or session_id
            page_size = _count(answer.get("page_size"))
            if not results or (page_size is not None and len(results) < page_size):
                break
            if session_id is None:
                raise _broken("a full page came without a session_id to go on with")
        distinct = _distinct(ids) + nameless
        if total is not None and distinct < total:
            raise _broken(f"{distinct} different profiles came of {total}")
        return ProfilePages(
            spool, ends, total=total, profiles=len(ids) + nameless, distinct=distinct, attempts=self.attempts
        )

    def _page(self, page: int, session_id: str | None) -> tuple[bytes, dict[str, Any]]:
        client = self._client
        form = dict(self._form)
        if session_id is not None and page > 0:
            form |= {"session_id": session_id, "page": str(page)}
        call = client._json_call("query", "POST", "/api/query/engage", data=form)

        def receive(response: requests.Response) -> tuple[bytes, dict[str, Any]]:
            body = client._whole_body(response, call)
            answer = _parse_json(call, body, parse_int=str, errors="surrogateescape")
            client._refuse_error_inside(call, answer)
            if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
                raise _FailedError(ServerError(f"{call} answered without results", hint="try again later"), retry=True)
            return body, answer

        try:
            return client._retrying(call, receive)
        except (ServerError, QueryError) as error:
            # A session's life is not published; an ended one is told as a page of an "uncached query".
            ended = isinstance(error, QueryError) and re.search(r"uncached|session", error.message, re.IGNORECASE)
            if page == 0 or not (isinstance(error, ServerError) or ended):
                raise
            failure = error
        finally:
            self.attempts += call.attempts
        raise _WalkBrokenError(failure)


def _has_id(row: Any) -> bool:
    return isinstance(row, dict) and row.get("$distinct_id") is not None


def _count(value: Any) -> int | None:
    """A number of the answer, which came as text so that no number is too long to read."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19 else None


def _distinct(ids: array[int]) -> int:
    import numpy as np  # only here: it takes a tenth of a second

    return int(np.unique(np.frombuffer(ids, dtype=np.int64)).size) if ids else 0


def _broken(problem: str) -> _WalkBrokenError:
    return _WalkBrokenError(
        IncompleteExportError(f"the profiles did not come whole: {problem}", hint="try again later")
    )


# --- reading a body


class _Inflater:
    """Decompresses a body, or passes it on, in pieces of at most `piece_bytes`. Raises `_CutError`."""

    def __init__(self, encoding: str, piece_bytes: int = PIECE_BYTES) -> None:
        self.compressed = encoding == "gzip"
        self.decompressed_bytes = 0
        self._piece_bytes = piece_bytes
        self._member: isal_zlib.Decompress | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        for piece in self._inflate(chunk) if self.compressed else self._cut_up(chunk):
            self.decompressed_bytes += len(piece)
            yield piece

    def finish(self) -> None:
        if self._member is not None:
            raise _CutError("its gzip stream does not come to an end")

    def _cut_up(self, chunk: bytes) -> Iterator[bytes]:
        for start in range(0, len(chunk), self._piece_bytes):
            yield chunk[start : start + self._piece_bytes]

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        full = False
        while data or full:
            # What follows the end of a gzip member is another one, or garbage, which then fails as a header.
            if self._member is None:
                self._member = isal_zlib.decompressobj(31)
            problem = ""
            try:
                piece = self._member.decompress(data, self._piece_bytes)
            except _GZIP_ERROR as error:
                problem = str(error)
            if problem:
                raise _CutError(f"its gzip stream is damaged: {problem}")
            if piece:
                yield piece
            if self._member.eof:
                data, full = self._member.unused_data, False
                self._member = None
            else:
                # A full piece may leave output behind even though all input was taken.
                data, full = self._member.unconsumed_tail, len(piece) == self._piece_bytes


class _LineWatch:
    """Looks at each line of an export for what shows that it is not whole. Raises `_CutError`.

    A full parse is the reader's. Here nearly all lines cost one comparison: those that start with `{"event":`.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._last = b""
        self._lines = 0

    def feed(self, piece: bytes) -> None:
        first_end = piece.find(b"\n")
        if first_end < 0:
            self._add_to_tail(piece)
            return
        self._add_to_tail(piece[:first_end])
        self._see(b"".join(self._tail))
        last_end = piece.rfind(b"\n")
        for match in _ODD_LINE_STARTS.finditer(piece, first_end, last_end):
            start = match.end()
            self._check(piece[start : piece.find(b"\n", start)])
        if last_end > first_end:
            self._lines += 1
            lines = piece[first_end + 1 : last_end].rstrip(_SPACE)
            if lines:
                self._last = lines[lines.rfind(b"\n") + 1 :]
        self._tail = [piece[last_end + 1 :]]
        self._tail_bytes = len(self._tail[0])

    def finish(self) -> None:
        tail = b"".join(self._tail).strip(_SPACE)
        if tail:
            self._see(tail)
            if not isinstance(_json_or_none(tail), dict):
                raise _CutError(f"its last line is not whole: {_excerpt(tail, end=True)}")
        last = self._last.strip(_SPACE)
        if not last or isinstance(_json_or_none(last), dict):
            return
        # The server's last words after it gave up. Other lines that are not JSON are left to the reader.
        words = not last.startswith(b"{") and len(last) < 4096 and _MESSAGE_WORDS.search(last)
        alone = self._lines == 1 and not last.startswith(b"{")
        if words or alone or _ERROR_AT_END.search(last):
            raise _CutError(f"it ends with a message: {_excerpt(last, end=True)}")

    def _add_to_tail(self, part: bytes) -> None:
        self._tail.append(part)
        self._tail_bytes += len(part)
        if self._tail_bytes > self._max_line_bytes:
            raise _CutError(f"it holds a line of more than {self._max_line_bytes} bytes", retry=False)

    def _see(self, line: bytes) -> None:
        self._check(line)
        line = line.strip(_SPACE)
        if line:
            self._lines += 1
            self._last = line

    def _check(self, line: bytes) -> None:
        if line.startswith(b'{"event":'):
            return
        line = line.strip(_SPACE)
        if line.startswith(b"<") and not self._last:
            raise _CutError("an HTML page came in its place")
        if not line.startswith(b"{"):
            if len(line) < 200 and b"terminated early" in line.lower():
                raise _CutError(f"Mixpanel gave up: {_excerpt(line)}")
        elif b'"error"' in line and b'"event"' not in line:
            row = _json_or_none(line)
            if isinstance(row, dict) and not row.keys() & {"event", "properties"}:
                raise _CutError(f"Mixpanel sent an error in it: {_error_text(line)}")


class _Spool:
    """A file of ours for what comes from Mixpanel. `OSError`s become `WarehouseError`."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            handle, path = tempfile.mkstemp(dir=folder, prefix=_SPOOL_PREFIX + name)  # mkstemp's mode is 0600
        except OSError as error:
            raise _spool_error(error) from None
        self._file = os.fdopen(handle, "wb")
        self._path = Path(path)
        if fcntl is not None:
            # Held while we live, so that `_remove_stale` sees whose owner is gone. Not every file system can.
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._finalizer = weakref.finalize(self, _discard, self._file, self._path, os.getpid())

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _spool_error(error) from None

    def finish(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise _spool_error(error) from None

    def open(self) -> IO[bytes]:
        self.check_open()
        try:
            return self._path.open("rb")
        except OSError as error:
            raise _spool_error(error) from None

    def read(self, file: IO[bytes], size: int) -> bytes:
        self.check_open()
        try:
            return file.read(size)
        except OSError as error:
            raise _spool_error(error) from None

    def check_open(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("this body, or the MixpanelClient it came from, is closed")

    def discard(self) -> None:
        self._finalizer()


def _discard(file: IO[bytes], path: Path, owner: int) -> None:
    with suppress(OSError):  # a full disk: closing tries once more to write what is buffered
        file.close()
    if os.getpid() == owner:  # a forked child has the same object, and must leave the file
        with suppress(OSError):
            path.unlink()


def _remove_stale(folder: Path) -> None:
    """Removes spool files whose process was killed: nobody holds their lock."""
    if fcntl is None:
        return
    for path in folder.glob(_SPOOL_PREFIX + "*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SPOOL_S:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def _spool_error(error: OSError) -> WarehouseError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WarehouseError("the disk is full", hint="make room, or set MP_DATA_DIR to a folder on another disk")
    return WarehouseError(
        f"the spool file cannot be used: {error.strerror or error}", hint="MP_DATA_DIR moves the data folder"
    )


# --- HTTP


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
    attempts: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


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


class _CutError(Exception):
    """A body that is not whole."""

    def __init__(self, problem: str, *, retry: bool = True) -> None:
        super().__init__(problem)
        self.retry = retry


class _WalkBrokenError(Exception):
    """A walk over the profiles that may be complete with a new session."""

    def __init__(self, error: MixpanelDataError) -> None:
        super().__init__(error.message)
        self.error = error


class _Authorization(requests.auth.AuthBase):
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._credentials.authorization()
        return request


class _KeepAliveAdapter(requests.adapters.HTTPAdapter):
    """TCP keep-alive: networks drop a silent socket while Mixpanel prepares an export, which can take minutes."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, socket_options=_socket_options())

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if not proxy.lower().startswith("socks"):
            kwargs["socket_options"] = _socket_options()
        return super().proxy_manager_for(proxy, **kwargs)


def _socket_options() -> list[tuple[int, int, int]]:
    options: list[tuple[int, int, int]] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    # TCP_KEEPALIVE is the Mac's name for TCP_KEEPIDLE. Seconds of silence, seconds between probes, probes.
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return [*HTTPConnection.default_socket_options, *options]


def _new_session(base_url: str | None) -> requests.Session:
    session = requests.Session()
    session.mount("https://", _KeepAliveAdapter())
    session.mount("http://", _KeepAliveAdapter())
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    if base_url is not None and base_url.startswith("http:"):
        # Loopback: a proxy from the environment would be sent the credentials in clear.
        session.trust_env = False
    return session


def base_origin(base_url: str | None) -> str | None:
    """Scheme, host and port of `base_url`. Raises `ConfigError` for what credentials must not be sent to."""
    if base_url is None:
        return None
    problem = "is not an origin such as https://mixpanel.com"
    # Nothing that URL parsers disagree about: no user, path, query, backslash or white space.
    if _ORIGIN.fullmatch(base_url):
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host:
            if parts.scheme == "https" or _is_loopback(host):
                name = f"[{host}]" if ":" in host else host
                return f"{parts.scheme}://{name}" + ("" if port is None else f":{port}")
            problem = "would send the credentials in clear: use https (http is for loopback only)"
    shown = _USER_INFO.sub("//***@", base_url)[:100]
    raise ConfigError(f"the base URL {shown!r} {problem}", hint="look at MP_BASE_URL")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _content_encoding(response: requests.Response) -> str:
    """ "gzip", or "" for none. Nothing else was asked for."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        return "gzip"
    if encoding in ("", "identity"):
        return ""
    raise _FailedError(ServerError(f"the answer came in the encoding {encoding[:40]!r}, which was not asked for"))


class _WholeLines:
    """A socket's file whose `readline` does not give part of a line."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(limit)
        if line and not line.endswith(b"\n") and len(line) != limit:
            raise http.client.IncompleteRead(line)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _make_chunk_sizes_strict(raw: Any) -> None:
    """A chunk's size cut after its first "0" is otherwise taken for the 0 that ends the body."""
    answer = getattr(raw, "_fp", None)
    if answer is not None and getattr(answer, "fp", None) is not None:
        answer.fp = _WholeLines(answer.fp)


def _some_of_body(response: requests.Response) -> bytes:
    """The beginning of an error's body, b"" if it cannot be read."""
    try:
        return response.raw.read(ERROR_BODY_BYTES, decode_content=True) or b""
    except _NETWORK_ERRORS:
        return b""


def _error_text(body: bytes) -> str:
    """Mixpanel's own message: the JSON's `error` or `message`, or the text."""
    answer = _json_or_none(body)
    for key in ("error", "message"):
        if isinstance(answer, dict) and answer.get(key):
            value = answer[key]
            if isinstance(value, dict) and isinstance(value.get("message"), str):
                value = value["message"]
            return value if isinstance(value, str) else json.dumps(value)
    text = body.decode("utf-8", "replace").strip()
    return "an HTML page" if text.startswith("<") else text


def _parse_json(
    call: _Call, body: bytes, *, parse_int: Callable[[str], Any] | None = None, errors: str = "replace"
) -> Any:
    try:
        return json.loads(body.decode("utf-8", errors), parse_int=parse_int or _int_or_text)
    except (ValueError, RecursionError):
        start = body[:200].lstrip()
    text = "an HTML page" if start.startswith(b"<") else "what is not JSON, or not all of it"
    raise _FailedError(ServerError(f"{call} answered 200 with {text}", hint="try again later"), retry=True)


def _int_or_text(digits: str) -> int | str:
    """Python reads no whole number of more than 4300 digits."""
    return int(digits) if len(digits) <= 4300 else digits


def _json_or_none(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8", "replace"), parse_int=str)
    except (ValueError, RecursionError):
        return None


def _is_hourly(text: str) -> bool:
    """Whether a 429 speaks of the limit per hour, rather than of requests at once. Its text counts both."""
    counts = {kind: int(used) >= int(allowed) for used, allowed, kind in _QUERIES_RUNNING.findall(text)}
    if counts:
        return counts.get("in the last hour", False)
    return "last hour" in text


def _retry_after(value: str | None, now: float) -> float | None:
    """Seconds, from either form of the header: seconds, or a date."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - now, 0.0)
    except (ValueError, OverflowError, OSError):
        return None


def _reason(error: BaseException) -> str:
    """What is at the bottom of an exception of requests or urllib3, whose own texts repeat the URL."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return "no answer in time"
    inner: BaseException = error
    while True:
        below = getattr(inner, "reason", None) or next((a for a in inner.args if isinstance(a, BaseException)), None)
        if not isinstance(below, BaseException):
            break
        inner = below
    return str(inner) or type(inner).__name__


def _spellings(credentials: Credentials) -> list[str]:
    """The ways in which the secret could come back in a text, longest first."""
    secret = credentials.secret.reveal()
    header = credentials.authorization()
    forms = {secret, header, header.split(" ", 1)[1], quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    return sorted((form for form in forms if len(form) > 3), key=len, reverse=True)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _excerpt(line: bytes, *, end: bool = False) -> str:
    return repr((line[-80:] if end else line[:80]).decode("utf-8", "replace"))
