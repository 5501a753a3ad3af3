"""One page of an engage walk -> an Arrow table of profiles."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa

from mixpanel_source.raw_json import as_text, elements, first_values, members, repaired

SCHEMA = pa.schema(
    [
        ("distinct_id", pa.string()),
        ("last_seen", pa.timestamp("us")),
        ("properties", pa.string()),
    ]
)
"""`last_seen` has no zone: Mixpanel does not say which one `$last_seen` is in."""


def to_arrow(page: bytes) -> pa.Table:
    """The `results` of an engage response, in order. Raises ValueError where it is not such a response.

    Each result is a row, however odd: `$properties` that is no object is kept as the JSON it is (`{}` for none or
    null), and a result that is no object is the `properties` of a row without an id.
    """
    results = first_values(members(repaired(page.decode(errors="replace")))).get("results")
    if results is None:
        raise ValueError("an engage response without `results`")
    ids: list[str | None] = []
    seen: list[datetime | None] = []
    properties: list[str] = []
    for result in elements(results):
        profile = _values(result)
        own = profile.get("$properties", "null") if result.startswith("{") else result
        ids.append(as_text(profile.get("$distinct_id")))
        seen.append(_last_seen(as_text(_values(own).get("$last_seen"))))
        properties.append("{}" if own == "null" else own)
    return pa.table({"distinct_id": ids, "last_seen": seen, "properties": properties}, schema=SCHEMA)


def sorted_parts(properties: str) -> list[str]:
    """Names and raw values of `properties` by name: the same for the same properties in another order."""
    if not properties.startswith("{"):
        return [properties]
    return [part for pair in sorted(members(properties)) for part in pair]


def _values(value: str) -> dict[str, str]:
    """The members of a raw JSON value; none where it is no object."""
    return first_values(members(value)) if value.startswith("{") else {}


def _last_seen(text: str | None) -> datetime | None:
    """`YYYY-MM-DDTHH:MM:SS` (Mixpanel docs: Default properties); None where it is not such a time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None
