"""A server that answers each request with one attack on the client: it sends what no HTTP library would."""

from __future__ import annotations

import gzip
import itertools
import re
import socket
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

LINE = b'{"event":"E","properties":{"time":1709251200000,"distinct_id":"u","$insert_id":"i","n":1}}\n'
_MIB = 1 << 20


@dataclass(frozen=True)
class Attack:
    """`parts` gives what is written to the client, for ever or to an end, for `evil`: where credentials must not go."""

    name: str
    parts: Callable[[str], Iterator[bytes]]
    harmless_to: tuple[str, ...] = ()
    """The targets for which it is a right answer, if an odd one."""


def head(status: str = "200 OK", *headers: str, content_type: str = "text/plain") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *headers, "", ""]).encode()


CHUNKED = "Transfer-Encoding: chunked"
GZIP = "Content-Encoding: gzip"
EXABYTE = f"Content-Length: {10**18}"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def endless(data: bytes) -> Iterator[bytes]:
    return itertools.repeat(chunk(data))


def _gzip_piece(data: bytes) -> bytes:
    """Of a deflate stream that goes on: it can be repeated."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush(zlib.Z_FULL_FLUSH)


_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def endless_gzip(data: bytes) -> Iterator[bytes]:
    yield chunk(_GZIP_HEAD)
    yield from endless(_gzip_piece(data))


def whole(body: bytes, *headers: str, status: str = "200 OK", content_type: str = "text/plain") -> Iterator[bytes]:
    yield head(status, f"Content-Length: {len(body)}", *headers, content_type=content_type)
    yield body


def _body(
    *parts: Callable[[], Iterable[bytes]] | bytes, headers: tuple[str, ...] = (CHUNKED,), status: str = "200 OK"
) -> Parts:
    def give(evil: str) -> Iterator[bytes]:
        yield head(status, *headers)
        for part in parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from part()

    return give


Parts = Callable[[str], Iterator[bytes]]


def _raw(before: bytes, for_ever: bytes) -> Parts:
    return lambda evil: itertools.chain([before], itertools.repeat(for_ever))


def _drip(before: bytes, byte: bytes, every_s: float = 0.2) -> Parts:
    def give(evil: str) -> Iterator[bytes]:
        yield before
        while True:
            time.sleep(every_s)
            yield byte

    return give


def _redirect(status: str, target: str) -> Attack:
    def give(evil: str) -> Iterator[bytes]:
        yield from whole(b"", f"Location: {target.format(evil=evil)}", status=status)

    return Attack(f"redirect: {status} to {target}", give)


def _nested(depth: int, tail: bytes = b"") -> bytes:
    return b'{"event":"E","properties":{"time":1709251200000,"a":' + b"[" * depth + b"]" * depth + b"}}\n" + tail


def _long_line(megabytes: int) -> Iterator[bytes]:
    yield chunk(b'{"event":"E","properties":{"time":1709251200000,"a":"')
    for _ in range(megabytes):
        yield chunk(b"a" * _MIB)
    yield chunk(b'"}}\n') + b"0\r\n\r\n"


def _long_line_gzip(evil: str) -> Iterator[bytes]:
    yield head("200 OK", CHUNKED, GZIP)
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield chunk(deflater.compress(b'{"event":"E","properties":{"a":"') + deflater.flush(zlib.Z_SYNC_FLUSH))
    for _ in range(1024):
        if piece := deflater.compress(b"a" * _MIB):
            yield chunk(piece)
    yield chunk(deflater.compress(b'"}}\n') + deflater.flush()) + b"0\r\n\r\n"


def _many(text: bytes, megabytes: int, last: bytes) -> bytes:
    return text * (megabytes * _MIB // len(text)) + last


def _finite(body: Callable[[], bytes], *headers: str, content_type: str = "text/plain") -> Parts:
    return lambda evil: whole(body(), *headers, content_type=content_type)


REDIRECTS = ("301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect")

ATTACKS: tuple[Attack, ...] = (
    Attack("endless lines", _body(lambda: endless(LINE * 10_000))),
    Attack("endless blank lines", _body(lambda: endless(b"\n" * _MIB))),
    Attack("endless zeros", _body(lambda: endless(bytes(_MIB)))),
    Attack("endless zeros without framing", _body(lambda: itertools.repeat(bytes(_MIB)), headers=())),
    Attack("a length of an exabyte", _body(lambda: itertools.repeat(LINE * 10_000), headers=(EXABYTE,))),
    Attack("endless JSON", _body(chunk(b'{"results":['), lambda: endless(b'{"$distinct_id":"u"},' * 10_000))),
    Attack("gzip bomb of lines", _body(lambda: endless_gzip(LINE * 100_000), headers=(CHUNKED, GZIP))),
    Attack("gzip bomb of blank lines", _body(lambda: endless_gzip(b"\n" * 8 * _MIB), headers=(CHUNKED, GZIP))),
    Attack("gzip bomb of zeros", _body(lambda: endless_gzip(bytes(8 * _MIB)), headers=(CHUNKED, GZIP))),
    Attack("gzip of nothing, endless", _body(lambda: endless(gzip.compress(b"") * 1000), headers=(CHUNKED, GZIP))),
    Attack(
        "error with a gzip bomb in a gzip bomb",
        _body(
            lambda: endless(gzip.compress(gzip.compress(bytes(64 * _MIB)) * 50)),
            headers=(CHUNKED, "Content-Encoding: gzip, gzip"),
            status="500 Internal Server Error",
        ),
    ),
    Attack(
        "error with an endless chunk size",
        _body(lambda: itertools.repeat(b"0" * _MIB), status="400 Bad Request"),
    ),
    Attack("error with an endless body", _body(lambda: endless(b"a" * _MIB), status="403 Forbidden")),
    Attack("a line of 1 GB", _body(lambda: _long_line(1024))),
    Attack("a line of 1 GB, gzip", _long_line_gzip),
    Attack("nested a million deep", _finite(lambda: _nested(10**6)), ("export",)),
    Attack("nested 30 million deep", _finite(lambda: _nested(30 * 10**6))),
    Attack("deep JSON", _finite(lambda: b'{"results":' + b"[" * 10**6 + b"]" * 10**6 + b"}"), ("export",)),
    Attack("JSON nested, never closed", _finite(lambda: b'{"results":[{"a":' * 3_000_000)),
    Attack("JSON of many empty lists", _finite(lambda: b'{"results":[' + _many(b"[],", 100, b"[]]}"))),
    Attack("JSON of many numbers", _finite(lambda: b'{"results":[' + _many(b"1,", 100, b"1]}"))),
    Attack("JSON of one number", _finite(lambda: b'{"results":[],"total":' + b"9" * 50 * _MIB + b"}")),
    Attack("many lines that are no events", _finite(lambda: _many(b"{}\n", 60, LINE))),
    Attack("many lines that are not JSON", _finite(lambda: _many(b"[\n", 60, LINE))),
    Attack("web page", _finite(lambda: b"<!DOCTYPE html><html><body>Log in</body></html>", content_type="text/html")),
    Attack("web page of 1 GB", _body(chunk(b"<html>"), lambda: itertools.repeat(chunk(b"a" * _MIB), 1024))),
    Attack("picture", _finite(lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40, content_type="image/png")),
    Attack("JSON list", _finite(lambda: b"[]", content_type="application/json"), ("JSON",)),
    Attack("JSON text", _finite(lambda: b'"yes"', content_type="application/json")),
    Attack("UTF-16", _finite(lambda: '{"results":[]}'.encode("utf-16"), content_type="application/json")),
    Attack("br, which was not asked for", _finite(lambda: LINE, "Content-Encoding: br")),
    Attack("gzip that is none", _finite(lambda: LINE, GZIP)),
    Attack("a chunk of negative size", _body(b"-1\r\n", lambda: itertools.repeat(LINE * 10_000))),
    Attack("a chunk of endless size", _body(lambda: itertools.repeat(b"0" * _MIB))),
    Attack("chunks with endless extensions", _body(lambda: itertools.repeat(b"1;" + b"a" * 60_000 + b"\r\n\n\r\n"))),
    Attack("an endless trailer line", _body(chunk(LINE), b"0\r\nX: ", lambda: itertools.repeat(b"a" * _MIB))),
    Attack("endless trailers", _body(chunk(LINE), b"0\r\n", lambda: itertools.repeat(b"X: a\r\n" * 10_000))),
    Attack("endless headers", _raw(b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 1000)),
    Attack("an endless header", _raw(b"HTTP/1.1 200 OK\r\nX: ", b"a" * _MIB)),
    Attack("an endless status line", _raw(b"HTTP/1.1 200 ", b"a" * _MIB)),
    Attack("endless continues", _raw(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)),
    Attack("not HTTP", _raw(b"", b"SSH-2.0-OpenSSH_9.6\r\n" * 1000)),
    Attack("nothing, and reset", lambda evil: iter(())),
    Attack("429 for ten years", lambda evil: whole(b"", "Retry-After: 315360000", status="429 Too Many Requests")),
    Attack("503 for ten years", lambda evil: whole(b"", "Retry-After: 315360000", status="503 Unavailable")),
    Attack("429 for less than nothing", lambda evil: whole(b"", "Retry-After: -5", status="429 Too Many Requests")),
    Attack("dripping body", _drip(head("200 OK", CHUNKED), b"1\r\n\n\r\n")),
    Attack("dripping body with a length", _drip(head("200 OK", f"Content-Length: {10**6}"), b"\n")),
    Attack("dripping head", _drip(b"HTTP/1.1 200 OK\r\nX: ", b"a")),
    Attack("dripping error", _drip(head("500 Internal Server Error", CHUNKED), b"1\r\na\r\n")),
    *(_redirect(status, "{evil}/api") for status in REDIRECTS),
    _redirect("302 Found", "//evil.invalid/api"),
    _redirect("302 Found", "file:///etc/passwd"),
    Attack(
        "redirect with an endless body",
        lambda evil: itertools.chain([head("302 Found", CHUNKED, f"Location: {evil}/")], endless(b"a" * _MIB)),
    ),
    Attack(
        "redirect with a gzip bomb",
        lambda evil: itertools.chain(
            [head("302 Found", CHUNKED, GZIP, f"Location: {evil}/")], endless_gzip(bytes(8 * _MIB))
        ),
    ),
    Attack("other hints of another place", lambda evil: whole(
        b'{"next":"%b","results":"none"}' % evil.encode(), f"Refresh: 0; url={evil}/", f"Content-Location: {evil}/",
        f"Link: <{evil}/>; rel=next", f'Alt-Svc: h2="{evil}"', "Set-Cookie: a=b; Domain=localhost")),
    Attack("401 that asks for another way", lambda evil: whole(
        b"", f'WWW-Authenticate: Digest realm="{evil}", nonce="1", Basic realm="a"', status="401 Unauthorized")),
    Attack("407 as from a proxy", lambda evil: whole(
        b"", "Proxy-Authenticate: Basic", f"Location: {evil}/", status="407 Proxy Authentication Required")),
)  # fmt: skip


@dataclass
class HostileServer:
    """Answers with `attack` until it is given another; `requests` counts what came, and `heard` keeps them."""

    attack: Attack | None = None
    evil: str = ""
    requests: int = 0
    heard: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hostile = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HostileServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    hostile: HostileServer


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        hostile = self.server.hostile
        connection: socket.socket = self.request
        connection.settimeout(60)
        attack = hostile.attack
        try:
            hostile.heard.append(_request(connection))
            hostile.requests += 1
            if attack is not None:
                for part in attack.parts(hostile.evil):
                    connection.sendall(part)
        except OSError:
            return
        finally:
            if attack is not None and attack.name.endswith("reset"):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _request(connection: socket.socket) -> bytes:
    """Head and body: what is left unread when a connection is closed becomes a reset."""
    heard = b""
    length = 0
    while len(heard) < length or b"\r\n\r\n" not in heard:
        if not (some := connection.recv(65536)):
            break
        heard += some
        if (end := heard.find(b"\r\n\r\n")) >= 0:
            found = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", heard[:end])
            length = end + 4 + (int(found[1]) if found else 0)
    return heard
