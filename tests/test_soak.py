"""A small sample of each long trial of `make soak`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from soak.trial import Options

SIZES = {
    "kills": 0.005,
    "storm": 0.02,
    "history": 0.01,
    "profiles": 0.005,
    "hostile": 0.02,
}
"""Shares of the whole trial that take some seconds."""


@pytest.mark.long
@pytest.mark.parametrize("name", SIZES)
def test_a_sample_of_the_trial_passes(name: str, tmp_path: Path) -> None:
    assert import_module(f"soak.{name}").run(Options(tmp_path, seed=1, size=SIZES[name])).wrong == []
