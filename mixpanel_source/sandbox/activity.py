"""Events of single users, /api/query/stream/query, and scripts, /api/query/jql. Mixpanel docs: Profile Event Activity;
Custom JQL Query."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import parameters
from .counting import events_between
from .reply import ApiError, Reply, json_reply

if TYPE_CHECKING:
    from .app import Sandbox
    from .endpoints import Call

STREAM_PARAMS = frozenset({"project_id", "workspace_id", "distinct_ids", "from_date", "to_date"})
JQL_PARAMS = frozenset({"project_id", "workspace_id", "script", "params"})

FORM = "application/x-www-form-urlencoded"


def stream(sandbox: Sandbox, call: Call) -> Reply:
    """What these users did, oldest first, times in seconds as an export has them."""
    parameters.text(call.params, "distinct_ids")
    ids = set(parameters.names(call.params, "distinct_ids") or [])
    from_day, to_day = parameters.days(sandbox, call.params)
    rows: list[dict[str, object]] = []
    for event in events_between(sandbox, from_day, to_day):
        if event.distinct_id in ids:
            properties = {name: value for name, value in event.properties.items() if name != "distinct_id"}
            # The docs' example has the id under either name, from one row to the next.
            id_name = "distinct_id" if len(rows) % 2 else "$distinct_id"
            properties |= {"time": event.time_ms // 1000, id_name: event.distinct_id}
            rows.append({"event": event.name, "properties": properties})
    return json_reply(200, {"status": "ok", "results": {"events": rows}})


def jql(sandbox: Sandbox, call: Call) -> Reply:
    """What was set for the script. The sandbox runs no JavaScript: any other script is one with an error, 412."""
    if FORM not in call.headers.get("content-type", ""):
        raise ApiError(400, f"script is a required parameter of a form ({FORM})")
    script = parameters.text(call.params, "script").strip()
    params = parameters.json_value(call.params.get("params") or "{}", "params")
    if not isinstance(params, dict):
        raise ApiError(400, "Invalid JSON Format: params")
    answer = sandbox.saved.jql.get(script)
    if answer is None:
        raise ApiError(412, "the sandbox runs no JavaScript, and knows no answer to this script")
    return json_reply(200, answer(params) if callable(answer) else answer)
