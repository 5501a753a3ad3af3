"""Who may ask: credentials, project, region. Mixpanel docs: Service Accounts; Project Secret."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from .metadata import WORKSPACE_ID
from .reply import ApiError

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call, Endpoint

Region = Literal["us", "eu", "in"]

_REGION_HOSTS: dict[str, Region] = {
    "mixpanel.com": "us",
    "data.mixpanel.com": "us",
    "api.mixpanel.com": "us",
    "eu.mixpanel.com": "eu",
    "data-eu.mixpanel.com": "eu",
    "api-eu.mixpanel.com": "eu",
    "in.mixpanel.com": "in",
    "data-in.mixpanel.com": "in",
    "api-in.mixpanel.com": "in",
}


def authorize(sandbox: Sandbox, endpoint: Endpoint, call: Call) -> None:
    """Check the credentials and the project. The App API has the project in the path, the others in the query."""
    credential = _credential(sandbox, call.headers)
    if credential == "project secret" and endpoint.family in ("app", "ingestion"):
        credential = None
    host = call.headers.get("host", "").partition(":")[0]
    if sandbox.region is not None and _REGION_HOSTS.get(host, sandbox.region) != sandbox.region:
        credential = None
    if credential is None:
        raise ApiError(sandbox.auth_failure, "Unable to authenticate request")
    if endpoint.family == "app":
        project_id = call.path.get("project_id", sandbox.project_id)
        workspace_id = call.path.get("workspace_id", str(WORKSPACE_ID))
        if (project_id, workspace_id) != (sandbox.project_id, str(WORKSPACE_ID)):
            raise ApiError(403)
        return
    given = call.params.get("project_id")
    if given is None and credential != "project secret":
        raise ApiError(400, "project_id is a required parameter")
    if given is not None and given != sandbox.project_id:
        raise ApiError(403)


def _credential(sandbox: Sandbox, headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return "token" if _same(value, sandbox.oauth_token) else None
    if scheme.lower() != "basic":
        return None
    # Mixpanel takes the pair un-encoded as well.
    user, _, password = (value if ":" in value else _from_base64(value)).partition(":")
    if _same(user, sandbox.username) and _same(password, sandbox.secret):
        return "service account"
    # Known clients leave out the colon after the project secret.
    return "project secret" if _same(user, sandbox.project_secret) and not password else None


def _from_base64(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _same(given: str, expected: str | None) -> bool:
    return expected is not None and hmac.compare_digest(given.encode(), expected.encode())
