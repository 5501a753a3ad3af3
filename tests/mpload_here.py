"""mpload in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from mixpanel_source.cli import app


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def run(arguments: Sequence[str], stdin: str = "") -> Done:
    """mpload in this process, its output to the byte."""
    streams = [io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="") for text in (stdin, "", "")]
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as done:
            app.main(arguments)
        for stream in streams:
            stream.flush()
    out, err = (stream.buffer.getvalue().decode() for stream in streams[1:])
    return Done(int(str(done.value.code)), out, err)
