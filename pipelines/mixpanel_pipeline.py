"""The plain dlt way: `python mixpanel_pipeline.py`, then `dlt pipeline mixpanel info`.

Settings and credentials come from .dlt/config.toml and .dlt/secrets.toml, from the environment or from ~/.mp.
"""

from __future__ import annotations

import dlt

from mixpanel_source import mixpanel_source


def load() -> dlt.Pipeline:
    pipeline = dlt.pipeline(
        "mixpanel",
        # A file named like its dataset makes names ambiguous to DuckDB, so this is not mixpanel.duckdb.
        destination=dlt.destinations.duckdb("mixpanel_pipeline.duckdb"),
        dataset_name="mixpanel",
    )
    print(pipeline.run(mixpanel_source()))  # a source is built fresh for every run
    return pipeline


if __name__ == "__main__":
    load()
