"""Sessions and sockets: where requests may go, how they are signed, and what their failures and limits say."""

from __future__ import annotations

import email.utils
import http.client
import http.cookiejar
import io
import ipaddress
import re
import socket
import sys
import threading
import time
import weakref
from contextlib import ExitStack, suppress
from typing import Any, Final, cast
from urllib.parse import urlsplit

import requests
import requests.adapters
import requests.auth
import requests.exceptions
import urllib3.exceptions
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from mixpanel_source import settings
from mixpanel_source.bodies import CutError, Inflater
from mixpanel_source.credentials import Credentials
from mixpanel_source.errors import ConfigError

ERROR_BODY_BYTES: Final = 64 << 10
LINE_BYTES: Final = 80 << 10
"""Most that the size of a chunk, or a trailer, may take: more than http.client takes of a header."""
TRAILERS: Final = 100
"""As many as http.client takes headers."""
NETWORK_ERRORS: Final = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
    AttributeError,  # http.client's, when another thread closes the connection
)
USER_INFO: Final = re.compile(r"//[^/@\s]*@")

_QUERIES_RUNNING = re.compile(r"(\d+)/(\d+) queries running (concurrently|in the last hour)")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-_:\[\]]+/?")


def new_session(base_url: str | None, sockets: LiveSockets) -> requests.Session:
    session = _Session()
    session.mount("https://", _Adapter(sockets))
    session.mount("http://", _Adapter(sockets))
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    if base_url is not None and base_url.startswith("http:"):
        # Loopback: a proxy from the environment would be sent the credentials in clear.
        session.trust_env = False
    return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None, whatever it says: requests reads all of a redirect into memory, even one it was told not to follow."""


class LiveSockets:
    """The sockets of a session, for ending what waits for them.

    Looking up a name is not ended, nor connecting to a SOCKS proxy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Weak, and no matter for their connections: those give a socket up before the last body is read from it.
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._is_shut_down = False

    def add(self, sock: socket.socket) -> bool:
        """False where they are shut down: `sock` is then, too."""
        with self._lock:
            self._sockets.add(sock)
            is_shut_down = self._is_shut_down
        if is_shut_down:
            _shut_down(sock)
        return not is_shut_down

    def shut_down(self) -> None:
        """For whoever reads or writes one of them, now or later, the other side has hung up."""
        with self._lock:
            self._is_shut_down = True
            sockets = list(self._sockets)
        for sock in sockets:
            _shut_down(sock)


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # closed by now, or by the other side
        # Not SSLSocket's own, which goes on without TLS: what then came would be read as if it were decrypted.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Adapter(requests.adapters.HTTPAdapter):
    """TCP keep-alive: networks drop a silent socket while Mixpanel prepares an export, which can take minutes."""

    def __init__(self, sockets: LiveSockets) -> None:
        self._sockets = sockets
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, socket_options=_socket_options())
        self._watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if not proxy.lower().startswith("socks"):
            kwargs["socket_options"] = _socket_options()
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if is_new:
            self._watch(manager)
        return manager

    def _watch(self, manager: Any) -> None:
        pools = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: _watched(pool, self._sockets) for scheme, pool in pools.items()}


def _watched(pool_class: Any, sockets: LiveSockets) -> Any:
    """A pool like `pool_class` whose connections enter their sockets in `sockets`, also while they connect."""
    base = pool_class.ConnectionCls

    class Connection(base):  # type: ignore[misc, valid-type]
        response_class = _TimedResponse

        def connect(self) -> None:
            with ExitStack() as self._connecting:
                super().connect()
            sock: Any = self.sock
            sockets.add(getattr(sock, "socket", sock))  # TLS within a proxy's TLS is no socket, but has one

        def _new_conn(self) -> socket.socket:
            if base._new_conn is not HTTPConnection._new_conn:  # to a SOCKS proxy
                return cast(socket.socket, super()._new_conn())
            try:
                sock = _connected(self, sockets, self._connecting)
            except socket.gaierror as error:
                raise NameResolutionError(self.host, self, error) from error
            except TimeoutError as error:
                raise ConnectTimeoutError(self, f"no connection to {self.host} in {self.timeout} s") from error
            except OSError as error:
                raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error
            sys.audit("http.client.connect", self, self.host, self.port)
            return sock

    class Pool(pool_class):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


class _TimedResponse(http.client.HTTPResponse):
    """An answer that ends with an OSError where it is not all there after ANSWER_TIMEOUTS, from its first byte on."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout_s = sock.gettimeout()
        if timeout_s:
            self.fp = io.BufferedReader(_Timed(self.fp.detach(), settings.ANSWER_TIMEOUTS * timeout_s))


class _Timed(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, seconds: float) -> None:
        self._raw = raw
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._until:
            raise OSError(f"the answer is not all there after {self._seconds:g} s")
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _connected(connection: Any, sockets: LiveSockets, connecting: ExitStack) -> socket.socket:
    """What urllib3's `create_connection` gives, with a twin of each socket in `sockets` until `connecting` ends.

    A twin, because a TLS handshake takes the socket itself away.
    """
    problem = OSError("the host has no address")
    host = connection._dns_host.strip("[]")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, connection.port, allowed_gai_family(), socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(connection.timeout)
            if connection.source_address:
                sock.bind(connection.source_address)
            twin = connecting.enter_context(sock.dup())
            if not sockets.add(twin):
                raise OSError("closed meanwhile")
            sock.connect(address)
            sockets.add(twin)  # a socket that had not begun to connect could not be shut down
            return sock
        except OSError as error:
            problem = error
            sock.close()
    raise problem


def _socket_options() -> list[tuple[int, int, int]]:
    options: list[tuple[int, int, int]] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    # TCP_KEEPALIVE is the Mac's name for TCP_KEEPIDLE. Seconds of silence, seconds between probes, probes.
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return [*HTTPConnection.default_socket_options, *options]


class Authorization(requests.auth.AuthBase):
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._credentials.authorization()
        return request


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
    shown = USER_INFO.sub("//***@", base_url)[:100]
    raise ConfigError(f"the base URL {shown!r} {problem}", hint="look at MP_BASE_URL")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def some_of_body(response: requests.Response) -> bytes:
    """The beginning of an error's body, b"" if it cannot be read."""
    make_chunks_strict(response.raw)
    encoding = response.headers.get("Content-Encoding", "").strip().lower().removeprefix("x-")
    if encoding not in ("gzip", "identity", ""):
        return b""
    inflater = Inflater(encoding, ERROR_BODY_BYTES)
    try:
        return next(inflater.feed(response.raw.read(ERROR_BODY_BYTES, decode_content=False)), b"")
    except (*NETWORK_ERRORS, CutError):
        return b""


def make_chunks_strict(raw: Any) -> None:
    """Where `raw` comes in chunks: refuses what http.client and urllib3 take for some.

    The size of a chunk cut after its first "0" is otherwise taken for the 0 that ends the body, a negative one reads
    for ever into memory, and trailers never end.
    """
    if not getattr(raw, "chunked", False):
        return
    answer = getattr(raw, "_fp", None)
    if answer is not None and getattr(answer, "fp", None) is not None:
        answer.fp = _WholeLines(answer.fp)


class _WholeLines:
    """A socket's file whose `readline` does not give part of a line."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._lines = 0

    def readline(self, limit: int = -1) -> bytes:
        most = limit if 0 <= limit < LINE_BYTES else LINE_BYTES
        line: bytes = self._file.readline(most)
        if line and not line.endswith(b"\n") and len(line) != limit:
            raise http.client.IncompleteRead(line[:100])
        self._lines += 1
        if self._lines > TRAILERS:
            raise http.client.HTTPException(f"more than {TRAILERS} lines follow its chunks")
        return line

    def read(self, size: int) -> bytes:
        if size < 0:
            raise http.client.HTTPException("a chunk has a negative size")
        self._lines = 0
        data: bytes = self._file.read(size)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def retry_after(value: str | None, now: float) -> float | None:
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


def is_hourly(text: str) -> bool:
    """Whether a 429 speaks of the limit per hour, rather than of requests at once. Its text counts both."""
    counts = {kind: int(used) >= int(allowed) for used, allowed, kind in _QUERIES_RUNNING.findall(text)}
    if counts:
        return counts.get("in the last hour", False)
    return "last hour" in text


def reason(error: BaseException) -> str:
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
