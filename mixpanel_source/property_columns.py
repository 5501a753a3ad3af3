"""What the typed tables are called, and their columns, and of what type: pure functions of names and values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

JsonType = Literal["boolean", "integer", "bigint", "double", "bignumber", "string", "array", "object", "null"]
"""The type of a JSON value, numbers by what holds them without losing a digit.

`integer` has up to 15 digits, which a double has room for, too; `bigint` more; `bignumber` is one that neither BIGINT
nor DOUBLE can hold, such as 1e400.
"""

EVENT_COLUMNS: Final = (
    ("event_name", "VARCHAR"),
    ("event_time", "TIMESTAMPTZ"),
    ("event_date", "DATE"),
    ("distinct_id", "VARCHAR"),
    ("insert_id", "VARCHAR"),
    ("event_id", "VARCHAR"),
    ("device_id", "VARCHAR"),
    ("user_id", "VARCHAR"),
    ("processed_at", "TIMESTAMPTZ"),
)
"""The columns that an event's typed table shares with `events`."""
PROFILE_COLUMNS: Final = (("distinct_id", "VARCHAR"), ("last_seen", "TIMESTAMP"), ("_dlt_load_id", "VARCHAR"))
"""The columns that the typed table of profiles shares with `profiles`."""

PROFILES: Final = "profiles"
CATALOG: Final = "properties_catalog"
TYPED_TABLES: Final = "typed_tables"
TYPED_DAYS: Final = "typed_days"

IN_SHARED_COLUMNS: Final = frozenset(
    {"time", "distinct_id", "$insert_id", "$device_id", "$user_id", "mp_processing_time_ms"}
)
"""Properties of events that a shared column holds: they get none of their own."""
_TAKEN_COLUMNS: Final = frozenset(name for name, _ in (*EVENT_COLUMNS, *PROFILE_COLUMNS))
_TAKEN_TABLES: Final = frozenset({PROFILES, CATALOG, TYPED_TABLES, TYPED_DAYS})

_PLAIN: Final = re.compile(r"[a-z](_?[a-z0-9])*_?")
_WORD: Final = re.compile(r"[^\W_]+")
_STYLES: Final = (
    ("title", re.compile(r"[A-Z][a-z0-9]*( [A-Z][a-z0-9]*)*")),
    ("sentence", re.compile(r"[A-Z][a-z0-9]*( [a-z0-9]+)+")),
    ("camel", re.compile(r"[a-z][a-z0-9]*([A-Z][a-z0-9]*)+")),
)
"""Ways to write a name whose words and style together say all of it."""
_STEM_CHARS: Final = 48


def column_name(property_: str) -> str:
    """The column of a property. No two properties share one, in any case, whichever others there are.

    `plan` stays `plan`, `$plan` is `_plan`, `Plan` is `plan__title`; what no style tells ends with a hash.
    """
    return _identifier(property_, _TAKEN_COLUMNS)


def table_name(event: str) -> str:
    """The typed table of an event: as `column_name`."""
    return _identifier(event, _TAKEN_TABLES)


def _identifier(name: str, taken: frozenset[str]) -> str:
    """One of three kinds that cannot meet: without `__`, with a style behind it, with a hash behind it."""
    if _PLAIN.fullmatch(name) and name not in taken:
        return name
    if name.startswith("$") and _PLAIN.fullmatch(name, 1) and f"_{name[1:]}" not in taken:
        return f"_{name[1:]}"
    for style, pattern in _STYLES:
        if pattern.fullmatch(name):
            words = re.sub(r"(?<!^)(?=[A-Z])", "_", name) if style == "camel" else name.replace(" ", "_")
            return f"{words.lower()}__{style}"
    stem = "_".join(_WORD.findall(name)).lower()[:_STEM_CHARS].strip("_")
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{stem if stem[:1].isalpha() else f'p_{stem}'.strip('_')}__{digest}"


def sql_type(json_types: Iterable[JsonType]) -> str | None:
    """The type that holds values of all of `json_types`; None where there are none but nulls.

    VARCHAR holds the text of any value. It depends on the set alone, so no order of loading changes it, and a type
    that is added never narrows it.
    """
    seen = frozenset(json_types) - {"null"}
    if not seen:
        return None
    for type_, held in _HELD_BY:
        if seen <= held:
            return type_
    return "VARCHAR"


_HELD_BY: Final[tuple[tuple[str, frozenset[JsonType]], ...]] = (
    ("BOOLEAN", frozenset({"boolean"})),
    ("BIGINT", frozenset({"integer", "bigint"})),
    ("DOUBLE", frozenset({"integer", "double"})),
    ("JSON", frozenset({"array", "object"})),
)


@dataclass(frozen=True)
class PropertyColumn:
    """The property `name` of an event, or of profiles where `event` is None, and its column.

    `json_types` are all that were ever seen, in the order of their names; `rows` are those that hold a value other than
    null now. `type` is None, and there is no such column yet, while there were only nulls.
    """

    event: str | None
    name: str
    json_types: tuple[JsonType, ...] = ()
    rows: int = 0

    @property
    def column(self) -> str:
        return column_name(self.name)

    @property
    def type(self) -> str | None:
        return sql_type(self.json_types)
