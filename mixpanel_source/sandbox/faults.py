"""The ways in which Mixpanel, or the network before it, has been seen to fail, on request.

Each kind follows a report of a real client or Mixpanel's own pages: bodies that end early, error objects in the
middle of an export, cut connections, 429 with and without Retry-After, 400 for a slow query or for bad credentials.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import format_datetime
from typing import Literal

Framing = Literal["chunked", "content-length", "close"]
"""How the end of a body is known: chunks, a length, or (neither) the end of the connection."""

Kind = Literal[
    "none",
    "http",
    "framed",
    "cut",
    "reset",
    "stall",
    "terminated_early",
    "half_last_line",
    "error_line",
    "no_final_newline",
    "empty",
    "error_in_200",
    "expired_session",
]

End = Literal["close", "reset", "clean"]
"""After a cut: the connection is closed, or reset, or the short body is ended as if it were whole."""


@dataclass(frozen=True)
class Fault:
    """One fault. Make it with a constructor below; the fields that a kind does not use stay at their defaults."""

    kind: Kind
    code: int = 200
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_bytes: int | None = None
    share: float | None = None
    framing: Framing | None = None
    gzip: bool | None = None
    chunk_size: int | None = None
    end: End = "close"
    seconds: float = 0.0
    text: str = ""

    @classmethod
    def none(cls) -> Fault:
        """Nothing goes wrong: a placeholder, to hit the request after the next."""
        return cls("none")

    @classmethod
    def http(cls, code: int, body: bytes | str | None = None, headers: Mapping[str, str] | None = None) -> Fault:
        """Another answer in place of the real one. Without a body: the endpoint's own error body for that status.

        A body that starts with `{` or `[` is sent as JSON, any other as plain text, unless headers name a Content-Type.
        """
        return cls("http", code=code, content=body.encode() if isinstance(body, str) else body, headers=headers or {})

    @classmethod
    def rate_limited(cls, retry_after: float | str | datetime | None = None) -> Fault:
        """429; Retry-After as seconds, as an HTTP date (give an aware datetime), as that very text, or left out."""
        if retry_after is None:
            return cls("http", code=429)
        if isinstance(retry_after, datetime):
            retry_after = format_datetime(retry_after, usegmt=True)
        return cls("http", code=429, headers={"retry-after": str(retry_after)})

    @classmethod
    def slow_query(cls) -> Fault:
        """400 "Timeout Error.": a slow query, worth another try."""
        return cls.http(400, "Timeout Error.")

    @classmethod
    def unauthenticated(cls) -> Fault:
        """400 "Unable to authenticate request": bad credentials in the form some endpoints use."""
        return cls("http", code=400, text="Unable to authenticate request")

    @classmethod
    def html(cls, code: int = 200) -> Fault:
        """A web page in place of data, as a proxy or a login page in between would send."""
        page = b"<!DOCTYPE html><html><head><title>Mixpanel</title></head><body>Please log in</body></html>"
        return cls("http", code=code, content=page, headers={"content-type": "text/html; charset=utf-8"})

    @classmethod
    def redirect(cls, location: str, code: int = 302) -> Fault:
        return cls("http", code=code, content=b"", headers={"location": location})

    @classmethod
    def body(cls, content: bytes, content_type: str = "text/plain") -> Fault:
        """200 with these very bytes."""
        return cls("http", content=content, headers={"content-type": content_type})

    @classmethod
    def empty(cls) -> Fault:
        """200 with no body at all."""
        return cls("empty")

    @classmethod
    def framed(cls, framing: Framing | None = None, gzip: bool | None = None, chunk_size: int | None = None) -> Fault:
        """The whole body in another framing or encoding than usual."""
        return cls("framed", framing=framing, gzip=gzip, chunk_size=chunk_size)

    @classmethod
    def cut(
        cls,
        after_bytes: int | None = None,
        framing: Framing | None = None,
        gzip: bool | None = None,
        end: End = "close",
        chunk_size: int | None = None,
    ) -> Fault:
        """The body stops after so many bytes, counted after gzip and before chunk framing.

        A negative number counts from the end, as in a slice; None takes a random place (seeded by `Faults.random`).
        A chunk that was announced stays announced in full, so that the cut falls inside it; a cut at the edge of a
        chunk leaves out the next chunk, or the last, empty one. `end="clean"` closes the framing properly.
        gzip None is what the request asked for; True and False force it, whatever the size of the body.
        """
        return cls("cut", after_bytes=after_bytes, framing=framing, gzip=gzip, end=end, chunk_size=chunk_size)

    @classmethod
    def reset(cls, end: Literal["close", "reset"] = "reset") -> Fault:
        """The connection ends before any byte of an answer."""
        return cls("reset", end=end)

    @classmethod
    def stall(cls, seconds: float, after_bytes: int | None = None) -> Fault:
        """Silence before the first byte of the answer, or in the middle of its body; then the rest."""
        return cls("stall", seconds=seconds, after_bytes=after_bytes)

    @classmethod
    def terminated_early(cls, text: str = "export terminated early") -> Fault:
        """The marker as an added last line, with status 200. `terminated early` is the other known form."""
        return cls("terminated_early", text=text)

    @classmethod
    def half_last_line(cls, keep_bytes: int | None = None) -> Fault:
        """The last line is cut (None: in its middle), the stream ends cleanly."""
        return cls("half_last_line", after_bytes=keep_bytes)

    @classmethod
    def error_line(cls, text: str = "Internal error while streaming the export") -> Fault:
        """An error object on a line of its own, in the middle of the body."""
        return cls("error_line", text=text)

    @classmethod
    def no_final_newline(cls) -> Fault:
        """Every line whole, the last one without its newline."""
        return cls("no_final_newline")

    @classmethod
    def error_in_200(cls, text: str = "Internal error") -> Fault:
        """Status 200 with an error object for a body."""
        return cls("error_in_200", text=text)

    @classmethod
    def expired_session(cls) -> Fault:
        """The session of the next engage page after page 0 is gone. Waits for such a page."""
        return cls("expired_session")


STORM: tuple[Fault, ...] = (
    Fault.http(500),
    Fault.http(502),
    Fault.http(503),
    Fault.http(504),
    Fault.rate_limited(0),
    Fault.slow_query(),
    Fault.reset(),
    Fault.reset(end="close"),
    Fault.cut(),
    Fault.cut(framing="content-length"),
    Fault.cut(gzip=True, end="clean"),
    Fault.terminated_early(),
    Fault.error_line(),
    Fault.half_last_line(),
    Fault.error_in_200(),
)
"""What `Faults.random` takes its faults from unless told otherwise: all of them worth another try."""


class Faults:
    """The faults to come. A fault strikes only a request that would otherwise be served: one that the credentials or
    the limits refuse leaves it in place."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, deque[Fault]] = {}
        self._random: random.Random | None = None
        self._share = 0.0
        self._kinds: Sequence[Fault] = ()
        self._endpoints: frozenset[str] | None = None

    def next(self, endpoint: str, *faults: Fault) -> None:
        """The next requests to this endpoint suffer these, in this order, each once. Its name is its path, shortened:
        `export`, `engage`, `me`, `events/names`, `schemas` and so on."""
        with self._lock:
            self._queues.setdefault(endpoint, deque()).extend(faults)

    def random(
        self, seed: int, share: float, kinds: Sequence[Fault] = STORM, endpoints: Sequence[str] | None = None
    ) -> None:
        """A storm: this share of all requests suffers one of these. The same seed and requests, the same storm."""
        with self._lock:
            self._random = random.Random(seed)
            self._share, self._kinds = share, tuple(kinds)
            self._endpoints = None if endpoints is None else frozenset(endpoints)

    def clear(self) -> None:
        """No more faults, neither scripted nor random."""
        with self._lock:
            self._queues.clear()
            self._random = None

    @property
    def waiting(self) -> int:
        """Scripted faults that no request has met yet."""
        return sum(len(queue) for queue in self._queues.values())

    def take(self, endpoint: str, follow_up: bool = False) -> Fault | None:
        """The fault for a request that has just come in."""
        with self._lock:
            queue = self._queues.get(endpoint)
            if queue and (follow_up or queue[0].kind != "expired_session"):
                return _placed(queue.popleft(), random.Random(0))
            if self._random is None or (self._endpoints is not None and endpoint not in self._endpoints):
                return None
            if self._random.random() >= self._share:
                return None
            fault = self._random.choice(self._kinds)
            return None if fault.kind == "expired_session" and not follow_up else _placed(fault, self._random)


def _placed(fault: Fault, source: random.Random) -> Fault:
    """The fault with a random place to cut at, where it names none."""
    return replace(fault, share=source.random()) if fault.kind == "cut" and fault.after_bytes is None else fault
