"""Whether an account works, and in which region: asked of Mixpanel, and told in terms of what to correct."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mixpanel_source import settings
from mixpanel_source.client import MixpanelClient
from mixpanel_source.credentials import Account, Credentials, Secret
from mixpanel_source.errors import (
    AuthenticationError,
    ConfigError,
    MixpanelDataError,
    PlanError,
    QueryError,
    ServerError,
)
from mixpanel_source.project import project_of
from mixpanel_source.settings import Region

_NOBODY = "mpload-auth-test"
"""A profile that is not there: asking for it reads nothing, and needs the right to read all."""
_SHOWN_PROJECTS = 10
_DAYS_COMPARED = 20 * 366
"""Two time zones that agree on as many days back are one with two names, such as US/Eastern and America/New_York."""


@dataclass(frozen=True)
class AccountCheck:
    """What Mixpanel says of an account that works. None is what it did not tell."""

    account: Account
    user: str | None = None
    project_name: str | None = None
    role: str | None = None
    """In the project's organization."""
    timezone: str | None = None
    """The project's, as Mixpanel has it."""
    warnings: tuple[str, ...] = ()

    @property
    def timezone_agrees(self) -> bool | None:
        """Whether `timezone` is the account's `project_timezone`."""
        return None if self.timezone is None else _same_zone(self.timezone, self.account.project_timezone)


def credentials_in_any_region(
    username: str,
    secret: str | Secret,
    project_id: str | int,
    region: str | None = None,
    kind: str = "service_account",
    workspace_id: str | int | None = None,
) -> Credentials:
    """Credentials as given; without a region, in the one that accepts them, which is found by asking each.

    Raises `AuthenticationError` if none does, `ConfigError` if several do.
    """
    credentials = Credentials(username, secret, project_id, region or settings.REGIONS[0], kind, workspace_id)
    if region is not None:
        return credentials
    if os.environ.get("MP_BASE_URL"):
        raise ConfigError("MP_BASE_URL stands for every region, so the region cannot be found", hint="name one")
    found = _regions_that_accept(credentials, settings.REGIONS)
    if not found:
        raise AuthenticationError(
            f"no region ({', '.join(settings.REGIONS)}) accepts the {_signature(credentials)}",
            hint=_secret_hint(credentials),
        )
    if len(found) > 1:
        raise ConfigError(
            f"several regions accept the {_signature(credentials)}: {', '.join(found)}",
            hint="name the one that the project's data are in",
        )
    return replace(credentials, region=found[0])


def check_account(account: Account) -> AccountCheck:
    """Asks who the account is, then for a profile that is not there: 2 requests, the second of the Query API's 60.

    Raises an `AuthenticationError` that names what is wrong (secret, region, project or role), `PlanError`,
    `RateLimitError` rather than wait, and `ServerError`.
    """
    credentials = account.credentials
    with project_of(account, wait=False).client() as client:
        try:
            me = _me(client)
        except AuthenticationError as error:
            _tell_secret_from_region(credentials, error)
        projects = _object(me.get("projects"))
        project = _object(projects.get(credentials.project_id))
        try:
            _ask_for_nobody(client)
        except (AuthenticationError, PlanError, QueryError) as error:
            if not me and isinstance(error, AuthenticationError) and error.status != 403:
                _tell_secret_from_region(credentials, error)
            _tell_what_is_refused(credentials, projects, error)
    organization = _object(_object(me.get("organizations")).get(str(project.get("organization_id"))))
    checked = AccountCheck(
        account,
        user=_text(me.get("user_name")) or _text(me.get("user_email")),
        project_name=_text(project.get("name")),
        role=_text(organization.get("role")),
        timezone=_text(project.get("timezone")),
    )
    return replace(checked, warnings=tuple(_warnings(checked, _object(me.get("workspaces")))))


# --- asking


def _me(client: MixpanelClient) -> dict[str, Any]:
    """What is known of the user; nothing where Mixpanel does not tell, as of a project secret, which is no user."""
    if client.credentials.kind == "project_secret":
        return {}
    try:
        return _object(client.me().get("results"))
    except (PlanError, QueryError):  # not a documented endpoint
        return {}
    except AuthenticationError as error:
        if error.status == 403:  # known, but not allowed to ask this
            return {}
        raise


def _ask_for_nobody(client: MixpanelClient) -> None:
    client.request_json("query", "POST", "/api/query/engage", data={"distinct_id": _NOBODY})


def _regions_that_accept(credentials: Credentials, regions: Iterable[Region]) -> list[Region]:
    """Those that answer; if none does, those that know the secret but answer 403, as many a proxy does, too.

    Raises ServerError if there are none of either, but one is silent.
    """
    found, forbidden = [], []
    silent = None
    for region in regions:
        with MixpanelClient(replace(credentials, region=region), wait=False) as client:
            try:
                if credentials.kind == "project_secret":
                    _ask_for_nobody(client)
                else:
                    client.me()
                found.append(region)
            except (PlanError, QueryError):  # it knows the credentials; app/me is not documented
                found.append(region)
            except AuthenticationError as error:
                if error.status == 403:
                    forbidden.append(region)
            except ServerError as error:
                silent = error
    if not found and not forbidden and silent is not None:
        raise silent
    return found or forbidden


# --- telling


def _tell_secret_from_region(credentials: Credentials, error: AuthenticationError) -> NoReturn:
    others: list[Region] = []
    if not os.environ.get("MP_BASE_URL"):  # which stands for every region
        try:
            others = _regions_that_accept(credentials, (r for r in settings.REGIONS if r != credentials.region))
        except MixpanelDataError:
            raise AuthenticationError(
                f"the {_signature(credentials)} or the region is wrong: {error.message}",
                hint="another region could not be asked; check them, or try again later",
                status=error.status,
            ) from None
    if others:
        raise AuthenticationError(
            f"the region is wrong: not {credentials.region} but {' and '.join(others)} accepts the"
            f" {_signature(credentials)}",
            hint=f'set region = "{others[0]}" for the account (MP_REGION in the environment)',
            status=error.status,
        ) from None
    raise AuthenticationError(
        f"the {_signature(credentials)} is wrong: {error.message}", hint=_secret_hint(credentials), status=error.status
    ) from None


def _tell_what_is_refused(
    credentials: Credentials, projects: dict[str, Any], error: AuthenticationError | PlanError | QueryError
) -> NoReturn:
    """What it is that the Query API refuses of credentials that it knows."""
    if isinstance(error, PlanError):
        raise PlanError(f"the project's plan is too small: {error.message}", hint=error.hint) from None
    if isinstance(error, QueryError) and error.status != 404:
        raise error
    if credentials.project_id in projects:
        raise AuthenticationError(
            f"the role is wrong: the account is in the project {credentials.project_id} but may not read its data:"
            f" {error.message}",
            hint="have its role in the project (Project settings > Service Accounts) raised",
            status=error.status,
        ) from None
    what = "project" if projects or credentials.kind == "project_secret" else "project, or the account's role in it,"
    names = [f"{number} ({_text(_object(project).get('name'))})" for number, project in projects.items()]
    known = ", ".join(names[:_SHOWN_PROJECTS]) + (" ..." if len(names) > _SHOWN_PROJECTS else "")
    raise AuthenticationError(
        f"the {what} is wrong: no rights to {credentials.project_id}: {error.message}",
        hint=f"projects of the account: {known}" if known else "look at the project id, or have its owner add you",
        status=error.status,
    ) from None


def _signature(credentials: Credentials) -> str:
    return {
        "service_account": "username or the secret",
        "project_secret": "project secret",
        "oauth_token": "OAuth token",
    }[credentials.kind]


def _secret_hint(credentials: Credentials) -> str:
    if credentials.kind == "service_account":
        return "it may have expired or be deleted: look at Organization settings > Service Accounts"
    if credentials.kind == "project_secret":
        return "look at Project settings > Access Keys"
    return "it may have expired: get another one"


def _warnings(checked: AccountCheck, workspaces: dict[str, Any]) -> Iterable[str]:
    account = checked.account
    credentials = account.credentials
    if checked.project_name is None and credentials.kind != "project_secret":
        yield f"Mixpanel does not list the project {credentials.project_id} for the account, though it answers for it"
    # In a project made since 2023, days are UTC days: its zone matters only to who has set it.
    if checked.timezone_agrees is False and (account.legacy_local_time or account.project_timezone != "UTC"):
        yield f"the project's time zone is {checked.timezone}, but project_timezone is {account.project_timezone}"
    if credentials.workspace_id is not None and workspaces:
        workspace = _object(workspaces.get(credentials.workspace_id))
        if str(workspace.get("project_id")) != credentials.project_id:
            yield f"workspace_id {credentials.workspace_id} is not a workspace of the project"


def _same_zone(one: str, other: str) -> bool:
    try:
        zones = ZoneInfo(one), ZoneInfo(other)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return one == other
    today = datetime.now(UTC)
    days = (today - timedelta(days=back) for back in range(_DAYS_COMPARED))
    return zones[0] is zones[1] or all(len({day.astimezone(zone).utcoffset() for zone in zones}) == 1 for day in days)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
