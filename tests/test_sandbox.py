"""The sandbox, over real HTTP: what a client may rely on when it is judged by it."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import requests

from mixpanel_source.sandbox import Fault, Sandbox, SandboxServer, demo_folder
from mixpanel_source.sandbox.expressions import ExpressionError, Row, parse
from mixpanel_source.sandbox.lines import compact, restated

SERVICE_ACCOUNT = ("sandbox", "sandbox")
NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)
DAY = {"project_id": "1", "from_date": "2024-03-05", "to_date": "2024-03-05"}
LINES = [b'{"event":"A","properties":{"time":%d,"n":%d}}' % (1709600000 + n, n) for n in range(3)]

Serve = Callable[..., tuple[Sandbox, str]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a sandbox at noon of 2024-03-05, without limits unless asked for."""
    servers: list[SandboxServer] = []

    def start(**options: Any) -> tuple[Sandbox, str]:
        sandbox = Sandbox(**{"now": NOON, "limits": False, **options})
        servers.append(SandboxServer(sandbox).start())
        return sandbox, servers[-1].url

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = SERVICE_ACCOUNT
        yield session


def export(http: requests.Session, url: str, **params: str) -> requests.Response:
    return http.get(f"{url}/api/2.0/export", params={**DAY, **params})


def wire(url: str, path: str = "/api/2.0/export", encoding: str = "gzip", **params: str) -> tuple[bytes, bytes]:
    """The head and the body, as they come over the connection until it ends."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(
            f"GET {path}?{urlencode({**DAY, **params})} HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n"
            f"Authorization: Basic sandbox:sandbox\r\nAccept-Encoding: {encoding}\r\n\r\n".encode()
        )
        received = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def unchunked(body: bytes) -> tuple[bytes, bool]:
    """The payload of a chunked body, and whether the last, empty chunk was there."""
    payload = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        if size == b"0":
            return payload, True
        payload += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return payload, False


# Credentials and the project


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Basic c2FuZGJveDp3cm9uZw==", 401),
        ("Basic not base64", 401),
        ("Bearer wrong", 401),
        ("Basic c2FuZGJveDpzYW5kYm94", 200),
        ("Basic sandbox:sandbox", 200),
        ("Bearer token", 200),
        ("Basic c2VjcmV0Og==", 200),
        ("Basic c2VjcmV0", 200),
    ],
)
def test_each_form_of_credential_is_told_apart(serve: Serve, authorization: str | None, status: int) -> None:
    _, url = serve(project_secret="secret", oauth_token="token")
    headers = {} if authorization is None else {"Authorization": authorization}
    response = requests.get(f"{url}/api/2.0/export", params=DAY, headers=headers, timeout=10)
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"] == "Unable to authenticate request"
        assert response.json()["request"].startswith("/api/2.0/export?project_id=1")


def test_a_project_secret_needs_no_project_id_and_opens_no_app_path(serve: Serve) -> None:
    _, url = serve(project_secret="secret")
    with requests.Session() as http:
        http.auth = ("secret", "")
        days = {name: DAY[name] for name in ("from_date", "to_date")}
        assert http.get(f"{url}/api/2.0/export", params=days).status_code == 200
        assert http.get(f"{url}/api/app/me").json() == {"status": "error", "error": "Unable to authenticate request"}


def test_a_service_account_needs_the_right_project_id(serve: Serve, http: requests.Session) -> None:
    _, url = serve()
    assert export(http, url, project_id="2").status_code == 403
    response = http.get(f"{url}/api/2.0/export", params={"from_date": "2024-03-05", "to_date": "2024-03-05"})
    assert (response.status_code, response.json()["error"]) == (400, "project_id is a required parameter")


def test_bad_credentials_can_come_as_a_400(serve: Serve) -> None:
    _, url = serve(auth_failure=400)
    assert requests.get(f"{url}/api/2.0/export", params=DAY, timeout=10).status_code == 400


def test_a_host_of_another_region_is_refused(serve: Serve, http: requests.Session) -> None:
    _, url = serve(region="eu")
    assert http.get(f"{url}/api/app/me", headers={"Host": "mixpanel.com"}).status_code == 401
    assert http.get(f"{url}/api/app/me", headers={"Host": "eu.mixpanel.com"}).status_code == 200


def test_me_tells_the_time_zone_of_the_project(serve: Serve, http: requests.Session) -> None:
    _, url = serve(project_timezone="Europe/Rome", project_id="77")
    me = http.get(f"{url}/api/app/me").json()
    assert me["status"] == "ok"
    assert me["results"]["projects"]["77"]["timezone"] == "Europe/Rome"


# Export: what may be asked


@pytest.mark.parametrize(
    ("params", "status", "text"),
    [
        ({"from_date": ""}, 400, "from_date is a required parameter"),
        ({"from_date": "2024-3-5"}, 400, "Error in from_date: invalid date"),
        ({"from_date": "2024-02-30"}, 400, "Error in from_date: invalid date"),
        ({"from_date": "20240305"}, 400, "Error in from_date: invalid date"),
        ({"from_date": "1999-12-31"}, 400, "Error in from_date: invalid date, bad year"),
        ({"to_date": "2024-03-04"}, 400, "from_date cannot be later than to_date"),
        ({"event": "A"}, 400, "Invalid JSON Format: event"),
        ({"event": '"A"'}, 400, "Invalid JSON Format: event"),
        ({"event": "[1]"}, 400, "Invalid JSON Format: event"),
        ({"limit": "100001"}, 400, "Error in limit"),
        ({"limit": "-1"}, 400, "Error in limit"),
        ({"time_in_ms": "yes"}, 400, "Error in time_in_ms"),
        ({"time_in_ms": "True"}, 400, "Error in time_in_ms"),
        ({"limit": ""}, 400, "Error in limit"),
        ({"where": 'properties["n"] =='}, 400, "Invalid expression in where"),
        ({"where": 'properties["n"] and true'}, 400, "Invalid expression in where"),
        ({"fromDate": "2024-03-05"}, 400, "Unknown parameter: fromDate"),
        ({"from_date": "2023-12-05"}, 403, "Date range exceeds 90 days into the past"),
    ],
)
def test_a_wrong_parameter_is_refused(
    serve: Serve, http: requests.Session, params: dict[str, str], status: int, text: str
) -> None:
    sandbox, url = serve(history_days=90)
    sandbox.set_day("2024-03-05", LINES)
    response = export(http, url, **params)
    assert (response.status_code, response.json()["error"][: len(text)]) == (status, text)


def test_a_future_to_date_is_refused(serve: Serve, http: requests.Session) -> None:
    _, url = serve()
    response = export(http, url, to_date="2024-03-06")
    assert (response.status_code, response.content) == (400, b" to_date cannot be later than today")
    assert response.headers["content-type"].startswith("text/plain")


def test_today_is_the_projects_own_day_only_in_an_old_project(serve: Serve, http: requests.Session) -> None:
    late_evening = datetime(2024, 3, 5, 20, tzinfo=UTC)
    for legacy, status in ((False, 400), (True, 200)):
        _, url = serve(project_timezone="Asia/Tokyo", legacy_local_time=legacy, now=late_evening)
        assert export(http, url, to_date="2024-03-06").status_code == status


def test_another_method_or_path_is_refused(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    assert http.post(f"{url}/api/2.0/export", params=DAY).status_code == 405
    assert http.get(f"{url}/api/query/export", params=DAY).status_code == 404
    assert [record.status for record in sandbox.requests] == [405, 404]


def test_requests_are_recorded_as_they_came(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    export(http, url)
    http.post(f"{url}/api/2.0/engage/", params={"project_id": "1"}, data={"page_size": "5"})
    first, second = sandbox.requests
    assert (first.method, first.path, first.params, first.status) == ("GET", "/api/2.0/export", DAY, 200)
    assert first.headers["authorization"] == "Basic c2FuZGJveDpzYW5kYm94"
    assert (second.path, second.params) == ("/api/2.0/engage/", {"project_id": "1", "page_size": "5"})
    assert first.at <= second.at


# Export: what comes back


def test_set_lines_come_back_byte_for_byte(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    lines = [b'{ "a" : 1.50e+3 }', b"\xff\xfe garbage", "\u2028 \u0085\r".encode(), b"", b'"half'] * 100
    sandbox.set_day("2024-03-04", lines)
    response = export(http, url, from_date="2024-03-04")
    assert response.headers["content-encoding"] == "gzip"
    assert response.content == b"".join(line + b"\n" for line in lines)
    sandbox.set_day("2024-03-04", LINES)
    assert export(http, url, from_date="2024-03-04").content == b"".join(line + b"\n" for line in LINES)


def test_a_day_without_events_is_an_empty_200(serve: Serve, http: requests.Session) -> None:
    _, url = serve()
    response = export(http, url)
    assert (response.status_code, response.content) == (200, b"")


def test_gzip_comes_only_when_it_is_accepted_and_worth_it(serve: Serve) -> None:
    sandbox, url = serve()
    for size, accepted, expected in (
        (1400, "gzip", None),
        (1401, "gzip", "gzip"),
        (1401, "gzip, deflate", "gzip"),
        (1401, "identity", None),
        (1401, "gzip;q=0", None),
    ):
        sandbox.set_day("2024-03-04", [b"x" * (size - 1)])
        response = requests.get(
            f"{url}/api/2.0/export",
            params={**DAY, "from_date": "2024-03-04"},
            auth=SERVICE_ACCOUNT,
            headers={"Accept-Encoding": accepted},
            timeout=10,
        )
        assert (response.headers.get("content-encoding"), len(response.content)) == (expected, size)


def test_several_days_are_one_gzip_member(serve: Serve) -> None:
    sandbox, url = serve()
    for day in ("2024-03-02", "2024-03-04", "2024-03-03"):
        sandbox.set_day(day, [day.encode() * 100] * 10)
    head, body = wire(url, from_date="2024-03-01", to_date="2024-03-04")
    payload, ended = unchunked(body)
    stream = zlib.decompressobj(31)
    text = stream.decompress(payload)
    assert b"content-encoding: gzip" in head
    assert (ended, stream.eof, stream.unused_data) == (True, True, b"")
    assert [line[:10] for line in text.splitlines()] == [b"2024-03-02"] * 10 + [b"2024-03-03"] * 10 + [
        b"2024-03-04"
    ] * 10


def test_a_ready_gzip_is_sent_as_it_is(serve: Serve) -> None:
    sandbox, url = serve()
    ready = gzip.compress(b"".join(line + b"\n" for line in LINES))
    sandbox.set_day_gzip("2024-03-04", ready)
    days = {"from_date": "2024-03-04", "to_date": "2024-03-04"}
    assert unchunked(wire(url, **days)[1]) == (ready, True)
    assert unchunked(wire(url, encoding="identity", **days)[1]) == (gzip.decompress(ready), True)
    assert unchunked(wire(url, encoding="identity", where='properties["n"]==2', **days)[1]) == (LINES[2] + b"\n", True)


def test_events_are_placed_and_told_in_seconds_or_milliseconds(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    sandbox.add_events(
        [
            {"event": "é", "properties": {"time": 1709596799, "x": 1}},
            {"event": "B", "properties": {"x": {"time": 5}, "time": 1709596800123}},
        ]
    )
    assert export(http, url).content == b'{"event":"B","properties":{"x":{"time":5},"time":1709596800}}\n'
    assert export(http, url, time_in_ms="true").content == (
        b'{"event":"B","properties":{"x":{"time":5},"time":1709596800123}}\n'
    )
    response = export(http, url, from_date="2024-03-04", to_date="2024-03-04", time_in_ms="true")
    assert response.content == '{"event":"é","properties":{"time":1709596799000,"x":1}}\n'.encode()
    with pytest.raises(ValueError, match="line 1"):
        sandbox.add_events([{"event": "C", "properties": {}}])


def test_set_lines_change_their_time_only_where_that_is_asked_for(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    line = b'{"properties": {"time" : 7, "s":"\xff"}}'
    sandbox.set_day("2024-03-05", [line])
    assert export(http, url, time_in_ms="true").content == line + b"\n"
    sandbox.set_day("2024-03-05", [line], rewrite_time=True)
    assert export(http, url, time_in_ms="true").content == b'{"properties": {"time" : 7000, "s":"\xff"}}\n'
    assert export(http, url).content == line + b"\n"


def test_today_holds_only_what_has_happened(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    noon = int(NOON.timestamp())
    sandbox.add_events([{"event": "A", "properties": {"time": noon + step}} for step in (-1, 0, 1)])
    assert len(export(http, url).text.splitlines()) == 2
    sandbox.now = NOON + timedelta(days=1)
    assert len(export(http, url).text.splitlines()) == 3


def test_a_late_event_is_there_once_it_was_processed(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve(late_events=True)
    properties = {"time": 1709510400, "mp_processing_time_ms": int(NOON.timestamp() * 1000) + 1}
    sandbox.add_events([{"event": "Late", "properties": properties}])
    assert export(http, url, from_date="2024-03-04").content == b""
    sandbox.now = NOON + timedelta(seconds=1)
    assert export(http, url, from_date="2024-03-04").json()["event"] == "Late"


def test_an_export_of_too_many_lines_ends_early_and_says_so(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve(export_lines=3)
    for day in ("2024-03-04", "2024-03-05"):
        sandbox.set_day(day, LINES[:2])
    assert export(http, url).content.splitlines() == LINES[:2]
    both = export(http, url, from_date="2024-03-04").content.splitlines()
    assert both == [*LINES[:2], LINES[0], b"terminated early"]
    assert len(export(http, url, from_date="2024-03-04", event='["B"]').content.splitlines()) == 0


def test_event_where_and_limit_choose_lines(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    sandbox.set_day("2024-03-05", [*LINES, b'{"event":"B","properties":{"n":1}}', b"garbage"])
    assert export(http, url, event='["B"]').content == b'{"event":"B","properties":{"n":1}}\n'
    assert export(http, url, where='properties["n"] >= 1', event='["A"]').content.splitlines() == LINES[1:]
    assert export(http, url, limit="2").content.splitlines() == LINES[:2]
    assert export(http, url, event="[]").content == b""


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('properties["n"] == 5', True),
        ('properties["n"] == 5.0', True),
        ('properties["n"] == "5"', False),
        ('properties["n"] != "5"', True),
        ('properties["missing"] == 5', False),
        ('not properties["missing"] > 5', True),
        ('defined(properties["missing"]) or defined(properties["null"])', True),
        ('properties["n"] > 4 and properties["n"] <= 5', True),
        ('properties["n"] > 4 AND (properties["n"] < 5 OR properties["s"] == "it\'s")', True),
        ('properties["s"] > "it" and properties["s"] < "iu"', True),
        ('"t\'" in properties["s"]', True),
        ('properties["n"] in [1, 2, 5]', True),
        ('properties["n"] in ["5"]', False),
        ('5 in properties["list"]', False),
        ('"a" in properties["list"]', True),
        ('number(properties["digits"]) == 42', True),
        ('string(properties["n"]) == "5"', True),
        ('string(properties["missing"], "none") == "none"', True),
        ('number(properties["s"]) >= 0', False),
        ('properties["quote\\"d"] == "b\\\\s"', True),
        ('properties["flag"]', True),
        ('properties["flag"] == 1', False),
        ("1 + 2 * 3 - -1 == 8", True),
        ("1 / 0 == 1", False),
        ('properties["n"] % 2 == 1', True),
        ("null == null", True),
        ("floor(1.7) == 1 and ceil(1.2) == 2", True),
        ('user["plan"] == "pro" and not defined(user["n"])', True),
        ('event["$time"] >= datetime("2024-03-05T12:00:00")', True),
        ('properties["$time"] >= datetime(1709640000) and properties["$time"] < datetime(1709640001)', True),
        ('properties["$distinct_id"] == "u"', True),
        ('defined(event["n"])', False),
        ('any(X, properties["list"], X = "b")', True),
        ('any(X, properties["list"], X == properties["s"] or X in ["c"])', False),
        ('any(X, properties["n"], X = 5)', False),
    ],
)
def test_an_expression_says_which_rows_are_kept(expression: str, expected: bool) -> None:
    properties = {
        "n": 5,
        "s": "it's",
        "null": None,
        "list": ["a", "b"],
        "digits": "42",
        "flag": True,
        'quote"d': "b\\s",
        "time": 1709640000500,
        "distinct_id": "u",
    }
    assert parse(expression)(Row(properties, user=lambda: {"plan": "pro"})) is expected


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 ==",
        "(1",
        'properties["a"',
        "1 1",
        "nothing(1)",
        "'a",
        "defined()",
        "@",
        "X",
        "any(X, [1], Y)",
        "any(1, [1], true)",
    ],
)
def test_a_broken_expression_is_an_error(expression: str) -> None:
    with pytest.raises(ExpressionError):
        parse(expression)


def test_compacting_touches_nothing_inside_a_string() -> None:
    spaced = b'{ "a b" : "c \\" : d\\\\" ,\t"e" : [ 1.50 , -0 , 1E+2 ] , "a b":1 }\r\n"half : string \n{ "x" : 1 }'
    assert compact(spaced) == b'{"a b":"c \\" : d\\\\","e":[1.50,-0,1E+2],"a b":1}\n"half:string\n{"x":1}'


@pytest.mark.parametrize(
    ("line", "in_ms"),
    [
        (b'{"event":"A","properties":{"time":1709647200,"a":1}}', b"1709647200000"),
        (b'{"event":"A \\"time\\":1","properties":{"time":1709647200}}', b"1709647200000"),
        (b'{"time":1,"properties":{"x":{"time":2},"time" : 1709647200 ,"y":1.0}}', b"1709647200000"),
        (b'{"event":"A","properties":{"time":1,"time":1709647200}}', b"1709647200000"),
        (b'{"event":"\xc3\xa9\xff\xe2\x80\xa8","properties":{"time":-5}}', b"-5000"),
        (b'{"event":"A","properties":{"time":"1709647200"}}', None),
        (b'{"event":"A","properties":{"time":1709647200.5}}', None),
        (b'{"event":"A","properties":{"time":1709647200123}}', None),
        (b'{"event":"A","properties":[{"time":1709647200}]}', None),
        (b'{"event":"A","properties":{"tim', None),
        (b"99", None),
        (b"", None),
    ],
)
def test_only_the_time_of_an_event_changes_its_unit(line: bytes, in_ms: bytes | None) -> None:
    changed = restated(line, True, lambda _: 0)
    if in_ms is None:
        assert changed == line
    else:
        start, _, rest = line.rpartition(in_ms.removesuffix(b"000"))
        assert changed == start + in_ms + rest


# A folder


def test_a_folder_of_any_files_is_served_by_day(serve: Serve, http: requests.Session, tmp_path: Path) -> None:
    (tmp_path / "events" / "more").mkdir(parents=True)
    by_day = b'{"event": "A", "properties": {"time": 1.5, "n": 1}}\n\n{"event": "no newline at the end"}'
    (tmp_path / "events" / "2024-03-04.jsonl").write_bytes(by_day)
    mixed = b'{"event":"B","properties":{"time":1709596799}}\n{"event":"C","properties":{"time":1709596800}}\n'
    (tmp_path / "events" / "more" / "mixed.jsonl.gz").write_bytes(gzip.compress(mixed))
    (tmp_path / "profiles.jsonl").write_bytes(b'{"$distinct_id": "u", "$properties": {"a b": 1.0}}\n')
    _, url = serve(folder=tmp_path)
    assert export(http, url, from_date="2024-03-04", to_date="2024-03-04").content == (
        b'{"event":"A","properties":{"time":1.5,"n":1}}\n{"event":"no newline at the end"}\n'
        b'{"event":"B","properties":{"time":1709596799}}\n'
    )
    assert export(http, url).json()["event"] == "C"
    assert engage(http, url).content.endswith(b'"results":[{"$distinct_id":"u","$properties":{"a b":1.0}}]}')


def test_the_demo_data_is_what_its_manifest_says(serve: Serve, http: requests.Session) -> None:
    manifest = json.loads((demo_folder() / "manifest.json").read_text())
    _, url = serve(folder=demo_folder(), now=datetime(2013, 4, 1, tzinfo=UTC))
    lines_per_day = {}
    events: Counter[str] = Counter()
    for day in manifest["lines_per_day"]:
        lines = export(http, url, from_date=day, to_date=day).content.splitlines()
        lines_per_day[day] = len(lines)
        events.update(json.loads(line)["event"] for line in lines)
    assert lines_per_day == manifest["lines_per_day"]
    assert events == manifest["events"]
    whole = export(http, url, from_date="2013-03-01", to_date="2013-03-28").content
    assert whole.count(b"\n") == manifest["lines"]
    assert b'": ' not in whole
    assert engage(http, url).json()["total"] == manifest["profiles"]


def test_an_old_project_serves_local_days_and_wall_clocks_over_a_change_of_the_clock(
    serve: Serve, http: requests.Session
) -> None:
    _, new_url = serve(folder=demo_folder(), now=datetime(2013, 4, 1, tzinfo=UTC))
    _, old_url = serve(
        folder=demo_folder(),
        now=datetime(2013, 4, 1, tzinfo=UTC),
        project_timezone="America/New_York",
        legacy_local_time=True,
    )
    days = {"from_date": "2013-03-09", "to_date": "2013-03-11"}
    true = [json.loads(line)["properties"] for line in export(http, new_url, **days).content.splitlines()]
    true_times = {(row["$insert_id"]): row["time"] for row in true}
    # New York went from UTC-5 to UTC-4 at 2013-03-10T07:00:00Z.
    shifts: Counter[int] = Counter()
    local_day = {"from_date": "2013-03-10", "to_date": "2013-03-10"}
    rows = [json.loads(line)["properties"] for line in export(http, old_url, **local_day).content.splitlines()]
    for row in rows:
        assert datetime.fromtimestamp(row["time"], UTC).date().isoformat() == "2013-03-10"
        shift = row["time"] - true_times[row["$insert_id"]]
        assert shift == (-18000 if true_times[row["$insert_id"]] < 1362898800 else -14400)
        shifts[shift] += 1
    expected = [time for time in true_times.values() if 1362891600 <= time < 1362974400]
    assert len(rows) == len(expected)
    assert set(shifts) == {-18000, -14400}
    everything = {"from_date": "2013-02-28", "to_date": "2013-03-29"}
    assert export(http, old_url, **everything).content.count(b"\n") == 8627


# Limits


def test_the_hour_of_export_rolls(serve: Serve, http: requests.Session) -> None:
    now = [1000.0]
    _, url = serve(limits=True, clock=lambda: now[0])
    for _ in range(60):
        now[0] += 1
        assert export(http, url).status_code == 200
    refused = export(http, url)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, str(3600 - 59))
    assert refused.json() == {"error": "too many export requests in progress for this project"}
    now[0] = 1001 + 3599.9
    assert export(http, url).status_code == 429
    now[0] = 1001 + 3600
    assert export(http, url).status_code == 200
    assert export(http, url).status_code == 429


def test_an_hour_can_be_short(serve: Serve, http: requests.Session) -> None:
    _, url = serve(limits=True, hour_s=0.6)
    statuses = [engage(http, url).status_code for _ in range(61)]
    assert statuses == [200] * 60 + [429]
    time.sleep(0.6)
    assert engage(http, url).status_code == 200


def test_export_is_limited_to_three_requests_a_second(serve: Serve, http: requests.Session) -> None:
    now = [1000.0]
    _, url = serve(limits=True, retry_after=False, clock=lambda: now[0])
    refused = [export(http, url) for _ in range(4)][-1]
    assert (refused.status_code, refused.headers.get("retry-after")) == (429, None)
    now[0] += 1
    assert export(http, url).status_code == 200


def test_the_text_of_a_query_429_tells_the_limit(serve: Serve, http: requests.Session) -> None:
    now = [1000.0]
    sandbox, url = serve(limits=True, clock=lambda: now[0])
    for _ in range(60):
        assert engage(http, url).status_code == 200
    error = engage(http, url).json()["error"]
    assert "project_id: 1. 0/5 queries running concurrently and 61/60 queries running in the last hour" in error
    sandbox.forget_requests()
    sandbox.faults.next("engage", *[Fault.stall(0.4)] * 5)
    params = {"project_id": "1"}
    threads = [
        threading.Thread(
            target=requests.get, args=(f"{url}/api/query/engage", params), kwargs={"auth": SERVICE_ACCOUNT}
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    while sandbox.faults.waiting:
        time.sleep(0.01)
    error = engage(http, url).json()["error"]
    assert "6/5 queries running concurrently and 5/60 queries running in the last hour" in error
    for thread in threads:
        thread.join()
    assert engage(http, url).status_code == 200


@pytest.mark.parametrize(("count_pages", "status"), [(True, 429), (False, 200)])
def test_pages_after_the_first_may_be_free(
    serve: Serve, http: requests.Session, count_pages: bool, status: int
) -> None:
    sandbox, url = serve(limits=True, count_engage_pages=count_pages, page_size=1)
    sandbox.set_profiles([{"$distinct_id": str(n), "$properties": {}} for n in range(2)])
    session_id = [engage(http, url).json()["session_id"] for _ in range(60)][-1]
    assert engage(http, url, page="1", session_id=session_id).status_code == status


def test_an_endpoint_outside_the_plan_is_a_402(serve: Serve, http: requests.Session) -> None:
    _, url = serve(plan_402={"engage"})
    assert engage(http, url).status_code == 402
    assert export(http, url).status_code == 200


# Engage


def engage(http: requests.Session, url: str, **params: str) -> requests.Response:
    return http.post(f"{url}/api/query/engage", params={"project_id": "1"}, data=params)


def test_profiles_come_in_frozen_pages(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve(page_size=2)
    raw = [b'{"$distinct_id":"a", "$properties":{"n":1.0}}', b'{"$distinct_id":"b"}', b"[not a profile]"]
    sandbox.set_profiles(raw)
    first = engage(http, url)
    head = json.loads(first.content.split(b',"results"')[0] + b"}")
    assert {name: head[name] for name in ("page", "page_size", "status", "total")} == {
        "page": 0,
        "page_size": 2,
        "status": "ok",
        "total": 3,
    }
    assert first.content.endswith(b'"results":[' + raw[0] + b"," + raw[1] + b"]}")
    sandbox.set_profiles([])
    second = engage(http, url, page="1", session_id=head["session_id"])
    assert second.content.endswith(b'"results":[' + raw[2] + b"]}")
    assert b'"total"' not in second.content
    assert engage(http, url, page="2", session_id=head["session_id"]).json()["results"] == []


@pytest.mark.parametrize(
    "params", [{"page": "1"}, {"page": "1", "session_id": "unknown"}, {"page": "1", "where": "true", "session_id": "S"}]
)
def test_a_page_without_its_query_is_refused(serve: Serve, http: requests.Session, params: dict[str, str]) -> None:
    _, url = serve()
    if params.get("session_id") == "S":
        params = {**params, "session_id": engage(http, url).json()["session_id"]}
    response = engage(http, url, **params)
    assert (response.status_code, response.json()["error"]) == (400, "request for page in uncached query for params")
    assert response.json()["request"] == "/api/query/engage?project_id=1"


def test_a_session_expires(serve: Serve, http: requests.Session) -> None:
    now = [0.0]
    sandbox, url = serve(session_ttl_s=60, clock=lambda: now[0])
    session_id = engage(http, url).json()["session_id"]
    now[0] = 59.0
    assert engage(http, url, page="1", session_id=session_id).status_code == 200
    now[0] = 60.0
    assert engage(http, url, page="1", session_id=session_id).status_code == 400
    sandbox.faults.next("engage", Fault.expired_session())
    session_id = engage(http, url).json()["session_id"]
    assert engage(http, url, page="1", session_id=session_id).status_code == 400
    assert sandbox.faults.waiting == 0


def test_engage_takes_its_parameters_in_each_form_that_clients_use(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    sandbox.set_profiles([{"$distinct_id": name, "$properties": {"n": n}} for n, name in enumerate("abc")])
    sandbox.set_cohorts([{"id": 7, "members": ["b", "x"]}])
    cohort = {"id": 7}
    in_form = {"filter_by_cohort": json.dumps(cohort), "include_all_users": "false"}
    project = {"project_id": "1"}
    answers = [
        http.get(f"{url}/api/2.0/engage", params={**project, **in_form}),
        http.post(f"{url}/api/2.0/engage/", params={**project, **in_form}),
        http.post(f"{url}/api/query/engage", params=project, data=in_form),
        http.post(f"{url}/api/query/engage", data={**project, **in_form}),
        http.post(
            f"{url}/api/query/engage", params=project, json={"filter_by_cohort": cohort, "include_all_users": False}
        ),
    ]
    for answer in answers:
        assert [row["$distinct_id"] for row in answer.json()["results"]] == ["b"]
    everyone = engage(http, url, filter_by_cohort='{"id":7}').json()["results"]
    assert everyone == [{"$distinct_id": "b", "$properties": {"n": 1}}, {"$distinct_id": "x", "$properties": {}}]
    assert engage(http, url, filter_by_cohort='{"id":8}').status_code == 400


def test_engage_chooses_profiles_and_properties(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    sandbox.set_profiles([{"$distinct_id": name, "$properties": {"n": n, "m": 0}} for n, name in enumerate("abc")])
    sandbox.set_profiles([b'{"$distinct_id":"acme"}'], data_group_id="-1405123456789012345")

    def ids(**params: str) -> list[str]:
        return [row["$distinct_id"] for row in engage(http, url, **params).json()["results"]]

    assert ids(where='properties["n"] > 0') == ["b", "c"]
    assert ids(distinct_id="b") == ["b"]
    assert ids(distinct_ids='["c","a"]') == ["a", "c"]
    assert ids(data_group_id="-1405123456789012345") == ["acme"]
    assert ids(data_group_id="5") == []
    assert engage(http, url, output_properties='["n","z"]', page_size="1").json()["results"] == [
        {"$distinct_id": "a", "$properties": {"n": 0}}
    ]
    for wrong in (
        {"distinct_ids": "a"},
        {"page_size": "0"},
        {"where": "("},
        {"data_group_id": "x"},
    ):
        assert engage(http, url, **wrong).status_code == 400


def test_engage_counts_what_users_did_within_a_window(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve(now=NOON)
    sandbox.set_profiles([{"$distinct_id": name, "$properties": {}} for name in "abc"])
    noon_ms = round(NOON.timestamp() * 1000)
    for user, name, days_ago in (("a", "Buy", 0), ("a", "Buy", 2), ("b", "Buy", 5), ("b", "Look", 1), ("c", "Look", 0)):
        properties = {"time": noon_ms - days_ago * 86_400_000, "distinct_id": user}
        sandbox.add_events([{"event": name, "properties": properties}])
    bought = {"window": "3d", "name": "b1", "event_selectors": [{"event": "Buy"}]}
    did = {"window": "2d", "name": "b2", "event_selectors": [{"event": "Buy"}, {"event": "Look"}]}

    def ids(where: str, *behaviors: Any, **params: str) -> list[str]:
        answer = engage(http, url, where=where, behaviors=json.dumps(behaviors), **params)
        return [row["$distinct_id"] for row in answer.json()["results"]]

    assert ids('(behaviors["b1"] > 1)', bought) == ["a"]
    assert ids('behaviors["b1"] == 0', bought) == ["b", "c"]
    assert ids('behaviors["b2"] == 1', bought, did) == ["a", "b", "c"]
    assert ids('behaviors["b3"] == 0', bought) == []
    four_days_ago = str(noon_ms // 1000 - 4 * 86_400)
    assert ids('behaviors["b1"] > 0', bought, as_of_timestamp=four_days_ago) == ["b"]
    assert ids('behaviors["b1"] > 0', bought, as_of_timestamp="99999999999") == ["a"]
    first = engage(http, url, behaviors="[]", page_size="1")
    page = {"behaviors": "[]", "page_size": "1", "page": "1"}
    refused = engage(http, url, **page, session_id=first.json()["session_id"])
    assert (refused.status_code, refused.json()["error"]) == (400, "request for page in uncached query for params")
    first = engage(http, url, behaviors="[]", page_size="1", as_of_timestamp=four_days_ago)
    second = engage(http, url, **page, as_of_timestamp=four_days_ago, session_id=first.json()["session_id"])
    assert [row["$distinct_id"] for row in second.json()["results"]] == ["b"]
    sandbox.set_cohorts([{"id": 7, "members": ["b"]}])
    for wrong in (
        {"behaviors": "b1"},
        {"behaviors": ""},
        {"behaviors": json.dumps(bought)},
        {"behaviors": json.dumps([{**bought, "window": "3 days"}])},
        {"behaviors": json.dumps([{"window": "3d", "name": "b1"}])},
        {"behaviors": json.dumps([{**bought, "event_selectors": [{"event": ["Buy"]}]}])},
        {"behaviors": "[]", "filter_by_cohort": '{"id":7}'},
        {"behaviors": "[]", "as_of_timestamp": "now"},
        {"behaviors": "[]", "as_of_timestamp": "9" * 18},
    ):
        refused = engage(http, url, **wrong)
        assert refused.status_code == 400, wrong


# Faults


BODY = b"".join(line + b"\n" for line in LINES)


def refused(url: str) -> str:
    """The name of the error that requests raises."""
    with pytest.raises(requests.RequestException) as caught:
        requests.get(f"{url}/api/2.0/export", params=DAY, auth=SERVICE_ACCOUNT, timeout=10)
    return type(caught.value).__name__


@pytest.mark.parametrize("framing", ["content-length", "chunked", "close"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_body_can_be_cut_after_every_byte(serve: Serve, framing: Any, compressed: bool) -> None:
    sandbox, url = serve()
    sandbox.set_day("2024-03-05", LINES)
    sandbox.faults.next("export", Fault.framed(framing, gzip=compressed))
    head, body = wire(url)
    whole = unchunked(body)[0] if framing == "chunked" else body
    assert (gzip.decompress(whole) if compressed else whole) == BODY
    for after in range(len(whole) + 1):
        sandbox.faults.next("export", Fault.cut(after, framing, gzip=compressed))
        cut_head, cut_body = wire(url)
        assert framing == "close" or cut_head.lower() == head.lower().replace(b"\r\nconnection: close", b"")
        if framing == "chunked":
            assert unchunked(cut_body) == (whole[:after], False)
        else:
            assert cut_body == whole[:after]
        assert (b"content-length: %d" % len(whole) in cut_head) == (framing == "content-length")
        assert (b"content-encoding: gzip" in cut_head) == compressed


def test_a_cut_may_end_cleanly_or_by_a_reset(serve: Serve) -> None:
    sandbox, url = serve()
    sandbox.set_day("2024-03-05", LINES)
    sandbox.faults.next(
        "export",
        Fault.cut(-5, gzip=False, end="clean"),
        Fault.cut(20, "content-length", gzip=False, end="clean"),
        Fault.cut(10, chunk_size=4, gzip=False),
        Fault.cut(8, chunk_size=4, gzip=False),
        Fault.cut(20, end="reset"),
    )
    assert unchunked(wire(url)[1]) == (BODY[:-5], True)
    head, body = wire(url)
    assert (b"content-length: 20" in head, body) == (True, BODY[:20])
    assert wire(url)[1] == b"4\r\n%b\r\n4\r\n%b\r\n4\r\n%b" % (BODY[:4], BODY[4:8], BODY[8:10])
    assert wire(url)[1] == b"4\r\n%b\r\n4\r\n%b\r\n" % (BODY[:4], BODY[4:8])
    assert refused(url) in ("ChunkedEncodingError", "ConnectionError")


def test_chunks_may_be_of_any_size(serve: Serve) -> None:
    sandbox, url = serve(chunk_size=1)
    sandbox.set_day("2024-03-05", ["é\u2028".encode()])
    assert wire(url)[1] == b"".join(b"1\r\n%c\r\n" % byte for byte in "é\u2028\n".encode()) + b"0\r\n\r\n"


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_connection_can_end_before_any_byte(serve: Serve, end: Any) -> None:
    sandbox, url = serve()
    sandbox.faults.next("export", Fault.reset(end))
    assert refused(url) == "ConnectionError"
    assert sandbox.requests[0].status is None


def test_an_answer_can_stall_before_and_within_the_body(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    sandbox.set_day("2024-03-05", LINES)
    for fault in (Fault.stall(0.2), Fault.stall(0.2, after_bytes=5)):
        sandbox.faults.next("export", fault)
        started = time.monotonic()
        assert export(http, url).content == BODY
        assert time.monotonic() - started >= 0.2
    sandbox.faults.next("export", Fault.stall(5, after_bytes=5))
    with pytest.raises(requests.RequestException):
        http.get(f"{url}/api/2.0/export", params=DAY, timeout=0.2)


def test_a_stalled_answer_does_not_hold_up_the_end_of_the_server() -> None:
    sandbox = Sandbox(now=NOON)
    sandbox.faults.next("export", Fault.stall(60))
    errors: list[BaseException] = []

    def ask(url: str) -> None:
        try:
            requests.get(f"{url}/api/2.0/export", params=DAY, auth=SERVICE_ACCOUNT, timeout=30)
        except requests.ConnectionError as error:
            errors.append(error)

    with SandboxServer(sandbox) as server:
        asking = threading.Thread(target=ask, args=(server.url,))
        asking.start()
        while sandbox.faults.waiting:
            time.sleep(0.01)
    asking.join(5)
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("fault", "body"),
    [
        (Fault.terminated_early(), BODY + b"export terminated early\n"),
        (Fault.terminated_early("terminated early"), BODY + b"terminated early\n"),
        (Fault.half_last_line(), BODY[: 2 * len(LINES[0]) + 2 + len(LINES[0]) // 2]),
        (Fault.half_last_line(1), BODY[: 2 * len(LINES[0]) + 3]),
        (Fault.error_line("gone"), LINES[0] + b"\n" + LINES[1] + b'\n{"error":"gone"}\n' + LINES[2] + b"\n"),
        (Fault.no_final_newline(), BODY[:-1]),
        (Fault.empty(), b""),
        (Fault.body(b"\x00"), b"\x00"),
        (Fault.none(), BODY),
    ],
)
def test_a_whole_answer_can_be_wrong_inside(serve: Serve, http: requests.Session, fault: Fault, body: bytes) -> None:
    sandbox, url = serve()
    sandbox.set_day("2024-03-05", LINES)
    sandbox.faults.next("export", fault)
    response = export(http, url)
    assert (response.status_code, response.content) == (200, body)
    assert export(http, url).content == BODY


def test_an_error_can_be_any_answer(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    at = datetime(2024, 3, 5, 13, tzinfo=UTC)
    sandbox.faults.next(
        "engage",
        Fault.rate_limited(),
        Fault.rate_limited(7),
        Fault.rate_limited(at),
        Fault.slow_query(),
        Fault.unauthenticated(),
        Fault.http(503, "<html>", {"Content-Type": "text/html"}),
        Fault.http(401),
        Fault.error_in_200("oops"),
        Fault.html(),
        Fault.redirect("https://elsewhere.test/"),
    )
    answers = [http.get(f"{url}/api/query/engage?project_id=1", allow_redirects=False) for _ in range(10)]
    assert [answer.status_code for answer in answers] == [429, 429, 429, 400, 400, 503, 401, 200, 200, 302]
    assert [answer.headers.get("retry-after") for answer in answers[:3]] == [None, "7", "Tue, 05 Mar 2024 13:00:00 GMT"]
    assert answers[3].content == b"Timeout Error."
    assert answers[4].json()["error"] == "Unable to authenticate request"
    assert answers[5].headers["content-type"] == "text/html"
    assert answers[7].json() == {"request": "/api/query/engage?project_id=1", "error": "oops"}
    assert answers[8].headers["content-type"].startswith("text/html")
    assert answers[9].headers["location"] == "https://elsewhere.test/"
    assert engage(http, url).json()["status"] == "ok"


def test_a_storm_is_the_same_for_the_same_seed(serve: Serve) -> None:
    storms = []
    for _ in range(2):
        sandbox, url = serve()
        sandbox.set_day("2024-03-05", LINES)
        sandbox.faults.random(seed=5, share=0.5)
        storms.append([wire(url) for _ in range(60)])
    assert storms[0] == storms[1]
    whole = sum(body.endswith(LINES[2] + b"\n\r\n0\r\n\r\n") for _, body in storms[0])
    assert 10 < whole < 50


def test_faults_can_be_cleared(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    sandbox.faults.next("export", Fault.http(500), Fault.http(500))
    sandbox.faults.random(seed=1, share=1.0)
    assert export(http, url).status_code == 500
    sandbox.faults.clear()
    assert export(http, url).status_code == 200


# Speed


def test_a_large_day_and_many_small_requests_are_quick(serve: Serve, http: requests.Session) -> None:
    sandbox, url = serve()
    line = b'{"event":"A","properties":{"time":1709500000,"distinct_id":"u","text":"' + b"x" * 300 + b'"}}'
    sandbox.set_day("2024-03-04", [line] * 100_000)
    day = {"from_date": "2024-03-04", "to_date": "2024-03-04"}
    started = time.monotonic()
    assert export(http, url, **day).content.count(b"\n") == 100_000
    for _ in range(300):
        export(http, url)
    assert time.monotonic() - started < 5
