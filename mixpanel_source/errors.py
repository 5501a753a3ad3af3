"""Every error a caller may want to catch. All are `MixpanelDataError`, each named for what to do next."""

from __future__ import annotations


class MixpanelDataError(Exception):
    """What happened in one line, with `hint`: what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MixpanelDataError):
    """A setting, an argument or a config file is wrong: correct it and call again."""


class AccountNotFoundError(MixpanelDataError):
    """There is no account of that name."""


class AccountExistsError(MixpanelDataError):
    """The config file already holds an account of that name."""


class AuthenticationError(MixpanelDataError):
    """No credentials, or Mixpanel refused them (401; 403 without rights; 400 "Unable to authenticate").

    `status` is Mixpanel's HTTP status, where it was asked.
    """

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class PlanError(MixpanelDataError):
    """The project's plan does not include this (402), or not dates that far back (403 "Date range exceeds ...").

    `status` is Mixpanel's HTTP status.
    """

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status

    @property
    def reaches_too_far_back(self) -> bool:
        """Whether other dates could be asked for."""
        return self.status == 403


class QueryError(MixpanelDataError):
    """Mixpanel or DuckDB refused the question itself; asking again gives the same answer.

    `status` is Mixpanel's HTTP status, where it was Mixpanel.
    """

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class EntityNotFoundError(QueryError):
    """A named event, funnel, cohort or bookmark is not known to the project."""


class RateLimitError(MixpanelDataError):
    """The request limit is used up. `retry_after` is how many seconds to wait, where it is known."""

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class ServerError(MixpanelDataError):
    """Mixpanel or the network failed, and still did after the retries: try again later.

    `is_slow` tells that the answer took too long: less at once may come. `attempts` are the requests of an export that
    failed.
    """

    def __init__(self, message: str, *, hint: str | None = None, is_slow: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_slow = is_slow
        self.attempts = 0


class IncompleteExportError(MixpanelDataError):
    """An export never came whole, or held more unreadable lines than `max_rejected` allows. Nothing of it was kept.

    `attempts` are the requests that it took.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts = 0


class WarehouseError(MixpanelDataError):
    """The database file cannot be read or written: it is locked, damaged, full, or not a database."""


class TableExistsError(MixpanelDataError):
    """A table of that name exists already."""


class TableNotFoundError(MixpanelDataError):
    """The database holds no table of that name."""
