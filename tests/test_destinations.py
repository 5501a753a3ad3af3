"""Which destinations are refused, before anything is asked for; what is loaded into the others is in `destinations`."""

from __future__ import annotations

from pathlib import Path

import dlt
import pyarrow as pa
import pytest

from mixpanel_source.destinations import Support, fitted, target_of, without_secrets
from mixpanel_source.errors import ConfigError
from mixpanel_source.resources.load_package import literals
from mixpanel_source.source import mixpanel_source


@pytest.mark.parametrize("name", ["filesystem", "clickhouse", "databricks", "athena", "mssql", "nowhere", "duckdb"])
def test_what_cannot_keep_days_exact_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        target_of(name)


@pytest.mark.parametrize(
    ("destination", "hint"), [("filesystem", "preferred_table_format"), ("clickhouse", "Postgres")]
)
def test_the_refusal_says_why_and_what_to_do(destination: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot load into {destination}: .*a day .*would") as raised:
        target_of(destination)
    assert hint in str(raised.value.hint)


def test_targets_of_one_folder_are_known_by_place_and_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTHERDUCK_TOKEN", "pl4nted")
    paths = []
    others = [("one", dataset) for dataset in ("a_b", "a.b", f"{'x' * 60}y", f"{'x' * 60}z")]
    for database, dataset in (("one", "mixpanel"), ("one", "other"), ("two", "mixpanel"), ("one", "mixpanel"), *others):
        target = target_of(dlt.destinations.motherduck(f"md:{database}?motherduck_token=pl4nted"), dataset)
        assert "pl4nted" not in str(target)
        assert target.destination is not None
        paths.append((target.path, target.destination.config_params["staging_dataset_name_layout"]))
    assert paths[0] == paths[3]
    assert len(set(paths)) == len({layout for _, layout in paths}) == 3 + len(others)


def test_no_message_has_the_password_of_a_url() -> None:
    text = 'cannot reach "postgres://user:of trials: @only@127.0.0.1:5432/db" as told'
    assert without_secrets(text) == 'cannot reach "postgres://user:***@127.0.0.1:5432/db" as told'


def test_u0000_is_written_out_where_text_cannot_hold_it() -> None:
    table = pa.table({"a": ["x\0y", None, ""], "b": [b"\0", b"", None]})
    assert fitted(table, Support(has_nul=False)).to_pydict() == {"a": ["x\\u0000y", None, ""], "b": [b"\0", b"", None]}


def test_no_event_name_looks_like_ddl_to_dlt() -> None:
    assert literals(["Account Created", "drop"]) == "'Account' || chr(32) || 'Cre' || 'ated', 'dr' || 'op'"


def test_what_a_stopped_run_left_is_written_in_a_transaction_too(tmp_path: Path) -> None:
    pipeline = dlt.pipeline(
        "left", destination=dlt.destinations.duckdb(str(tmp_path / "x.duckdb")), pipelines_dir=str(tmp_path)
    )
    mixpanel_source()
    assert pipeline.destination.caps_params["supports_transactions"]
