"""dlt's traces of the last load packages, as text: dlt itself keeps that of the last one, until the next begins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import dlt
from dlt.pipeline.trace import PipelineTrace

from mixpanel_source.warehouse import TRACES, pipelines_folder

logger = logging.getLogger(__name__)

KEPT: Final = 20
"""Traces of packages that were written, and as many of those that were not."""
_FAILED: Final = "-failed"


def traces_folder(database: Path) -> Path:
    """Outside of the pipeline's working folder, which is emptied after a failure."""
    return pipelines_folder(database) / TRACES


def keep_trace(trace: PipelineTrace | None, database: Path, table: str) -> None:
    """Write `trace` where `dlt pipeline trace` has it no more; what hinders that is told to the log alone."""
    if trace is None:
        return
    failed = any(step.step_exception for step in trace.steps)
    name = f"{trace.started_at:%Y-%m-%dT%H%M%S.%f}-{table}{_FAILED if failed else ''}.txt"
    folder = traces_folder(database)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / name
        path.touch(mode=0o600)  # it may hold values of rows that the database refused
        path.write_text(_text(trace), "utf-8")
        paths = sorted(folder.glob("*.txt"))
        for kind in (True, False):
            for old in [one for one in paths if one.stem.endswith(_FAILED) == kind][:-KEPT]:
                old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the trace of %s is not kept: %s", table, error.strerror)


def last_trace(pipeline: dlt.Pipeline, before: PipelineTrace | None) -> PipelineTrace | None:
    """The one of the last run, unless that is `before`."""
    trace = pipeline.last_trace
    is_new = trace is not None and (before is None or trace.transaction_id != before.transaction_id)
    return trace if is_new else None


def _text(trace: PipelineTrace) -> str:
    """What `dlt pipeline trace` shows, and where in the code it failed."""
    stacks = [
        f"{one['exception_type']}: {one['message']}\n{''.join(one.get('stack_trace', ()))}"
        for step in trace.steps
        for one in step.exception_traces or ()
    ]
    return "\n\n".join([trace.asstr(verbosity=1), *dict.fromkeys(stacks)]) + "\n"
