"""Serves the generated days as Mixpanel's export does, in a process of its own: serve.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from mixpanel_source.sandbox import Sandbox, SandboxServer

if __name__ == "__main__":
    sandbox = Sandbox(limits=False)
    for path in sorted(Path(sys.argv[1]).glob("*.jsonl.gz")):
        sandbox.set_day_gzip(path.name.removesuffix(".jsonl.gz"), path.read_bytes())
    with SandboxServer(sandbox) as server:
        print(server.url, flush=True)
        sys.stdin.read()
