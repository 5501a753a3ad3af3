"""Who am I: GET /api/app/me. Undocumented; clients read the project's time zone from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .metadata import WORKSPACE_ID
from .reply import Reply, json_reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

PARAMS: frozenset[str] = frozenset()

_ORGANIZATION_ID = 5
_DOMAINS = {None: "mixpanel.com", "us": "mixpanel.com", "eu": "eu.mixpanel.com", "in": "in.mixpanel.com"}


def me(sandbox: Sandbox, call: Call) -> Reply:
    """The service account, with the one project and its one workspace."""
    project = {
        "name": "Sandbox",
        "organization_id": _ORGANIZATION_ID,
        "timezone": sandbox.project_timezone,
        "has_workspaces": True,
        "domain": _DOMAINS[sandbox.region],
        "type": "PROJECT",
    }
    workspace = {
        "id": WORKSPACE_ID,
        "name": "All Project Data",
        "project_id": int(sandbox.project_id),
        "is_default": True,
        "is_global": True,
    }
    results = {
        "user_id": 1,
        "user_email": "sandbox@mixpanel.test",
        "user_name": sandbox.username,
        "organizations": {str(_ORGANIZATION_ID): {"id": _ORGANIZATION_ID, "name": "Sandbox", "role": "owner"}},
        "projects": {sandbox.project_id: project},
        "workspaces": {str(WORKSPACE_ID): workspace},
    }
    return json_reply(200, {"status": "ok", "results": results})
