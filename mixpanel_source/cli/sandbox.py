"""The local Mixpanel, where its extra is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpanel_source.errors import ConfigError, MixpanelDataError

if TYPE_CHECKING:
    from mixpanel_source.sandbox import SandboxServer


@contextmanager
def open_sandbox(folder: Path, port: int = 0, **options: Any) -> Iterator[SandboxServer]:
    """A server that serves; `options` are those of Sandbox. Raises where the extra is not installed."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", hint="it holds events/*.jsonl, profiles.jsonl, saved.json")
    try:
        from mixpanel_source.sandbox import Sandbox, SandboxServer
    except ModuleNotFoundError as error:
        raise MixpanelDataError(
            f"the sandbox needs {error.name}, which is not installed", hint="pip install 'mixpanel-source[sandbox]'"
        ) from None
    server = SandboxServer(Sandbox(folder, **options), port=port)
    try:
        server.start()
    except OSError as error:
        raise MixpanelDataError(
            f"cannot listen on port {port}: {os.strerror(error.errno or 0)}", hint="choose another one; 0 is a free one"
        ) from None
    try:
        yield server
    finally:
        server.stop()


def parse_moment(name: str, text: str | None) -> datetime | None:
    """ISO 8601, UTC where it has no zone; `name` is the option's, for the error. Raises ConfigError."""
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise ConfigError(f"{name} {text!r} is not a moment", hint="give it as 2013-03-29T12:00:00Z") from None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def environment(server: SandboxServer) -> dict[str, str]:
    """What makes mpload, or any user of the package, speak to the server."""
    sandbox = server.sandbox
    return {
        "MP_BASE_URL": server.url,
        "MP_USERNAME": sandbox.username,
        "MP_SECRET": sandbox.secret,
        "MP_PROJECT_ID": sandbox.project_id,
        "MP_REGION": sandbox.region or "us",
    }
