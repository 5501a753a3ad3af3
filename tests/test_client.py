from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import socket
import stat
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date
from email.utils import formatdate
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

import pytest
import requests
import requests_mock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixpanel_source import bodies, transport
from mixpanel_source import settings as product
from mixpanel_source.bodies import ExportBody, LineWatch
from mixpanel_source.client import MixpanelClient
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
from mixpanel_source.transport import LiveSockets, base_origin
from mixpanel_source.windows import Window

START = 1_800_000_000.0
PLANTED = "planted/s3cret+000"
DAY = Window.of(date(2024, 3, 5))
EXPORT = "https://data.mixpanel.com/api/2.0/export"
ENGAGE = "https://mixpanel.com/api/query/engage"
FUNNELS = "https://mixpanel.com/api/query/funnels"
ROWS = b"".join(b'{"event":"E%d","properties":{"time":1709647200000,"n":%d}}\n' % (i, i) for i in range(3))

LINE = len(ROWS) // 3

Mock = requests_mock.Mocker


class Clock:
    def __init__(self) -> None:
        self.now = START
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(round(seconds, 3))
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MP_DATA_DIR", str(tmp_path / "data"))
    for name in ("MP_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data"


Make = Callable[..., MixpanelClient]


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    made: list[MixpanelClient] = []

    def make(credentials: Credentials | None = None, **options: Any) -> MixpanelClient:
        credentials = credentials or Credentials("user", PLANTED, "12345", "us")
        # Far from any limit, so that the only sleeps are the retries'.
        budget = RequestLedger(
            None, origin="test", project_id="1", clock=clock, sleep=clock.sleep,
            limits={"export": ((999, 1.0),), "query": ((999, 1.0),), "app": ((999, 1.0),), "ingestion": ((999, 1.0),)},
        )  # fmt: skip
        defaults = {"clock": clock, "sleep": clock.sleep, "jitter": lambda: 0.0, "ledger": budget}
        made.append(MixpanelClient(credentials, **{**defaults, **options}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def mock() -> Iterator[Mock]:
    with requests_mock.Mocker() as mocker:
        yield mocker


def whole(body: bytes, **headers: str) -> dict[str, Any]:
    """A response whose framing proves it whole."""
    return {"content": body, "headers": {"Content-Length": str(len(body)), **headers}}


def zipped(body: bytes) -> dict[str, Any]:
    return {"content": gzip.compress(body), "headers": {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}}


def text_of(body: ExportBody) -> bytes:
    with body:
        return b"".join(body.blocks())


def sent(mock: Mock) -> list[dict[str, list[str]]]:
    """The query of each request."""
    return [parse_qs(request.url.partition("?")[2]) for request in mock.request_history]


# --- requests as they are sent


def test_an_export_takes_gzip_and_its_own_time(make: Make, mock: Mock) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    assert text_of(make().export(DAY)) == ROWS
    request = mock.request_history[0]
    assert request.headers["Accept-Encoding"] == "gzip"
    assert request.headers["Authorization"] == Credentials("user", PLANTED, "1", "us").authorization()
    assert str(request.timeout) == "(30.0, 300.0)"


@pytest.mark.parametrize("events", [[], "Sign up"])
def test_events_have_to_be_a_list_of_names(events: Any, make: Make) -> None:
    with pytest.raises(ConfigError):
        make().export(DAY, events=events)


@pytest.mark.parametrize(
    ("region", "export", "query"),
    [
        ("us", "data.mixpanel.com", "mixpanel.com"),
        ("eu", "data-eu.mixpanel.com", "eu.mixpanel.com"),
        ("in", "data-in.mixpanel.com", "in.mixpanel.com"),
    ],
)
def test_every_region_has_its_hosts(region: str, export: str, query: str, make: Make, mock: Mock) -> None:
    mock.get(requests_mock.ANY, **zipped(b""))
    mock.post(requests_mock.ANY, json={})
    client = make(Credentials("user", PLANTED, "1", region))
    client.export(DAY).close()
    client.request_json("query", "POST", "/api/query/funnels")
    assert [request.hostname for request in mock.request_history] == [export, query]


def test_netrc_and_cookies_do_not_change_who_we_are(
    make: Make, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login intruder password other\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve(json_answer({}, b"Set-Cookie: a=b\r\n"))
    client = make(base_url=server.url)
    client.me()
    client.me()
    for request in server.requests:
        assert b"Authorization: " + client.credentials.authorization().encode() in request
        assert b"Cookie" not in request


def test_a_proxy_never_sees_requests_to_loopback(make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server = serve(json_answer({"a": 1}))
    assert make(base_url=server.url).me() == {"a": 1}


def test_sockets_are_kept_alive(make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = socket.socket.setsockopt

    def setsockopt(self: socket.socket, *option: Any) -> None:
        seen.append(option)
        real(self, *option)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    make(base_url=serve(json_answer({})).url).me()
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in seen


@pytest.mark.parametrize(
    ("given_url", "origin"),
    [
        ("https://mixpanel.example", "https://mixpanel.example"),
        ("https://mixpanel.example:8443/", "https://mixpanel.example:8443"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_one_origin_takes_every_api_family(given_url: str, origin: str, make: Make) -> None:
    client = make(base_url=given_url)
    assert {client.origin(family) for family in ("export", "query", "app", "ingestion")} == {origin}


@pytest.mark.parametrize(
    "url",
    [
        "http://mixpanel.example",
        "http://127.0.0.1.evil.example",
        "http://user:pw@127.0.0.1",
        "https://127.0.0.1@evil.example",
        "http://evil.example\\@127.0.0.1",
        "http://127.0.0.1:8000/path",
        "http://127.0.0.1:8000?x=1",
        "http://127.0.0.1:80000000",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "127.0.0.1:8000",
        "https://",
        "https://a\nb",
        " https://a",
    ],
)
def test_credentials_are_not_sent_to_just_any_url(url: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        base_origin(url)
    monkeypatch.setenv("MP_BASE_URL", url)
    with pytest.raises(ConfigError) as caught:
        make()
    assert "pw" not in str(caught.value).replace("passwd", "")


@pytest.mark.parametrize(
    "options", [{"retries": -1}, {"timeout_s": 0}, {"export_timeout_s": -1}, {"max_body_bytes": 0}]
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], make: Make) -> None:
    with pytest.raises(ConfigError):
        make(**options)


def test_building_a_client_opens_nothing(data_folder: Path) -> None:
    with MixpanelClient(Credentials("user", PLANTED, "1", "us")) as client:
        assert client._session is None
    assert not data_folder.exists()


# --- answers and retries


def test_server_errors_are_retried_with_doubling_waits(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, [{"status_code": 500}, {"status_code": 502}, {"status_code": 503}, zipped(ROWS)])
    body = make().export(DAY)
    assert body.attempts == 4
    assert clock.sleeps == [1, 2, 4]
    assert text_of(body) == ROWS


def test_waits_grow_to_a_minute_with_a_tenth_at_random(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(FUNNELS, status_code=500)
    with pytest.raises(ServerError):
        make(retries=8, jitter=lambda: 1.0).request_json("query", "GET", "/api/query/funnels")
    assert clock.sleeps == [1.1, 2.2, 4.4, 8.8, 17.6, 35.2, 66.0, 66.0]


@pytest.mark.parametrize(
    "answer",
    [
        {"status_code": 500},
        {"status_code": 504, "text": "<html>gateway</html>"},
        {"status_code": 408},
        {"status_code": 204},
        {"exc": requests.exceptions.SSLError("the peer hung up")},
        {"status_code": 400, "text": "Timeout Error."},
        {"status_code": 400, "json": {"error": "Timeout Error."}},
        {"exc": requests.exceptions.ConnectTimeout},
        {"exc": requests.exceptions.ReadTimeout},
        {"exc": requests.exceptions.ConnectionError},
        {"exc": ConnectionResetError},
        {"text": "<html>sign in to the network</html>"},
        {"text": '{"a": 1'},
    ],
)
def test_what_may_pass_is_asked_again_and_then_is_a_server_error(
    answer: dict[str, Any], make: Make, mock: Mock, clock: Clock
) -> None:
    mock.get(FUNNELS, [answer, {"json": {"a": 1}}])
    assert make().request_json("query", "GET", "/api/query/funnels") == {"a": 1}
    mock.get(FUNNELS, **answer)
    client = make(retries=2)
    with pytest.raises(ServerError) as caught:
        client.request_json("query", "GET", "/api/query/funnels")
    assert "again" in str(caught.value.hint)
    assert (client.stats.requests, client.stats.retries, client.stats.waited_s) == (3, 2, 3.0)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ({"status_code": 302}, "credentials are never sent on to another place; look at MP_BASE_URL and any proxy"),
        ({"status_code": 402}, "the project's Mixpanel plan does not include this"),
        (
            {"status_code": 401},
            "check username, secret, project and region (now 'us'), and the account's rights to the project:"
            " mpload auth test tells which",
        ),
        (
            {"exc": requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")},
            "behind a proxy with a certificate of its own, name its bundle in REQUESTS_CA_BUNDLE",
        ),
        ({"exc": requests.exceptions.InvalidProxyURL("no host")}, "look at HTTPS_PROXY and NO_PROXY"),
    ],
)
def test_each_refusal_says_what_to_do(answer: dict[str, Any], hint: str, make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(FUNNELS, **answer)
    with pytest.raises(MixpanelDataError, match="/api/query/funnels") as caught:
        make().request_json("query", "GET", "/api/query/funnels")
    assert (caught.value.hint, len(mock.request_history)) == (hint, 1)
    if isinstance(caught.value, (AuthenticationError, PlanError)):
        assert caught.value.status == answer["status_code"]


@pytest.mark.parametrize(
    ("answer", "hint", "is_slow"),
    [
        ({"status_code": 500}, "Mixpanel has a problem: try again later", False),
        ({"status_code": 408}, "Mixpanel has a problem: try again later", True),
        ({"status_code": 504}, "Mixpanel has a problem: try again later", True),
        ({"status_code": 400, "text": "Timeout Error."}, "ask for less at once, or try again later", True),
        ({"exc": requests.exceptions.ConnectionError}, "check the network, and try again later", False),
        ({"exc": requests.exceptions.ReadTimeout}, "check the network, and try again later", True),
    ],
)
def test_of_what_may_pass_it_is_told_whether_less_at_once_may_help(
    answer: dict[str, Any], hint: str, is_slow: bool, make: Make, mock: Mock
) -> None:
    mock.get(FUNNELS, **answer)
    with pytest.raises(ServerError, match="/api/query/funnels") as caught:
        make(retries=0).request_json("query", "GET", "/api/query/funnels")
    assert (caught.value.hint, caught.value.is_slow) == (hint, is_slow)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), (formatdate(START + 30, usegmt=True), 30), ("60", 60), ("61", 1), ("0", 1)],
)
def test_a_5xx_is_asked_again_when_it_says_unless_that_is_long(
    header: str, seconds: float, make: Make, mock: Mock, clock: Clock
) -> None:
    mock.get(FUNNELS, [{"status_code": 503, "headers": {"Retry-After": header}}, {"json": {}}])
    make().request_json("query", "GET", "/api/query/funnels")
    assert clock.sleeps == [pytest.approx(seconds)]


def test_no_retries_means_one_request(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, status_code=500)
    with pytest.raises(ServerError):
        make(retries=0).export(DAY)
    assert (len(mock.request_history), clock.sleeps) == (1, [])


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, '{"error":"Invalid credentials"}', AuthenticationError),
        (403, '{"status":"error","error":"no rights"}', AuthenticationError),
        (400, "Unable to authenticate request", AuthenticationError),
        (402, '{"error":"payment required"}', PlanError),
        (403, '{"error":"Date range exceeds 90 days into the past"}', PlanError),
        (400, "Your plan does not support raw data export", PlanError),
        (400, " to_date cannot be later than today", QueryError),
        (400, '{"error":"property timeout is unknown"}', QueryError),
        (404, '{"message":"no such funnel"}', QueryError),
        (412, '{"error":{"message":"script failed"}}', QueryError),
        (422, '{"status":"error","error":{"field":["bad"]}}', QueryError),
        (413, "", QueryError),
    ],
)
def test_what_will_not_pass_is_told_at_once_in_mixpanels_words(
    status: int, body: str, error: type[MixpanelDataError], make: Make, mock: Mock, clock: Clock
) -> None:
    mock.get(EXPORT, status_code=status, text=body)
    with pytest.raises(error) as caught:
        make().export(DAY)
    assert len(mock.request_history) == 1
    assert clock.sleeps == []
    assert str(status) in str(caught.value)
    words = ["payment", "Date range exceeds 90", "to_date cannot", "no such funnel", "script failed", "field", "rights"]
    assert all(word in str(caught.value) for word in words if word in body)
    if isinstance(caught.value, QueryError):
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (400, "to_date cannot be later than today", "look at to_date"),
        (400, '{"error":"Invalid JSON Format: event"}', "look at event"),
        (400, "Error in from_date: invalid date, bad year; from_date > to_date", "look at from_date, to_date"),
        (400, '{"error":"bad expression"}', "look at its dates, names and expressions"),
        (404, "not found", "look at the region (now 'us'), the project id and MP_BASE_URL"),
        (412, "not met", None),
    ],
)
def test_a_refused_question_comes_with_what_to_look_at(
    status: int, body: str, hint: str | None, make: Make, mock: Mock
) -> None:
    mock.get(EXPORT, status_code=status, text=body)
    with pytest.raises(QueryError) as caught:
        make().export(DAY, events=["E"])
    assert hint in caught.value.hint if hint and caught.value.hint else caught.value.hint is hint is None


def test_a_refused_form_comes_with_what_to_look_at(make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, status_code=400, text="cannot parse where")
    with pytest.raises(QueryError) as caught:
        make().profiles(where="x")
    assert caught.value.hint == "Mixpanel refuses the question: look at where"


def test_a_long_or_wild_message_is_cut_and_cleaned(make: Make, mock: Mock) -> None:
    mock.get(EXPORT, status_code=400, text="\x1b[31mred\n\n" + "x" * 100_000)
    with pytest.raises(QueryError) as caught:
        make().export(DAY)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_an_html_page_is_not_repeated_in_a_message(make: Make, mock: Mock) -> None:
    mock.get(EXPORT, status_code=404, text="<!doctype html><html>...</html>")
    with pytest.raises(QueryError, match="an HTML page"):
        make().export(DAY)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_a_redirect_is_not_followed(status: int, make: Make, mock: Mock) -> None:
    mock.get(EXPORT, status_code=status, headers={"Location": "https://evil.example/api"})
    evil = mock.get("https://evil.example/api")
    with pytest.raises(ServerError, match="redirect"):
        make().export(DAY)
    assert not evil.called
    assert len(mock.request_history) == 1


@pytest.mark.parametrize("location", ["http://[bad", "//", "https://x:y/", "\udcff"])
def test_a_redirect_to_nowhere_is_a_server_error(location: str, make: Make, serve: Serve) -> None:
    place = location.encode("utf-8", "surrogateescape")
    server = serve(b"HTTP/1.1 302 Found\r\nLocation: " + place + b"\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(ServerError):
        make(base_url=server.url, retries=0).me()


@pytest.mark.parametrize("answer", [{"error": "no such event"}, {"status": "error", "error": {"message": "bad"}}])
def test_an_error_inside_a_200_is_an_error(answer: dict[str, Any], make: Make, mock: Mock) -> None:
    mock.get(FUNNELS, json=answer)
    with pytest.raises(QueryError, match=r"no such event|bad") as caught:
        make().request_json("query", "GET", "/api/query/funnels")
    assert caught.value.status == 200


@pytest.mark.parametrize("answer", [{"error": {"count": 3}}, {"error": None, "series": {}}, ["error"], 5])
def test_a_property_named_error_is_no_error(answer: Any, make: Make, mock: Mock) -> None:
    mock.get(FUNNELS, json=answer)
    assert make().request_json("query", "GET", "/api/query/funnels") == answer


def test_a_number_too_long_for_python_is_kept_as_text(make: Make, mock: Mock) -> None:
    mock.get(FUNNELS, text='{"n": 123456789012345678901234567890, "m": ' + "9" * 5000 + "}")
    answer = make().request_json("query", "GET", "/api/query/funnels")
    assert answer == {"n": 123456789012345678901234567890, "m": "9" * 5000}


def test_text_that_is_no_text_is_a_wrong_argument(make: Make, mock: Mock) -> None:
    with pytest.raises(ConfigError, match="surrogate"):
        make().export(DAY, where="\ud800")


# --- the request limit


QUERY_LIMIT = "Query rate limit exceeded for project_id: 1. {}/5 queries running concurrently and {}/60 queries running in the last hour."  # noqa: E501


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ({"headers": {"Retry-After": "17"}}, 17),
        ({"headers": {"Retry-After": "0"}}, 1),
        ({"headers": {"Retry-After": formatdate(START + 42, usegmt=True)}}, 42),
        ({"headers": {"Retry-After": formatdate(START - 42, usegmt=True)}}, 1),
        ({"headers": {"Retry-After": "soon"}}, 1),
        ({"headers": {"Retry-After": "-5"}}, 1),
        ({"json": {"error": QUERY_LIMIT.format(1, 61)}}, 60),
        ({"json": {"error": QUERY_LIMIT.format(6, 12)}}, 1),
        ({"json": {"error": "61 queries in the last hour"}}, 60),
        ({"json": {"error": "too many export requests in progress for this project"}}, 1),
        ({"json": {"code": 429, "error": "exceeded rate limits", "status": 0}}, 1),
        ({"json": {"error": QUERY_LIMIT.format(1, 61)}, "headers": {"Retry-After": "1800"}}, 1800),
    ],
)
def test_a_429_is_waited_out_as_long_as_it_says(
    answer: dict[str, Any], seconds: float, make: Make, mock: Mock, clock: Clock
) -> None:
    mock.get(EXPORT, [{"status_code": 429, **answer}, zipped(ROWS)])
    waits: list[tuple[float, str]] = []
    assert text_of(make(on_wait=lambda s, why: waits.append((s, why))).export(DAY)) == ROWS
    assert clock.sleeps == [pytest.approx(seconds)]
    assert "429" in waits[0][1]


def test_without_waiting_a_429_is_told_at_once_with_its_length(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, status_code=429, json={"error": QUERY_LIMIT.format(1, 61)})
    with pytest.raises(RateLimitError, match="61/60") as caught:
        make(wait=False).export(DAY)
    assert caught.value.retry_after == 60
    assert (len(mock.request_history), clock.sleeps) == (1, [])


def test_a_429_that_stays_is_a_rate_limit_error_after_the_retries(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, status_code=429, text="too many export requests in progress")
    with pytest.raises(RateLimitError) as caught:
        make().export(DAY)
    assert clock.sleeps == [1, 2, 4]
    assert caught.value.retry_after == 8


def test_without_retries_an_hourly_limit_that_others_use_up_is_told_at_once(
    make: Make, mock: Mock, clock: Clock
) -> None:
    mock.get(EXPORT, status_code=429, text="61/60 queries running in the last hour")
    with pytest.raises(RateLimitError):
        make(retries=0).export(DAY)
    assert (len(mock.request_history), clock.sleeps) == (1, [])


@pytest.mark.parametrize(
    ("text", "hourly"),
    [
        ("1/5 queries running concurrently and 61/60 queries running in the last hour", True),
        ("5/5 queries running concurrently and 12/60 queries running in the last hour", False),
        ("5/5 queries running concurrently", False),
        ("too many in the last hour", True),
        ("too many export requests in progress", False),
    ],
)
def test_a_429_tells_the_limit_by_the_hour_from_that_of_requests_at_once(text: str, hourly: bool) -> None:
    assert transport.is_hourly(text) is hourly


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(" 7 ", 7.0), ("0.5", 0.5), ("Thu, 01 Jan 1970 00:01:40 GMT", 10.0), ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
     ("soon", None), (None, None)],
)  # fmt: skip
def test_both_forms_of_retry_after_are_seconds_from_now(header: str | None, seconds: float | None) -> None:
    assert transport.retry_after(header, 90.0) == seconds


def test_an_hourly_limit_that_others_use_up_is_waited_out_for_an_hour(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, status_code=429, text=QUERY_LIMIT.format(0, 60))
    with pytest.raises(RateLimitError):
        make(retries=1).export(DAY)
    assert clock.sleeps == [60, 120, 240, 480, 600, 600, 600, 600, 600]


def test_a_retry_after_of_days_is_not_waited_for(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, status_code=429, headers={"Retry-After": "86400"})
    with pytest.raises(RateLimitError) as caught:
        make().export(DAY)
    assert caught.value.retry_after == 86400
    assert clock.sleeps == []


@pytest.mark.parametrize(("seconds", "answers"), [(60, 2), (61, 4)])
def test_a_retry_after_of_over_a_minute_is_that_of_the_hour_and_no_retry(
    seconds: int, answers: int, make: Make, mock: Mock, clock: Clock
) -> None:
    refused = {"status_code": 429, "headers": {"Retry-After": str(seconds)}}
    mock.get(EXPORT, [refused, refused, refused, zipped(ROWS)])
    client = make(retries=1)
    if answers == 4:
        client.export(DAY).close()
    else:
        with pytest.raises(RateLimitError) as caught:
            client.export(DAY)
        assert caught.value.hint == "wait, and ask again"
    assert len(mock.request_history) == answers


def test_the_longest_wait_for_the_hour_is_waited_for(make: Make, mock: Mock, clock: Clock) -> None:
    longest = {"status_code": 429, "headers": {"Retry-After": "3900"}}
    mock.get(EXPORT, [longest, zipped(ROWS)])
    make().export(DAY).close()
    assert clock.sleeps[0] == 3900


def test_a_429_makes_other_processes_hold_off_too(make: Make, mock: Mock, clock: Clock, tmp_path: Path) -> None:
    mock.get(EXPORT, status_code=429, headers={"Retry-After": "50"})
    path = tmp_path / "ledger.sqlite"
    shared = [RequestLedger(path, origin="o", project_id="1", clock=clock, sleep=clock.sleep) for _ in range(2)]
    with pytest.raises(RateLimitError):
        make(ledger=shared[0], wait=False).export(DAY)
    assert shared[1].spent("export").next_free_s == pytest.approx(50)


def test_every_attempt_is_entered_in_the_ledger(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, [{"status_code": 500}, {"status_code": 500}, zipped(b"")])
    budget = RequestLedger(None, origin="o", project_id="1", clock=clock, sleep=clock.sleep)
    make(ledger=budget).export(DAY).close()
    assert budget.spent("export").used == 3


def test_an_export_counts_from_when_its_answer_begins(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    budget = RequestLedger(None, origin="o", project_id="1", clock=clock, limits={"export": ((1, 100.0),)})

    def slow(received: int) -> None:
        clock.now += 20 if received == 0 else 0

    make(ledger=budget).export(DAY, on_bytes=slow).close()
    assert budget.spent("export").next_free_s == pytest.approx(80.05)


def test_the_61st_request_of_an_hour_is_not_sent_unless_waiting_is_allowed(
    make: Make, mock: Mock, clock: Clock
) -> None:
    mock.get(FUNNELS, json={})
    budget = RequestLedger(None, origin="o", project_id="1", clock=clock, sleep=clock.sleep)
    client = make(ledger=budget, wait=False)
    for _ in range(60):
        client.request_json("query", "GET", "/api/query/funnels")
    with pytest.raises(RateLimitError, match="used up"):
        client.request_json("query", "GET", "/api/query/funnels")
    with pytest.raises(RateLimitError, match="used up"):  # one question alone may not wait
        make(ledger=budget).request_json("query", "GET", "/api/query/funnels", wait=False)
    assert len(mock.request_history) == 60
    make(ledger=budget).request_json("query", "GET", "/api/query/funnels")
    assert clock.sleeps == [pytest.approx(3600.05)]


def test_the_ledger_is_in_the_data_folder_unless_given(mock: Mock, clock: Clock, data_folder: Path) -> None:
    mock.get("https://eu.mixpanel.com/api/app/me", json={})
    with MixpanelClient(Credentials("user", PLANTED, "5", "eu"), clock=clock, sleep=clock.sleep) as client:
        client.me()
    path = data_folder / "ledger.sqlite"
    assert RequestLedger(path, origin="https://eu.mixpanel.com", project_id="5", clock=clock).spent("app").used == 1


# --- exports: what is whole and what is not


def test_a_spooled_export_is_private_and_goes_when_it_is_closed(make: Make, mock: Mock, data_folder: Path) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    with make().export(DAY) as body:
        (path,) = (data_folder / "spool").iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert gzip.decompress(path.read_bytes()) == ROWS
        assert body.compressed_bytes == path.stat().st_size
        assert body.decompressed_bytes == len(ROWS)
        assert list(body.blocks()) == list(body.blocks()) == [ROWS]
    assert list((data_folder / "spool").iterdir()) == []
    with pytest.raises(RuntimeError, match="closed"):
        next(body.blocks())


def test_a_failed_export_leaves_no_file(make: Make, mock: Mock, data_folder: Path) -> None:
    mock.get(EXPORT, **zipped(ROWS + b"terminated early"))
    with pytest.raises(IncompleteExportError):
        make().export(DAY)
    assert list((data_folder / "spool").iterdir()) == []


def test_a_body_that_is_forgotten_leaves_no_file(make: Make, mock: Mock, data_folder: Path) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    body = make().export(DAY)
    assert len(list((data_folder / "spool").iterdir())) == 1
    del body
    assert list((data_folder / "spool").iterdir()) == []


def test_a_forked_child_leaves_the_file_to_its_parent(
    make: Make, mock: Mock, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    body = make().export(DAY)
    monkeypatch.setattr("mixpanel_source.bodies.os.getpid", lambda: 0)
    body.close()
    assert len(list((data_folder / "spool").iterdir())) == 1


def test_files_of_killed_processes_are_removed_and_those_in_use_are_not(
    make: Make, mock: Mock, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    monkeypatch.setattr(bodies, "STALE_SPOOL_S", -1.0)
    in_use = make().export(DAY)
    stale = data_folder / "spool" / "mpload-export-dead"
    stale.write_bytes(b"x")
    foreign = data_folder / "spool" / "notes.txt"
    foreign.write_bytes(b"x")
    make().export(DAY).close()
    assert not stale.exists()
    assert foreign.exists()
    assert text_of(in_use) == ROWS


def test_a_full_disk_is_told_with_what_to_do(make: Make, mock: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    real = os.fdopen

    def fdopen_full(handle: int, mode: str) -> IO[bytes]:
        os.close(handle)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr("mixpanel_source.bodies.os.fdopen", fdopen_full)
    with pytest.raises(WarehouseError, match="disk is full") as caught:
        make().export(DAY)
    assert "MP_DATA_DIR" in str(caught.value.hint)
    assert len(mock.request_history) == 1


def test_a_spool_folder_that_cannot_be_is_told(make: Make, mock: Mock, tmp_path: Path) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    (tmp_path / "file").write_text("")
    with pytest.raises(WarehouseError):
        make(spool_folder=tmp_path / "file" / "spool").export(DAY)


def test_progress_starts_again_with_each_attempt(make: Make, mock: Mock) -> None:
    cut = {"content": gzip.compress(ROWS)[:-4], "headers": {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}}
    mock.get(EXPORT, [cut, zipped(ROWS)])
    told: list[int] = []
    make().export(DAY, on_bytes=told.append).close()
    size = len(gzip.compress(ROWS))
    assert told == [0, size - 4, 0, size]


@pytest.mark.parametrize(
    "body",
    [
        b"terminated early",
        b"export terminated early\n",
        ROWS + b"terminated early\n",
        ROWS + b"export terminated early",
        ROWS + b"export terminated early\n\n",
        ROWS + b"terminated early\n" + ROWS,
        ROWS + b'{"error":"server failed"}\n' + ROWS,
        b'{"error": "server failed"}\n' + ROWS,
        ROWS + b'{"error":"server failed"}',
        ROWS + b'{"error":"server failed"}\n',
        b'{"request":"/api/2.0/export","error":"server failed"}',
        b'{"status":"error","error":"server failed"}\n',
        ROWS + b'{"event":"A","prop{"error":"server failed"}\n',
        ROWS + b"Internal Server Error\n",
        b"too many requests\n",
        ROWS[:-2],
        ROWS[:-2] + b"\n",
        ROWS[:-2] + b"\r\n",
        ROWS + b'{"event":"A","properties":{"a":"half a str\n',
        ROWS + b'{"event":"A","properties":{"a":tru\n',
        b'{"event":"A","properties":{"only":\n',
        ROWS + b'{"event":"A","properties":{"a":1export terminated early\n',
        ROWS[:-1] + b"export terminated early\n",
        ROWS + b'{"message":"export timed out"}\n',
        ROWS + b"<html><h1>502 Bad Gateway</h1></html>\n",
        ROWS + b'{"event":"A"',
        ROWS + b"99",
        ROWS + b'"text"',
        b"<html>\n<body>sign in</body>\n</html>\n",
        b"\n  <!doctype html>\n",
    ],
)
def test_a_body_that_is_not_an_export_or_not_all_of_one_is_refused(
    body: bytes, make: Make, mock: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1 << 20, 7):
        monkeypatch.setattr(bodies, "PIECE_BYTES", size)
        for answer in (zipped(body), whole(body)):
            mock.get(EXPORT, **answer)
            client = make(retries=1)
            with pytest.raises(IncompleteExportError):
                client.export(DAY)
            assert client.stats.requests == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        ROWS,
        ROWS[:-1],
        ROWS.replace(b"\n", b"\r\n"),
        b"\n" + ROWS + b"\n\n",
        b'{"event":"error","properties":{"error":"terminated early"}}\n',
        b'{"properties":{"error":1},"event":"A"}\n{"properties":{}, "event":"A"}',
        b'{"event":"A\\nterminated early","properties":{"a":"{\\"error\\":1}\xe2\x80\xa8<html>"}}',
        b'{"event":"A","properties":{"n":' + b"9" * 5000 + b"}}",
        b'{"event":"A","properties":{"bad utf-8":"\xff"}}',
        b'{"event":"A","properties":{"raw control characters":"\t\r\x01"}}',
        b'{"event":"A","properties":{"deep":' + b"[" * 2000 + b"]" * 2000 + b"}}",
        ROWS + b"99\n" + ROWS,
        ROWS + b'{"event":"A","properties":{"a":[1,],}}\n',
        ROWS + b'{"event":"A","properties":{"a":nan}}\n',
        ROWS + b'{"event":"A","properties":{"cut\n' + ROWS,
        ROWS + b"not json\n",
    ],
)
def test_a_whole_body_is_accepted_and_its_lines_are_kept(
    body: bytes, make: Make, mock: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that are only unreadable are the reader's to count."""
    for size in (1 << 20, 7):
        monkeypatch.setattr(bodies, "PIECE_BYTES", size)
        for answer in (zipped(body), whole(body)):
            mock.get(EXPORT, **answer)
            expected = body if not body or body.endswith(b"\n") else body + b"\n"
            assert text_of(make().export(DAY)) == expected


def test_a_body_whose_framing_proves_nothing_is_refused(make: Make, mock: Mock) -> None:
    mock.get(EXPORT, content=ROWS)
    with pytest.raises(IncompleteExportError, match="without gzip, chunks or a length"):
        make().export(DAY)
    mock.get(EXPORT, content=b"", headers={"Content-Encoding": "gzip"})
    with pytest.raises(IncompleteExportError, match="without gzip, chunks or a length"):
        make().export(DAY)


def test_a_body_longer_or_shorter_than_its_length_is_refused(make: Make, mock: Mock) -> None:
    for error in (-LINE, LINE):
        mock.get(EXPORT, content=ROWS, headers={"Content-Length": str(len(ROWS) + error)})
        with pytest.raises(IncompleteExportError):
            make().export(DAY)


def test_an_encoding_that_was_not_asked_for_is_refused(make: Make, mock: Mock) -> None:
    mock.get(EXPORT, **whole(ROWS, **{"Content-Encoding": "br"}))
    with pytest.raises(ServerError, match="'br'"):
        make().export(DAY)


def test_several_gzip_members_are_one_body_and_garbage_after_them_is_not(make: Make, mock: Mock) -> None:
    members = gzip.compress(ROWS) + gzip.compress(b"") + gzip.compress(ROWS)
    mock.get(EXPORT, **whole(members, **{"Content-Encoding": "gzip"}))
    assert text_of(make().export(DAY)) == ROWS * 2
    for garbage in (b"\0", b"x", b"\x1f", b"\x1f\x8b", gzip.compress(ROWS)[:-1], b"trailing garbage"):
        mock.get(EXPORT, **whole(members + garbage, **{"Content-Encoding": "gzip"}))
        with pytest.raises(IncompleteExportError):
            make().export(DAY)


def test_any_changed_byte_of_a_gzip_trailer_is_noticed(make: Make, mock: Mock) -> None:
    good = gzip.compress(ROWS)
    client = make(retries=0)
    for place in range(1, 9):
        bad = bytearray(good)
        bad[-place] ^= 1
        mock.get(EXPORT, **whole(bytes(bad), **{"Content-Encoding": "gzip"}))
        with pytest.raises(IncompleteExportError, match="gzip"):
            client.export(DAY)


def test_a_line_over_the_bound_is_refused_without_asking_again(make: Make, mock: Mock) -> None:
    line = b'{"event":"A","properties":{"a":"' + b"x" * 1000 + b'"}}'
    mock.get(EXPORT, **zipped(ROWS + line + b"\n" + ROWS))
    with pytest.raises(IncompleteExportError, match="more than 500 bytes"):
        make(max_line_bytes=500).export(DAY)
    assert len(mock.request_history) == 1
    assert text_of(make(max_line_bytes=len(line)).export(DAY)) == ROWS + line + b"\n" + ROWS


def test_a_small_body_of_gigabytes_is_decompressed_a_piece_at_a_time() -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * 1_048_575 + b"\n")
    inflater = bodies.Inflater("gzip", 4096)
    sizes = [len(piece) for piece in inflater.feed(packed.getvalue())]
    inflater.finish()
    assert max(sizes) <= 4096
    assert sum(sizes) == inflater.decompressed_bytes == 64 << 20


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    newline_at_end=st.booleans(),
    size=st.integers(1, 100),
    piece=st.integers(1, 60),
    compressed=st.booleans(),
)
def test_blocks_are_whole_lines_and_all_of_them(
    lines: list[bytes], newline_at_end: bool, size: int, piece: int, compressed: bool, tmp_path: Path
) -> None:
    text = b"".join(line + b"\n" for line in lines)
    if lines and not newline_at_end:
        text = text[:-1]
    spool = bodies.Spool(tmp_path, "export-")
    stored = gzip.compress(text, 1) if compressed else text
    spool.write(stored)
    spool.finish()
    with (
        pytest.MonkeyPatch.context() as patch,
        ExportBody(spool, "gzip" if compressed else "", len(stored), len(text), text.count(b"\n"), attempts=1) as body,
    ):
        patch.setattr(bodies, "READ_BYTES", piece)
        blocks = list(body.blocks(size))
    assert b"".join(blocks) == (text + b"\n" if text and not text.endswith(b"\n") else text)
    assert all(block.endswith(b"\n") for block in blocks)
    longest = max(map(len, lines), default=0) + 1
    assert all(len(block) <= size + longest + min(size, 1 << 20) for block in blocks)


# --- bodies that are too large


@pytest.mark.parametrize(("setting", "size"), [("MAX_ANSWER_BYTES", "MiB"), ("MAX_ANSWER_VALUES", "3 values")])
def test_an_answer_too_large_to_be_held_is_refused_at_once(
    setting: str, size: str, make: Make, mock: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, setting, 3)
    mock.get(FUNNELS, **zipped(b'{"a":[1,2,3]}'))
    mock.post(ENGAGE, **zipped(b'{"results":[1,2,3]}'))
    client = make()
    with pytest.raises(ServerError, match=f"answered with more than .*{size}, which is too large"):
        client.request_json("query", "GET", "/api/query/funnels")
    with pytest.raises(ServerError, match="which is too large"):
        client.profiles()
    assert len(mock.request_history) == 2


def test_an_export_with_more_bytes_than_allowed_is_refused_at_once(make: Make, mock: Mock, data_folder: Path) -> None:
    mock.get(EXPORT, **whole(ROWS))
    assert text_of(make(max_body_bytes=len(ROWS)).export(DAY)) == ROWS
    with pytest.raises(IncompleteExportError, match=f"more than {len(ROWS) - 1} bytes"):
        make(max_body_bytes=len(ROWS) - 1).export(DAY)
    assert len(mock.request_history) == 2
    assert list((data_folder / "spool").iterdir()) == []


def test_an_export_that_grows_a_thousandfold_is_refused_at_once(
    make: Make, mock: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "INFLATION_FREE_BYTES", 10_000)
    mock.get(EXPORT, **zipped(ROWS * 50))
    assert text_of(make().export(DAY)) == ROWS * 50
    mock.get(EXPORT, **zipped(b"\n" * 100_000))
    with pytest.raises(IncompleteExportError, match="bytes of gzip hold more than") as caught:
        make().export(DAY)
    assert caught.value.attempts == 1


# --- a server that can cut anywhere


class Server:
    """Answers each connection with the next of `answers` (the last one again and again), byte for byte, and closes."""

    def __init__(self, answers: tuple[bytes, ...]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                request = b""
                while b"\r\n\r\n" not in request and (more := connection.recv(65536)):
                    request += more
                self.requests.append(request)
                connection.sendall(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

    def close(self) -> None:
        # shutdown wakes the thread that waits in accept
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def serve(*answers: bytes) -> Server:
        servers.append(Server(answers))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def json_answer(answer: Any, headers: bytes = b"") -> bytes:
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (headers, len(body), body)


def chunked(body: bytes, size: int, size_format: bytes = b"%x") -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join((size_format % len(part)) + b"\r\n" + part + b"\r\n" for part in parts) + b"0\r\n\r\n"


FRAMINGS: dict[str, Callable[[bytes], tuple[bytes, bytes]]] = {
    "length": lambda body: (b"Content-Length: %d\r\n" % len(body), body),
    "chunked": lambda body: (b"Transfer-Encoding: chunked\r\n", chunked(body, 40)),
    "chunked, padded sizes": lambda body: (b"Transfer-Encoding: chunked\r\n", chunked(body, LINE, b"%04x")),
    "neither": lambda body: (b"", body),
}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_export_cut_at_any_byte_is_never_accepted(
    framing: str, compressed: bool, make: Make, serve: Serve, data_folder: Path
) -> None:
    rows = ROWS[: 2 * LINE]  # a cut between two lines is the one that looks whole
    payload = gzip.compress(rows, mtime=0) if compressed else rows
    headers, body = FRAMINGS[framing](payload)
    encoding = b"Content-Encoding: gzip\r\n" if compressed else b""
    head = b"HTTP/1.1 200 OK\r\n" + encoding + headers + b"Connection: close\r\n\r\n"
    server = serve(*(head + body[:end] for end in range(len(body) + 1)))
    client = make(base_url=server.url, retries=0)
    accepted = []
    for end in range(len(body) + 1):
        try:
            exported = client.export(DAY)
        except IncompleteExportError:
            continue
        accepted.append(end)
        assert text_of(exported) == rows
    if framing == "neither" and not compressed:
        assert accepted == []
    else:
        assert accepted[-1] == len(body)
        # Once the chunk of size 0 is there, its empty line adds nothing.
        assert accepted[0] >= len(body) - (2 if "chunked" in framing else 0)
    assert list((data_folder / "spool").iterdir()) == []


def test_a_cut_export_is_asked_for_again(make: Make, serve: Serve, clock: Clock) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(ROWS)
    server = serve(b"", head[:20], head + ROWS[:60], head + ROWS)
    body = make(base_url=server.url).export(DAY)
    assert text_of(body) == ROWS
    assert body.attempts == len(server.requests) == 4
    assert clock.sleeps == [1, 2, 4]


def test_a_reset_in_the_middle_is_a_cut(make: Make, clock: Clock) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def reset() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    thread = threading.Thread(target=reset)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(IncompleteExportError, match="connection broke"):
        make(base_url=url, retries=0).export(DAY)
    thread.join()
    listener.close()


def test_a_silent_server_is_not_waited_for_longer_than_the_timeout(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerError, match="no answer in time") as caught:
            make(base_url=url, retries=1, export_timeout_s=0.05).export(DAY)
    assert (caught.value.is_slow, caught.value.attempts) == (True, 2)


OPEN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 500 Oh\r\nContent-Length: 9999\r\n\r\n", OPEN])
def test_a_server_that_drips_is_given_up(begun: bytes, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "ANSWER_TIMEOUTS", 0.2)
    hung_up = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        try:
            connection.sendall(begun)
            while not hung_up.wait(0.01):
                connection.sendall(b"1\r\n \r\n" if begun is OPEN else b"a")
        except OSError:
            hung_up.set()
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        client = make(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0, timeout_s=1.0)
        with pytest.raises(ServerError, match=r"not all there after 0\.2 s|answered 500"):
            client.me()
        client.close()
        thread.join(5)
    assert hung_up.is_set()


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        (b"-1\r\n" + ROWS, "a chunk has a negative size"),
        (b"0\r\n" + b"X: a\r\n" * 200, "more than 100 lines follow its chunks"),
        (b"0" * 100_000, "Connection broken|maximum allowed length|IncompleteRead"),
    ],
)
def test_chunks_that_never_end_are_refused(rest: bytes, problem: str, make: Make, serve: Serve) -> None:
    server = serve(OPEN + rest)
    with pytest.raises(IncompleteExportError, match=problem):
        make(base_url=server.url, retries=0).export(DAY)
    refused = serve(OPEN.replace(b"200 OK", b"400 No") + rest)
    with pytest.raises(QueryError, match="answered 400"):
        make(base_url=refused.url, retries=0).export(DAY)


def test_nothing_of_a_redirect_but_its_head_is_waited_for(make: Make, serve: Serve) -> None:
    server = serve(b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\nContent-Length: 99\r\n\r\n")
    with pytest.raises(ServerError, match="a redirect, not followed"):
        make(base_url=server.url, retries=0).me()


@pytest.mark.parametrize("last", [b"\n", b""])
def test_lines_are_counted_wherever_the_pieces_of_a_body_end(last: bytes) -> None:
    text = b'{"event":"A","properties":{}}\n\n{"event":"B","properties":{"s":"\xe2\x80\xa8"}}' + last
    for place in range(1, len(text)):
        lines = LineWatch(1000)
        for piece in (text[:place], text[place:]):
            lines.feed(piece)
        lines.finish()
        assert lines.count == 3


def test_a_cut_gzip_answer_is_not_taken_for_json(make: Make, serve: Serve) -> None:
    packed = gzip.compress(b'{"a": 1}')
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
    cut = head + b"Content-Length: %d\r\n\r\n%s" % (len(packed) - 4, packed[:-4])
    server = serve(cut, head + b"\r\n" + packed)
    client = make(base_url=server.url)
    assert client.me() == {"a": 1}
    assert client.stats.requests == 2


# --- profiles


def page(
    number: int, ids: list[Any], *, size: int = 2, total: int | None = None, session: str = "s1"
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "page": number,
        "page_size": size,
        "session_id": session,
        "status": "ok",
        "results": [{"$distinct_id": i, "$properties": {}} for i in ids],
    }
    return answer if total is None else {**answer, "total": total}


def forms(mock: Mock) -> list[dict[str, str]]:
    return [
        {key: values[0] for key, values in parse_qs(request.text or "").items()} for request in mock.request_history
    ]


def ids_of(pages: Any) -> list[str]:
    return [row["$distinct_id"] for body in pages for row in json.loads(body)["results"]]


EXPIRED = {"status_code": 400, "json": {"error": "request for page in uncached query for params"}}


def test_profiles_are_paged_by_the_session_until_a_short_page(make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, [{"json": page(0, ["a", "b"], total=3)}, {"json": page(1, ["c"])}])
    told: list[tuple[int, int | None]] = []
    client = make(Credentials("user", PLANTED, "12345", "us", workspace_id="9"))
    with client.profiles(where="w", on_page=lambda *args: told.append(args)) as pages:
        assert ids_of(pages) == ids_of(pages) == ["a", "b", "c"]
        assert (pages.pages, len(pages), pages.total, pages.profiles, pages.attempts) == (2, 2, 3, 3, 2)
    assert forms(mock) == [{"where": "w"}, {"where": "w", "session_id": "s1", "page": "1"}]
    assert sent(mock) == [{"project_id": ["12345"], "workspace_id": ["9"]}] * 2
    assert told == [(2, 3), (3, 3)]


def test_an_exact_multiple_of_the_page_size_ends_with_an_empty_page(make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, [{"json": page(0, ["a", "b"], total=2)}, {"json": page(1, [])}])
    assert ids_of(make().profiles()) == ["a", "b"]


def test_a_project_without_profiles_has_one_empty_page(make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, json=page(0, [], total=0))
    with make().profiles() as pages:
        assert (ids_of(pages), pages.profiles, pages.total) == ([], 0, 0)


def test_an_expired_session_starts_the_walk_again_and_drops_what_came(make: Make, mock: Mock, clock: Clock) -> None:
    mock.post(
        ENGAGE,
        [
            {"json": page(0, ["a", "b"], total=3)},
            EXPIRED,
            {"json": page(0, ["c", "a"], total=3, session="s2")},
            {"json": page(1, ["b"], session="s2")},
        ],
    )
    with make().profiles() as pages:
        assert ids_of(pages) == ["c", "a", "b"]
        assert pages.attempts == 4
    assert [form.get("session_id") for form in forms(mock)] == [None, "s1", None, "s2"]
    assert clock.sleeps == [1]


def test_a_page_is_retried_before_the_walk_is_started_again(make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, [{"json": page(0, ["a", "b"])}, {"status_code": 500}, {"json": page(1, ["c"])}])
    with make().profiles() as pages:
        assert ids_of(pages) == ["a", "b", "c"]
        assert pages.attempts == 3


def test_a_page_that_never_comes_starts_the_walk_again_as_often_as_the_retries(make: Make, mock: Mock) -> None:
    for answer, requests_sent in (({"status_code": 500}, 2 * (1 + 2)), (EXPIRED, 2 * (1 + 1))):
        mock.reset_mock()
        mock.post(
            ENGAGE, [{"json": page(0, ["a", "b"])}, answer, answer, {"json": page(0, ["a", "b"])}, answer, answer]
        )
        if answer is EXPIRED:
            mock.post(ENGAGE, [{"json": page(0, ["a", "b"])}, EXPIRED] * 2)
        with pytest.raises((ServerError, QueryError)):
            make(retries=1).profiles()
        assert len(mock.request_history) == requests_sent


def test_other_errors_in_the_middle_of_a_walk_end_it(make: Make, mock: Mock) -> None:
    for answer, error in (({"status_code": 401}, AuthenticationError), ({"status_code": 402}, PlanError)):
        mock.reset_mock()
        mock.post(ENGAGE, [{"json": page(0, ["a", "b"])}, answer])
        with pytest.raises(error):
            make().profiles()
        assert len(mock.request_history) == 2


def test_fewer_distinct_profiles_than_the_total_are_not_all(make: Make, mock: Mock, data_folder: Path) -> None:
    mock.post(
        ENGAGE, [{"json": page(0, ["a", "b"], total=4)}, {"json": page(1, ["b", "c"])}, {"json": page(2, [])}] * 2
    )
    with pytest.raises(IncompleteExportError, match="3 different profiles came of 4"):
        make(retries=1).profiles()
    assert len(mock.request_history) == 6
    assert list((data_folder / "spool").iterdir()) == []


def test_more_profiles_than_the_total_are_fine(make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, json=page(0, ["a", "b"], size=5, total=1))
    assert ids_of(make().profiles()) == ["a", "b"]


@pytest.mark.parametrize(
    "answers",
    [
        [{"json": page(0, ["a", "b"])}, {"json": page(1, ["a", "b"])}],
        [{"json": {"results": [{"$distinct_id": "a"}]}}],
    ],
)
def test_a_walk_that_cannot_be_shown_to_end_is_refused(answers: list[Any], make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, answers)
    with pytest.raises(IncompleteExportError):
        make(retries=0).profiles()


def test_without_a_page_size_only_an_empty_page_ends_a_walk(make: Make, mock: Mock) -> None:
    answers = [page(0, ["a", "b"]), page(1, ["c"]), page(2, [])]
    for answer in answers:
        del answer["page_size"]
    mock.post(ENGAGE, [{"json": answer} for answer in answers])
    assert ids_of(make().profiles()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"error": "bad where"}, QueryError),
        ({"status": "ok"}, ServerError),
        ([], ServerError),
        ({"results": {}}, ServerError),
    ],
)
def test_a_page_without_results_is_an_error(answer: Any, error: type[Exception], make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, json=answer)
    with pytest.raises(error):
        make(retries=1).profiles()


def test_pages_are_handed_on_as_they_were_sent(make: Make, mock: Mock) -> None:
    body = (
        b'{"results": [{"$distinct_id": 5, "$properties": {"n": ' + b"9" * 5000 + b', "n": 1.10}},'
        b' {"$distinct_id": "\xff"}, {"$distinct_id": "\xfe", "u": "\xe2\x80\xa8"}, {"x": 1}, 7],'
        b' "total": 5, "page_size": 1000}'
    )
    mock.post(ENGAGE, content=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    with make().profiles() as pages:
        assert list(pages) == [body]
        assert (pages.profiles, pages.distinct) == (5, 5)


ODD_PAGES = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "raw control characters": b'"\t\r\x01"',
    "no JSON but to DuckDB": b'[1,nan,{"a":-Infinity,},]',
    "a huge number": b"9" * 5000 + b"e" + b"9" * 5000,
    "half a pair": b'"\\ud800"',
}


@pytest.mark.parametrize("odd", ODD_PAGES.values(), ids=ODD_PAGES)
def test_an_odd_profile_does_not_break_the_walk(odd: bytes, make: Make, mock: Mock) -> None:
    def body(session: bytes, *profiles: bytes) -> bytes:
        return b'{"page_size":2,"total":4,"session_id":"%s","results":[%s]}' % (session, b",".join(profiles))

    first = body(b"S", b'{"$distinct_id":"a","$properties":{"odd":' + odd + b"}}", b'{"$distinct_id":' + odd + b"}")
    second = body(b"S", b'{"$distinct_id":17,"$properties":' + odd + b"}", b'{"$distinct_id":"b"}')
    last = body(b"S", odd)
    mock.post(ENGAGE, [{"content": first}, {"content": second}, {"content": last}])
    with make(retries=0).profiles() as pages:
        assert list(pages) == [first, second, last]
        assert list(reversed(pages)) == [last, second, first]
        assert (pages.profiles, pages.distinct) == (5, 5)
    assert [request.text for request in mock.request_history][1:] == ["session_id=S&page=1", "session_id=S&page=2"]


def test_pages_can_be_read_from_the_end_while_others_are_read(make: Make, mock: Mock) -> None:
    mock.post(ENGAGE, [{"json": page(0, ["a", "b"])}, {"json": page(1, ["c", "d"])}, {"json": page(2, [])}])
    with make().profiles() as pages:
        backwards = reversed(pages)
        assert [next(backwards), *pages] == [list(pages)[2], *pages]
        assert list(backwards) == list(pages)[1::-1]
    with pytest.raises(RuntimeError, match="closed"):
        next(reversed(pages))


# --- closed clients, threads, secrets


def test_a_closed_client_stays_closed(make: Make, mock: Mock, data_folder: Path) -> None:
    mock.get(EXPORT, **zipped(ROWS * 1000))
    mock.post(ENGAGE, [{"json": page(0, ["a", "b"])}, {"json": page(1, ["c", "d"])}, {"json": page(2, [])}])
    with make() as client:
        blocks = client.export(DAY)
        reading = blocks.blocks(100)
        next(reading)
        pages = client.profiles()
        walking = iter(pages)
        next(walking)
    assert list((data_folder / "spool").iterdir()) == []
    calls: list[Callable[[], object]] = [
        lambda: next(reading),
        lambda: next(walking),
        lambda: next(blocks.blocks()),
        lambda: next(iter(pages)),
        lambda: client.export(DAY),
        client.profiles,
        client.me,
        client.__enter__,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="closed"):
            call()
    client.close()


def test_a_client_closed_while_it_waits_sends_nothing_more(make: Make, mock: Mock, clock: Clock) -> None:
    mock.get(EXPORT, status_code=500)

    def close_instead(seconds: float) -> None:
        client.close()

    client = make(sleep=close_instead)
    with pytest.raises(RuntimeError, match="closed"):
        client.export(DAY)
    assert len(mock.request_history) == 1


def test_a_client_closed_during_an_export_stops_it(
    make: Make, mock: Mock, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.get(EXPORT, **zipped(ROWS))
    client = make()
    told: list[int] = []

    def close_at_the_first_bytes(received: int) -> None:
        told.append(received)
        if received:
            client.close()

    monkeypatch.setattr(bodies, "READ_BYTES", 10)
    with pytest.raises(RuntimeError, match="closed"):
        client.export(DAY, on_bytes=close_at_the_first_bytes)
    assert told == [0, 10]
    assert list((data_folder / "spool").iterdir()) == []


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 10\r\n\r\n{",
    ],
)
def test_closing_a_client_ends_at_once_what_waits_for_a_stalled_answer(
    beginning: bytes, make: Make, clock: Clock, data_folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = make(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        errors: list[BaseException] = []

        def export() -> None:
            try:
                client.export(DAY)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=export)
        thread.start()
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(beginning)
            thread.join(0.2)
            assert thread.is_alive()
            client.close()
            thread.join(1)
            assert not thread.is_alive()
    assert [(type(error), str(error)) for error in errors] == [(RuntimeError, "this MixpanelClient is closed")]
    assert (client.stats.requests, clock.sleeps) == (1, [])
    assert not list((data_folder / "spool").glob("*"))


@pytest.fixture
def unanswered() -> Iterator[int]:
    """A loopback port at which connecting does not come to an end: others fill the listener's queue."""
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(listener.getsockname()) == 0:
                pytest.skip("this system answers for a listener whose queue is full")
        yield listener.getsockname()[1]


def test_closing_a_client_ends_at_once_a_connection_under_way(make: Make, clock: Clock, unanswered: int) -> None:
    client = make(base_url=f"http://127.0.0.1:{unanswered}")
    with pytest.raises(RuntimeError, match="this MixpanelClient is closed"):
        closed_while_it_exports(client, connecting)
    assert (client.stats.requests, clock.sleeps) == (1, [])


def test_closing_a_client_ends_at_once_a_handshake_under_way(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = make(base_url=f"https://127.0.0.1:{listener.getsockname()[1]}")

        def shaking_hands() -> None:
            connection, _ = listener.accept()
            held.append(connection)
            assert connection.recv(1)

        held: list[socket.socket] = []
        with pytest.raises(RuntimeError, match="this MixpanelClient is closed"):
            closed_while_it_exports(client, shaking_hands)
        held[0].close()


def closed_while_it_exports(client: MixpanelClient, is_under_way: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(client.export, DAY)
        is_under_way()
        assert not export.done()
        client.close()
        with export.result(1):
            pass


def connecting() -> None:
    """Waits long enough for a connection to be under way."""
    time.sleep(0.2)


def nobody(*_: object) -> None:
    raise socket.gaierror("no such host")


def test_a_connection_to_nobody_or_too_slow_is_told(
    make: Make, unanswered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerError, match="no connection in time"):
        make(base_url=f"http://127.0.0.1:{unanswered}", timeout_s=0.1, retries=0).me()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServerError, match="refused") as caught:
        make(base_url=f"http://127.0.0.1:{port}", retries=0).me()
    assert not caught.value.is_slow
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(ServerError, match="no such host"):
        make(base_url="https://nobody.invalid", retries=0).me()


def test_a_socket_that_is_connected_after_closing_is_of_no_use() -> None:
    sockets = LiveSockets()
    sockets.shut_down()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not sockets.add(ours)
        assert (ours.recv(1), theirs.recv(1)) == (b"", b"")


def test_a_session_that_was_given_is_left_open(make: Make, mock: Mock) -> None:
    mock.get(FUNNELS, json={})
    with requests.Session() as session:
        closed: list[bool] = []
        session.close = lambda: closed.append(True)  # type: ignore[method-assign]
        with make(session=session) as client:
            client.request_json("query", "GET", "/api/query/funnels")
        assert closed == []


def test_one_client_exports_in_several_threads(make: Make, serve: Serve) -> None:
    rows = ROWS * 500
    packed = gzip.compress(rows)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(packed)
    client = make(base_url=serve(head + packed).url)
    results: list[bool] = []

    def export() -> None:
        for _ in range(5):
            results.append(text_of(client.export(DAY)) == rows)

    threads = [threading.Thread(target=export) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20
    assert (client.stats.requests, client.stats.received_bytes) == (20, 20 * len(packed))


def errors_of(make: Make, mock: Mock, serve: Serve) -> Iterator[MixpanelDataError]:
    """Errors of every kind, from servers that send back whatever they were sent."""
    header = Credentials("user", PLANTED, "12345", "us").authorization()
    echo = f"you sent {header}, that is {PLANTED} or {PLANTED.replace('/', '%2F').replace('+', '%2B')}"
    answers: list[dict[str, Any]] = [
        {"status_code": status, "json": {"error": echo}} for status in (302, 400, 401, 402, 403, 404, 429, 500)
    ]
    answers += [
        {"status_code": 500, "text": echo},
        zipped(ROWS + b'{"error": ' + json.dumps(echo).encode() + b"}"),
        zipped(ROWS + echo.encode()),
        {"content": ROWS},
        *({"exc": kind(echo)} for kind in (requests.exceptions.ConnectionError, requests.exceptions.SSLError, OSError)),
        {"exc": requests.exceptions.InvalidProxyURL(echo)},
        {"exc": ValueError(echo)},
    ]
    for answer in answers:
        mock.get(EXPORT, **answer)
        mock.get(FUNNELS, **answer)
        for call in (
            lambda: make(retries=1).export(DAY),
            lambda: make(retries=1).request_json("query", "GET", "/api/query/funnels"),
        ):
            try:
                call()
            except MixpanelDataError as error:
                yield error
    mock.stop()
    bad = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    for raw in (bad, b"", b"nonsense\r\n\r\n", bad.replace(b"200", b"302") + b"hello", json_answer([1])):
        try:
            make(base_url=serve(raw).url, retries=1).me()
        except MixpanelDataError as error:
            yield error
    try:
        make(base_url="http://127.0.0.1:1", retries=1).export(DAY)
    except MixpanelDataError as error:
        yield error


def test_no_error_and_no_log_line_holds_the_secret(make: Make, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    mock = requests_mock.Mocker()
    mock.start()
    header = Credentials("user", PLANTED, "12345", "us").authorization()
    planted = [PLANTED, header, header.removeprefix("Basic "), "planted%2Fs3cret%2B000"]
    count = 0
    for error in errors_of(make, mock, serve):
        count += 1
        chain: list[BaseException] = [error]
        while (above := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(above)
        assert not [link for link in chain if hasattr(link, "request")]
        again = pickle.loads(pickle.dumps(error))
        assert (again.message, again.hint) == (error.message, error.hint)
        shown = [str(link) + repr(link) + repr(vars(link)) for link in chain]
        shown += ["".join(traceback.format_exception(error)), repr(pickle.dumps(error))]
        # With local variables as well, as pretty tracebacks show them.
        shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
        # The variables of this file's own functions hold it in plain.
        shown = [text for text in shown if "errors_of" not in text]
        assert not [text for text in shown for secret in planted if secret in text]
    assert count > 35
    assert not [record for record in caplog.records for secret in planted if secret in record.getMessage()]
    assert "urllib3" in {record.name.split(".")[0] for record in caplog.records}
    assert "mixpanel_source.client" in {record.name for record in caplog.records}
    assert PLANTED not in repr(make())
