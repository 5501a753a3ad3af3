"""Names and types of typed columns: one to one, for ever, and whatever comes first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixpanel_source.property_columns import (
    EVENT_COLUMNS,
    PROFILE_COLUMNS,
    JsonType,
    PropertyColumn,
    column_name,
    sql_type,
    table_name,
)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("plan", "plan"),
        ("utm_source", "utm_source"),
        ("mp_country_code", "mp_country_code"),
        ("plan_2", "plan_2"),
        ("$plan", "_plan"),
        ("$mp_web_page_view", "_mp_web_page_view"),
        ("Plan", "plan__title"),
        ("Order Value", "order_value__title"),
        ("Signed up", "signed_up__sentence"),
        ("orderValue", "order_value__camel"),
        ("a1B", "a1_b__camel"),
        ("UTM Source", "utm_source__c0d417ff9ce4"),
        ("Größe", "größe__decd780a15e6"),
        ("_plan", "plan__6e7d7dfee4a0"),
        ("2fast", "p_2fast__0fb4afa2b2a7"),
        ("", "p__ddd9c40767f9"),
        ("$", "p__5c2695127edf"),
        ("a__b", "a_b__3c167153fa30"),
        (f"{'A' * 47}-b", f"{'a' * 47}__f93a12299427"),
        ("\ud800", "p__5b9d8d7aa345"),
    ],
)
def test_a_name_is_kept_as_far_as_others_cannot_be_the_same(name: str, column: str) -> None:
    assert column_name(name) == column == table_name(name)


def test_a_name_that_another_column_or_table_has_is_told_apart() -> None:
    assert column_name("event_time") == "event_time__d453620de87e"
    assert column_name("user_id") == "user_id__dbd838fc4048"
    assert column_name("$dlt_load_id").startswith("dlt_load_id__")
    assert table_name("profiles").startswith("profiles__")
    assert table_name("typed_days").startswith("typed_days__")
    assert table_name("user_id") == "user_id"


ALIKE = st.text(alphabet="aAbB $_1-", max_size=6)


@given(st.sets(ALIKE | st.text(max_size=8) | st.sampled_from([name for name, _ in EVENT_COLUMNS + PROFILE_COLUMNS])))
@example({"Plan", "plan", "$plan", "PLAN", "plan ", " plan", "_plan", "plan__title", "Plan ", "$Plan", "pLan", "p_lan"})
@example({"a b", "A b", "A B", "aB", "a_b", "a__b", "$a_b", "AB", "ab", "a-b", "a b__title", "a_b__title"})
def test_no_two_names_share_a_column_or_a_table_in_any_case(names: set[str]) -> None:
    for identifier in (column_name, table_name):
        assert len({identifier(name).lower() for name in names}) == len(names)
        assert all(identifier(name) == identifier(name).lower() for name in names)
    taken = {name for name, _ in EVENT_COLUMNS + PROFILE_COLUMNS}
    assert not taken & {column_name(name) for name in names}


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([], None),
        (["null"], None),
        (["boolean", "null"], "BOOLEAN"),
        (["integer"], "BIGINT"),
        (["integer", "bigint"], "BIGINT"),
        (["integer", "double"], "DOUBLE"),
        (["double"], "DOUBLE"),
        (["bigint", "double"], "VARCHAR"),  # a double has no room for all digits
        (["bignumber"], "VARCHAR"),
        (["integer", "bignumber"], "VARCHAR"),
        (["string"], "VARCHAR"),
        (["string", "integer"], "VARCHAR"),
        (["boolean", "integer"], "VARCHAR"),
        (["array"], "JSON"),
        (["array", "object", "null"], "JSON"),
        (["array", "string"], "VARCHAR"),
    ],
)
def test_a_type_holds_every_value_that_was_seen(types: list[JsonType], expected: str | None) -> None:
    for order in itertools.permutations(types):
        assert sql_type(order) == expected


WIDER = {None: 0, "BOOLEAN": 1, "BIGINT": 1, "JSON": 1, "DOUBLE": 2, "VARCHAR": 3}


@given(st.lists(st.sampled_from(["boolean", "integer", "bigint", "double", "bignumber", "string", "array", "null"])))
def test_a_type_that_is_seen_later_only_widens(types: list[JsonType]) -> None:
    held = [WIDER[sql_type(types[:count])] for count in range(len(types) + 1)]
    assert held == sorted(held)


def test_a_column_is_made_of_its_property() -> None:
    column = PropertyColumn("Order Placed", "Amount", ("double", "integer"), 3)
    assert (column.column, column.type) == ("amount__title", "DOUBLE")
