"""An answer, on its way from a handler to the wire: spoiled if a fault says so, encoded, framed, sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Literal, Protocol

from starlette.types import Scope, Send

from .data import Block, gzipped
from .faults import Fault, Framing
from .lines import dump

Family = Literal["export", "query", "app", "ingestion"]
"""The families of hosts and paths, each with its own error bodies."""

GZIP_FROM_BYTES = 1400
"""A body over this size is compressed for a client that accepts it. Mixpanel docs: Raw Event Export."""

CONNECTION = "mixpanel_sandbox.connection"
"""The key in the ASGI scope's extensions under which the server lends its connection."""

_JOIN_UP_TO_BYTES = 4_000_000

ERROR_TEXTS = {
    400: "Bad request",
    401: "Unable to authenticate request",
    402: "Your account has been blocked because payment is required. Please visit mixpanel.com/get-support",
    403: "You do not have permission to access this project",
    404: "Not found",
    405: "Method not allowed",
    429: "Rate limit exceeded",
    500: "Internal server error",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
}
EXPORT_429 = "too many export requests in progress for this project"


class Connection(Protocol):
    """The connection under a request, for answers that no well-behaved server would send."""

    async def write(self, data: bytes) -> None: ...

    def close(self, reset: bool = False) -> None: ...


class ApiError(Exception):
    """A request that is refused; plain: the text is the whole body."""

    def __init__(
        self, status: int, text: str | None = None, *, plain: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.text = ERROR_TEXTS.get(status, "Error") if text is None else text
        self.plain = plain
        self.headers = dict(headers or {})
        super().__init__(self.text)


@dataclass(frozen=True)
class Reply:
    status: int
    blocks: Sequence[Block]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = "content-length"

    @property
    def body(self) -> bytes:
        return b"".join(block.plain for block in self.blocks)


@dataclass(frozen=True)
class Wire:
    """What is sent: the body after its content encoding, and how its end is told."""

    status: int
    headers: list[tuple[str, str]]
    parts: list[bytes]
    framing: Framing
    chunk_size: int

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))


def json_reply(status: int, value: object, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, [Block(dump(value))], headers=headers or {})


def error_reply(family: Family, target: str, error: ApiError) -> Reply:
    """The error in the shape its family uses; target is the path with its query, which Query API errors repeat."""
    if error.plain:
        return Reply(error.status, [Block(error.text.encode())], "text/plain", error.headers)
    if family == "app":
        return json_reply(error.status, {"status": "error", "error": error.text}, error.headers)
    if family == "ingestion":
        status = HTTPStatus(error.status).phrase
        return json_reply(error.status, {"code": error.status, "error": error.text, "status": status}, error.headers)
    if family == "export" and error.status == 429:
        return json_reply(429, {"error": EXPORT_429}, error.headers)
    return json_reply(error.status, {"request": target, "error": error.text}, error.headers)


def spoiled(reply: Reply, fault: Fault, family: Family, target: str) -> Reply:
    """The reply after a fault that changes what it says. Faults of the connection leave it as it is."""
    match fault.kind:
        case "http":
            if fault.content is None:
                error = ApiError(fault.code, fault.text or None, headers=fault.headers)
                return error_reply(family, target, error)
            is_json = fault.content.startswith((b"{", b"["))
            headers = {name.lower(): value for name, value in fault.headers.items()}
            content_type = headers.pop("content-type", "application/json" if is_json else "text/plain")
            return Reply(fault.code, [Block(fault.content)], content_type, headers)
        case "error_in_200":
            return error_reply(family, target, ApiError(200, fault.text))
        case "empty":
            return replace(reply, blocks=[])
        case "terminated_early":
            return replace(reply, blocks=[*reply.blocks, Block(fault.text.encode() + b"\n")])
        case "error_line":
            lines = reply.body.split(b"\n")
            lines.insert(len(lines) // 2, dump({"error": fault.text}))
            return replace(reply, blocks=[Block(b"\n".join(lines))])
        case "no_final_newline":
            return replace(reply, blocks=[Block(reply.body.removesuffix(b"\n"))])
        case "half_last_line":
            body = reply.body.removesuffix(b"\n")
            start = body.rfind(b"\n") + 1
            keep = (len(body) - start) // 2 if fault.after_bytes is None else fault.after_bytes
            return replace(reply, blocks=[Block(body[: start + keep])])
        case _:
            return reply


def encoded(reply: Reply, accepts_gzip: bool, fault: Fault, level: int, chunk_size: int) -> Wire:
    """The reply as it will be sent, with the fault's framing and encoding, and cut if the end is to look clean."""
    if fault.gzip is None:
        ready = any(block.ready_gzip is not None for block in reply.blocks)
        compress = accepts_gzip and (ready or sum(len(block.plain) for block in reply.blocks) > GZIP_FROM_BYTES)
    else:
        compress = fault.gzip
    parts = gzipped(reply.blocks or [Block()], level) if compress else [block.plain for block in reply.blocks]
    headers = [("content-type", reply.content_type), *reply.headers.items()]
    if compress:
        headers.append(("content-encoding", "gzip"))
    wire = Wire(reply.status, headers, parts, fault.framing or reply.framing, fault.chunk_size or chunk_size)
    if wire.size <= _JOIN_UP_TO_BYTES:
        wire = replace(wire, parts=[b"".join(parts)])
    if fault.kind == "cut" and fault.end == "clean":
        wire = replace(wire, parts=[b"".join(parts)[: _cut_at(fault, wire.size)]])
    return wire


async def send_reply(wire: Wire, fault: Fault, scope: Scope, send: Send) -> None:
    """Send it: through the ASGI server where HTTP allows the answer, else by writing to the connection itself."""
    if fault.kind == "reset":
        _connection(scope).close(reset=fault.end == "reset")
        return
    if fault.kind == "stall" and fault.after_bytes is None:
        await asyncio.sleep(fault.seconds)
    if fault.kind == "cut" and fault.end != "clean":
        await _send_cut(wire, _cut_at(fault, wire.size), fault.end == "reset", _connection(scope))
    elif wire.framing == "close":
        connection = _connection(scope)
        await connection.write(_head(wire))
        async for piece in _pieces(wire, fault):
            await connection.write(piece)
        connection.close()
    else:
        headers = _framed_headers(wire) if wire.framing == "content-length" else wire.headers
        raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": wire.status, "headers": raw_headers})
        async for piece in _pieces(wire, fault):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _send_cut(wire: Wire, after: int, reset: bool, connection: Connection) -> None:
    await connection.write(_head(wire))
    body = b"".join(wire.parts)
    if wire.framing == "chunked":
        for start in range(0, after, wire.chunk_size):
            chunk = body[start : start + wire.chunk_size]
            await connection.write(b"%x\r\n" % len(chunk) + chunk[: after - start])
            if start + len(chunk) <= after:
                await connection.write(b"\r\n")
    else:
        await connection.write(body[:after])
    connection.close(reset=reset)


async def _pieces(wire: Wire, fault: Fault) -> AsyncIterator[bytes]:
    """The body in pieces of at most chunk_size bytes, with a stall where the fault has one."""
    stall_at = fault.after_bytes if fault.kind == "stall" else None
    sent = 0
    for part in wire.parts:
        start = 0
        while start < len(part):
            end = min(start + wire.chunk_size, len(part))
            if stall_at is not None and sent <= stall_at < sent + end - start:
                end = start + stall_at - sent
            if end > start:
                yield part[start:end]
            sent += end - start
            start = end
            if sent == stall_at:
                stall_at = None
                await asyncio.sleep(fault.seconds)


def _cut_at(fault: Fault, size: int) -> int:
    if fault.after_bytes is None:
        return int((fault.share or 0.0) * size)
    return max(0, size + fault.after_bytes) if fault.after_bytes < 0 else min(fault.after_bytes, size)


def _framed_headers(wire: Wire) -> list[tuple[str, str]]:
    framing = {
        "chunked": ("transfer-encoding", "chunked"),
        "content-length": ("content-length", str(wire.size)),
        "close": ("connection", "close"),
    }
    return [*wire.headers, framing[wire.framing]]


def _head(wire: Wire) -> bytes:
    lines = [f"HTTP/1.1 {wire.status} {HTTPStatus(wire.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in _framed_headers(wire)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _connection(scope: Scope) -> Connection:
    extensions = scope.get("extensions") or {}
    if CONNECTION not in extensions:
        raise RuntimeError("this fault cuts the connection, which only SandboxServer lets an answer do")
    connection: Connection = extensions[CONNECTION]
    return connection
