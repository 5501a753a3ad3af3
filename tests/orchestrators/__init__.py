"""Tests of `pipelines/` in Airflow and Dagster, each in an environment of its own."""
