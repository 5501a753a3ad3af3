"""A small sample of the trial of many projects, whose loads are killed: real processes, a real Postgres."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import postgres
from soak.projects import KINDS, SHORT_HOURS, run
from soak.trial import Options


@pytest.mark.parametrize("kind", KINDS)
def test_projects_are_loaded_by_workers_that_are_killed(kind: str, tmp_path: Path) -> None:
    if not postgres.installed():
        pytest.skip("no initdb and pg_ctl: apt-get install postgresql, or put them on the PATH")
    outcome = run(Options(tmp_path, seed=1, size=0.25), [kind], [SHORT_HOURS])
    assert outcome.wrong == []
    assert f"{kind}, {SHORT_HOURS.name}: with kills" in outcome.figures, outcome.figures
    print(outcome.figures)  # how long it took says more of what else the machine does
