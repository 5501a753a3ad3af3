"""What people have saved in the project, rather than tracked: cohorts, funnels, reports, annotations and the like."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
JqlAnswer = Callable[[Any], Any] | Sequence[Any]

FILE_NAME = "saved.json"


@dataclass(frozen=True)
class Cohort:
    """`members` are distinct_ids, with a profile or without; `count` is their number unless it is to lag behind."""

    id: int
    name: str = ""
    members: list[str] = field(default_factory=list)
    description: str = ""
    is_visible: bool = True
    created: str = "2024-01-01 00:00:00"
    count: int | None = None


@dataclass(frozen=True)
class Step:
    event: str
    label: str | None = None


@dataclass(frozen=True)
class Funnel:
    """`length` and `length_unit` are the time a user has for all steps."""

    funnel_id: int
    name: str
    steps: list[Step]
    length: int = 7
    length_unit: str = "day"


class Saved:
    """All of it; from the folder's saved.json, if there is one, with a list under the name of each attribute."""

    def __init__(self, folder: Path | None) -> None:
        path = None if folder is None else folder / FILE_NAME
        rows: dict[str, Any] = json.loads(path.read_text("utf-8")) if path is not None and path.exists() else {}
        self.cohorts = cohorts_of(rows.pop("cohorts", []))
        self.funnels = funnels_of(rows.pop("funnels", []))
        self.bookmarks: Rows = rows.pop("bookmarks", [])
        self.annotations: Rows = rows.pop("annotations", [])
        self.annotation_tags: Rows = rows.pop("annotation_tags", [])
        self.schemas: Rows = rows.pop("schemas", [])
        self.lookup_tables: Rows = rows.pop("lookup_tables", [])
        self.experiments: Rows = rows.pop("experiments", [])
        self.feature_flags: Rows = rows.pop("feature_flags", [])
        self.jql: dict[str, JqlAnswer] = {}
        if rows:
            raise ValueError(f"{path}: nothing is called {', '.join(sorted(rows))}")

    def cohort(self, number: int) -> Cohort | None:
        return next((cohort for cohort in self.cohorts if cohort.id == number), None)


def cohorts_of(rows: Rows) -> list[Cohort]:
    return [Cohort(**row) for row in rows]


def funnels_of(rows: Rows) -> list[Funnel]:
    """A step is the name of an event, or {"event": ..., "label": ...}."""
    return [
        Funnel(**{**row, "steps": [Step(step) if isinstance(step, str) else Step(**step) for step in row["steps"]]})
        for row in rows
    ]
