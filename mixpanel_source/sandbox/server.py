"""The sandbox over HTTP on this machine, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from types import TracebackType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import Sandbox
from .reply import CONNECTION

_KEEP_ALIVE_S = 75
_START_S = 10.0


class SandboxServer:
    """Serves a sandbox from `start` to `stop`, or within a `with` block; port 0 takes a free port."""

    def __init__(self, sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> None:
        self.sandbox = sandbox
        self._address = (host, port)
        self._thread: threading.Thread | None = None
        self._server: _Server | None = None
        self.url = ""

    def start(self) -> SandboxServer:
        """Listen. The url is known from here on."""
        listening = socket.create_server(self._address, backlog=256)
        host, port = listening.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self._server = server = _Server(self.sandbox.app)
        self._thread = threading.Thread(target=server.run, args=([listening],), name="mixpanel-sandbox", daemon=True)
        self._thread.start()
        if not server.is_up.wait(_START_S):
            raise RuntimeError(f"the sandbox did not start at {self.url}")
        return self

    def stop(self) -> None:
        """Close every connection, whatever is going on, and end the thread."""
        if self._server is not None and self._thread is not None:
            self._server.stop_soon()
            self._thread.join()
        self._server = self._thread = None

    def wait(self) -> None:
        """Until somebody else stops the server; interruptible."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)

    def __enter__(self) -> SandboxServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """uvicorn, told to stop by a call rather than by a signal."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            loop="asyncio",
        )
        super().__init__(config)
        # Broken connections are the business of this server, and not worth a line each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.is_up = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    async def main_loop(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.is_up.set()
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """At once: uvicorn's own would wait for answers under way, and a stalled one may have an hour to go."""
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.wait_closed()

    def stop_soon(self) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)


class _Protocol(H11Protocol):
    """HTTP as uvicorn speaks it, with the connection itself within the reach of the app."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inner = self.app

        async def lending(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), CONNECTION: _Connection(self)}
            await inner(scope, receive, send)

        self.app = lending

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio leaves this out for sockets it did not make; without it each small answer waits 40 ms for an ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Connection:
    """Bytes straight to the client. Once used, uvicorn sends nothing more on this connection."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self._cycle = protocol.cycle

    async def write(self, data: bytes) -> None:
        self._cycle.disconnected = True
        if not self._protocol.transport.is_closing():
            await self._protocol.flow.drain()
            self._protocol.transport.write(data)

    def close(self, reset: bool = False) -> None:
        self._cycle.disconnected = True
        transport = self._protocol.transport
        if reset:
            # A linger time of 0 turns the close into a reset (RST), as a failing host or proxy sends.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
