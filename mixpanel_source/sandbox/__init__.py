"""A local Mixpanel to run against: it holds events and profiles, keeps Mixpanel's limits, and fails on request.

It shares no code with the rest of the package, so that it can judge the client. The server needs the `sandbox` extra;
`Fault` and `demo_folder` do not.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import RequestRecord, Sandbox
    from .faults import Fault, Faults
    from .server import SandboxServer

__all__ = ["Fault", "Faults", "RequestRecord", "Sandbox", "SandboxServer", "demo_folder"]

_HOMES = {
    "Fault": ".faults",
    "Faults": ".faults",
    "RequestRecord": ".app",
    "Sandbox": ".app",
    "SandboxServer": ".server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def demo_folder() -> Path:
    """The folder of demo data: an airline's flights in March 2013. Its manifest.json says what a correct load holds."""
    return Path(__file__).parent / "demo"
