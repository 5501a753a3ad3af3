"""What every trial is given, and how it says that something is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Where, how long and from which seed. `size` scales a trial down: the suite runs small samples."""

    folder: Path
    """Scratch, empty, removed afterwards."""
    seed: int = 1
    size: float = 1.0

    def scaled(self, count: int) -> int:
        return max(1, round(count * self.size))


@dataclass
class Outcome:
    """Figures to be read by people, and what was wrong: a trial passes when nothing was."""

    figures: dict[str, object] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
