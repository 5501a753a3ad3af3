"""Data out of Mixpanel: the dlt source `mixpanel_source`, `load` into DuckDB, and the `mpload` command line.

Every name is imported when it is first used: `import mixpanel_source` alone costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixpanel_source.client import MixpanelClient
    from mixpanel_source.credentials import Credentials
    from mixpanel_source.discovery import Discovery
    from mixpanel_source.errors import (
        AccountExistsError,
        AccountNotFoundError,
        AuthenticationError,
        ConfigError,
        EntityNotFoundError,
        IncompleteExportError,
        MixpanelDataError,
        PlanError,
        QueryError,
        RateLimitError,
        ServerError,
        TableExistsError,
        TableNotFoundError,
        WarehouseError,
    )
    from mixpanel_source.load import load
    from mixpanel_source.new_project import init_project
    from mixpanel_source.project import Project
    from mixpanel_source.reports import Reports
    from mixpanel_source.simulation import Amount, simulate
    from mixpanel_source.source import mixpanel_source
    from mixpanel_source.typed import update_typed
    from mixpanel_source.workspace import Workspace

    __version__: str

__all__ = [
    "AccountExistsError",
    "AccountNotFoundError",
    "Amount",
    "AuthenticationError",
    "ConfigError",
    "Credentials",
    "Discovery",
    "EntityNotFoundError",
    "IncompleteExportError",
    "MixpanelClient",
    "MixpanelDataError",
    "PlanError",
    "Project",
    "QueryError",
    "RateLimitError",
    "Reports",
    "ServerError",
    "TableExistsError",
    "TableNotFoundError",
    "WarehouseError",
    "Workspace",
    "__version__",
    "init_project",
    "load",
    "mixpanel_source",
    "simulate",
    "update_typed",
]

_HOMES = {
    "Amount": "simulation",
    "Credentials": "credentials",
    "Discovery": "discovery",
    "MixpanelClient": "client",
    "Project": "project",
    "Reports": "reports",
    "init_project": "new_project",
    "load": "load",
    "mixpanel_source": "source",
    "simulate": "simulation",
    "update_typed": "typed",
    "Workspace": "workspace",
}
"""The module of each name; that of the errors is `errors`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mixpanel-source")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "0+unknown"


class _Package(ModuleType):
    """Python puts a module that was imported into its package; of `load`, the function has to stay in reach."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "load" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
