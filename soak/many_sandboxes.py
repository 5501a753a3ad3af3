"""Several local Mixpanels behind one address, told apart by the `project_id` that each request has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from mixpanel_source.sandbox import Sandbox, SandboxServer


def serving(sandboxes: Sequence[Sandbox]) -> SandboxServer:
    return SandboxServer(cast(Sandbox, _ManySandboxes(sandboxes)))


class _ManySandboxes:
    def __init__(self, sandboxes: Sequence[Sandbox]) -> None:
        self._sandboxes = {sandbox.project_id: sandbox for sandbox in sandboxes}
        self.app = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        [project_id] = parse_qs(scope["query_string"].decode())["project_id"]
        await self._sandboxes[project_id].app(scope, receive, send)
