from __future__ import annotations

import pytest

from mixpanel_source.many_projects import dataset_of


@pytest.mark.parametrize(
    ("account", "dataset"),
    [
        ("production", "mixpanel_production"),
        ("eu_2", "mixpanel_eu_2"),
        ("all", "mixpanel_all_"),
        ("All", "mixpanel_all_"),
        ("typed", "mixpanel_typed_"),
        ("one_typed", "mixpanel_one_typed_"),
        ("Zoë", "mixpanel_zo_"),
        ("é", "mixpanel_"),
        ("a__b", "mixpanel_a_b_"),
    ],
)
def test_an_account_has_a_dataset_of_its_own(account: str, dataset: str) -> None:
    found = dataset_of(account)
    is_hashed = dataset.endswith("_")
    assert (found[: len(dataset)], len(found) - len(dataset)) == (dataset, 8 if is_hashed else 0)
