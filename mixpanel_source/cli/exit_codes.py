"""Error class -> exit code."""

from __future__ import annotations

from typing import Final

from mixpanel_source.errors import (
    AccountNotFoundError,
    AuthenticationError,
    ConfigError,
    EntityNotFoundError,
    MixpanelDataError,
    RateLimitError,
    TableNotFoundError,
)

SUCCESS: Final = 0
GENERAL: Final = 1
USAGE: Final = 3
"""Wrong arguments: ours, and Typer's own usage errors."""
INTERRUPTED: Final = 130

EXIT_CODES: Final[dict[type[MixpanelDataError], int]] = {
    MixpanelDataError: GENERAL,
    AuthenticationError: 2,
    ConfigError: USAGE,
    AccountNotFoundError: 4,
    EntityNotFoundError: 4,
    TableNotFoundError: 4,
    RateLimitError: 5,
}


def exit_code(error: MixpanelDataError) -> int:
    """The code of the error's nearest listed ancestor."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)
