"""Who we are to Mixpanel: `Credentials`, and where they are looked for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import quote

from mixpanel_source import settings
from mixpanel_source.errors import AuthenticationError, ConfigError
from mixpanel_source.settings import Region

CredentialKind = Literal["service_account", "project_secret", "oauth_token"]

KINDS: Final[tuple[CredentialKind, ...]] = get_args(CredentialKind)
ENVIRONMENT: Final = ("MP_USERNAME", "MP_SECRET", "MP_PROJECT_ID", "MP_REGION")

_DIGITS = re.compile(r"[0-9]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN = re.compile(r"[\x21-\x7e]+")

_OF_THE_PROJECT = ("start_date", "data_group_ids", *settings.REPORT_TABLES)
"""Among an account's load settings: the others are of the account."""

_warned_of_project_secret = False


class Secret:
    """Text that shows itself as `***` wherever it is printed, formatted, logged or put into a dict."""

    __slots__ = ("_text",)

    def __init__(self, text: str | Secret) -> None:
        self._text: str = text._text if isinstance(text, Secret) else text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __bool__(self) -> bool:
        return bool(self._text)


@dataclass(frozen=True, init=False)
class Credentials:
    """What signs the requests for one project.

    `secret` is the service account's secret, the project secret, or the OAuth token, as `kind` says; `username`
    is the service account's and empty otherwise. Mixpanel docs: Service Accounts (reference/service-accounts),
    Project Secret (reference/project-secret). Raises `ConfigError`; no message ever holds the secret.
    """

    username: str
    secret: Secret
    project_id: str
    region: Region
    kind: CredentialKind
    workspace_id: str | None

    def __init__(
        self,
        username: str,
        secret: str | Secret,
        project_id: str | int,
        region: str,
        kind: str = "service_account",
        workspace_id: str | int | None = None,
    ) -> None:
        # Wrapped before anything can fail: a traceback that shows local variables shows `***`.
        secret = Secret(secret)
        object.__setattr__(self, "username", username)
        object.__setattr__(self, "secret", secret)
        object.__setattr__(self, "project_id", _digits("project_id", project_id))
        object.__setattr__(self, "region", _one_of("region", region, settings.REGIONS))
        object.__setattr__(self, "kind", _one_of("kind", kind, KINDS))
        object.__setattr__(
            self, "workspace_id", None if workspace_id is None else _digits("workspace_id", workspace_id)
        )
        self._check_sign_in()

    def _check_sign_in(self) -> None:
        # The revealed text stays out of this function: a traceback may show its variables.
        if problem := _problem_with_secret(self.secret, self.kind):
            raise ConfigError(problem)
        if self.kind == "service_account":
            if not self.username or self.username != self.username.strip() or _CONTROL.search(self.username):
                raise ConfigError("the username is empty, or has white space around it or a control character in it")
            if ":" in self.username:
                raise ConfigError("a username cannot hold a colon: HTTP Basic authentication ends it there")
        elif self.username:
            raise ConfigError(f"a username does not go with kind {self.kind!r}")
        if self.kind == "project_secret":
            _warn_of_project_secret()

    def authorization(self) -> str:
        """The value of the `Authorization` header. Never log it."""
        if self.kind == "oauth_token":
            return f"Bearer {self.secret.reveal()}"
        pair = f"{self.username}:{self.secret.reveal()}" if self.username else f"{self.secret.reveal()}:"
        return "Basic " + base64.b64encode(pair.encode()).decode("ascii")

    def fingerprint(self) -> str:
        """Tells these credentials from others where the secret must not be kept: a hash that nothing leads back from.

        It is another one for each project, so that nobody sees where the same secret is used.
        """
        return hashlib.blake2b(
            self.authorization().encode(), key=self.project_id.encode()[:64], digest_size=16, person=b"mpload"
        ).hexdigest()


@dataclass(frozen=True)
class Account:
    """Credentials with what else is known of the project."""

    credentials: Credentials
    name: str | None = None
    """Its name in the config file; None if it came from the environment."""
    project_timezone: str = "UTC"
    """IANA name of the project's time zone."""
    legacy_local_time: bool = False
    """True for a project created before 2023-01-01: its export days and times are wall clock in its zone
    (Mixpanel docs: Export methods)."""
    load_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of Project that the account sets, `start_date` as a date: see `accounts.SETTING_KEYS`."""

    def of_project(self, project_id: str) -> Account:
        """The account for another project, without what it says of its own one: zone, workspace, first day, groups,
        reports."""
        if project_id == self.credentials.project_id:
            return self
        return Account(
            replace(self.credentials, project_id=project_id, workspace_id=None),
            self.name,
            load_settings={name: value for name, value in self.load_settings.items() if name not in _OF_THE_PROJECT},
        )


def resolve_credentials(
    account: str | None = None,
    environ: Mapping[str, str] | None = None,
    config_path: Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> Account:
    """The account to use: the environment's, else the one named, else the config file's default, or its only one.

    `notify` is told when the environment wins over a named account. Raises `ConfigError` (a part of the environment
    is missing, or the config file is wrong), `AccountNotFoundError`, and `AuthenticationError` if there is nothing.
    """
    from mixpanel_source import accounts  # it imports this module

    environ = os.environ if environ is None else environ
    from_environment = environment_credentials(environ)
    if from_environment is not None:
        if account is not None and notify is not None:
            notify(f"using the credentials of the environment ({ENVIRONMENT[0]} ...), not the account {account!r}")
        return Account(from_environment)

    path = config_path or accounts.config_path(environ)
    if account is not None:
        return accounts.find_account(account, path)
    config = accounts.read_config(path)
    if config.used is not None:
        return config.accounts[config.used]
    if config.accounts:
        raise AuthenticationError(
            f"{path} has accounts but no default one",
            hint=f"name one: --account NAME ({', '.join(config.accounts)}), or choose it: mpload auth switch NAME",
        )
    raise AuthenticationError(
        "no Mixpanel credentials found",
        hint=f"set {', '.join(ENVIRONMENT)}, or keep an account in {path}: mpload auth add NAME;"
        " `mpload demo` needs none",
    )


def environment_credentials(environ: Mapping[str, str]) -> Credentials | None:
    """The service account the environment describes, None if it names none of the four parts."""
    values = {name: environ.get(name, "").strip() for name in ENVIRONMENT}
    missing = [name for name, value in values.items() if not value]
    if len(missing) == len(ENVIRONMENT):
        return None
    if missing:
        present = [name for name in ENVIRONMENT if name not in missing]
        raise ConfigError(
            f"the environment has {' and '.join(present)} but not {' and '.join(missing)}",
            hint=f"set all of {', '.join(ENVIRONMENT)}, or none",
        )
    username, secret, project_id, region = (values[name] for name in ENVIRONMENT)
    return Credentials(username, secret, project_id, region)


def _problem_with_secret(secret: Secret, kind: CredentialKind) -> str | None:
    text = secret.reveal()
    if not text:
        return f"the {'token' if kind == 'oauth_token' else 'secret'} is empty"
    if text != text.strip() or _CONTROL.search(text):
        return "the secret has white space around it or a control character in it"
    if kind == "oauth_token" and not _TOKEN.fullmatch(text):
        return "the token holds a character that an HTTP header cannot"
    return None


def _digits(name: str, value: str | int) -> str:
    text = str(value)
    if isinstance(value, bool) or not _DIGITS.fullmatch(text):
        raise ConfigError(f"{name} is a number such as 12345, not {text[:40]!r}")
    return text


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}, not {str(value)[:40]!r}")
    return value


def _warn_of_project_secret() -> None:
    global _warned_of_project_secret
    if not _warned_of_project_secret:
        _warned_of_project_secret = True
        warnings.warn(
            f"Mixpanel stops accepting project secrets on {settings.PROJECT_SECRET_ENDS}: use a service account",
            FutureWarning,
            stacklevel=4,
        )


def spellings(credentials: Credentials) -> list[str]:
    """The ways in which the secret could come back in a text, longest first."""
    secret = credentials.secret.reveal()
    header = credentials.authorization()
    forms = {secret, header, header.split(" ", 1)[1], quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    return sorted((form for form in forms if len(form) > 3), key=len, reverse=True)
