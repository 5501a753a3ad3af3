"""One page of an engage walk -> an Arrow table of profiles."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pyarrow as pa

from mixpanel_source.parsing.raw_json import as_text, elements, first_values, members, repaired

SCHEMA = pa.schema(
    [
        ("distinct_id", pa.string()),
        ("last_seen", pa.timestamp("us")),
        ("properties", pa.string()),
    ]
)
"""`last_seen` has no zone: Mixpanel does not say which one `$last_seen` is in."""

_may_need_repair = re.compile(r"\\u[dD]|[\x00-\x1f]").search


def to_arrow(page: bytes) -> pa.Table:
    """The `results` of an engage response, in order. Raises ValueError where it is not such a response."""
    text = page.decode(errors="replace")
    if _may_need_repair(text):
        text = repaired(text)
    results = first_values(members(text)).get("results")
    if results is None:
        raise ValueError("an engage response without `results`")
    ids: list[str | None] = []
    seen: list[datetime | None] = []
    properties: list[str] = []
    for result in elements(results):
        profile = first_values(members(result))
        own = profile.get("$properties", "null")
        own = "{}" if own == "null" else own
        ids.append(as_text(profile.get("$distinct_id")))
        seen.append(_last_seen(as_text(first_values(members(own)).get("$last_seen"))))
        properties.append(own)
    return pa.table({"distinct_id": ids, "last_seen": seen, "properties": properties}, schema=SCHEMA)


def _last_seen(text: str | None) -> datetime | None:
    """`YYYY-MM-DDTHH:MM:SS` (Mixpanel docs: Default properties); None where it is not such a time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None
