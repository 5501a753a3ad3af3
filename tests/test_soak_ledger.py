from __future__ import annotations

from pathlib import Path

import pytest

from soak import ledger
from soak.trial import Options


@pytest.mark.long
def test_four_processes_share_the_limits_of_a_project_and_one_is_killed(tmp_path: Path) -> None:
    wrong = ledger.run(Options(tmp_path, size=0.25)).wrong
    # How much of the limits is used in so short a time says more of the machine than of the code.
    assert [what for what in wrong if " were used" not in what] == []
