"""Servers that are malicious or broken: each attack ends in a clear error, in bounded memory and time.

`mpload load` asks an export, engage and a JSON endpoint of a server that answers with one attack of `hostile_server`.
Whatever it is told, nothing reaches the other place that attacks name, and no error tells the secret.
"""

from __future__ import annotations

import base64
import random
import shutil

from mixpanel_source.cli.exit_codes import EXIT_CODES
from soak.hostile_server import ATTACKS, Attack, HostileServer
from soak.processes import MIB, Finished, run_mpload, write_account
from soak.trial import Options, Outcome

TARGETS = {
    "export": ("load", "events", "--from", "2024-03-01", "--to", "2024-03-01", "--no-count-events", "--no-wait"),
    "engage": ("load", "profiles", "--no-wait"),
    "JSON": ("load", "cohorts", "--no-wait"),
}
MOST_BYTES = 2048 * MIB
"""A line of the longest length that is taken, all of it brackets, needs most: some 1700 MiB."""
MOST_S = 240.0
"""Timeouts and retries are scaled: see `run`."""
SECRET = "s3cret/of+the-soak"  # noqa: S105 (nobody's)


def run(options: Options) -> Outcome:
    cases = [(attack, target) for attack in ATTACKS for target in TARGETS]
    random.Random(options.seed).shuffle(cases)
    outcome = Outcome()
    peak_bytes = most_s = 0.0
    with HostileServer() as evil, HostileServer(evil=evil.url) as server:
        for attack, target in cases[: options.scaled(len(cases))]:
            server.attack = attack
            folder = options.folder / "home"
            folder.mkdir()
            write_account(
                folder, secret=SECRET, retries=1, timeout_s=1.0, export_timeout_s=1.0, max_body_bytes=300 * MIB
            )
            before = server.requests
            finished = run_mpload(TARGETS[target], server.url, folder, most_s=MOST_S, most_bytes=MOST_BYTES)
            name = f"{attack.name} ({target})"
            print(f"{name}: {finished.status}, {finished.seconds:.1f} s, {finished.peak_bytes / MIB:.0f} MiB,"
                  f" {server.requests - before} requests: {finished.err.strip()[-200:]!r}", flush=True)  # fmt: skip
            outcome.wrong += [f"{name}: {problem}" for problem in _problems(finished, attack, target)]
            if evil.requests:
                outcome.wrong.append(f"{name}: the other place was asked: {evil.heard[:1]}")
                evil.requests = 0
            peak_bytes, most_s = max(peak_bytes, finished.peak_bytes), max(most_s, finished.seconds)
            shutil.rmtree(folder)
    outcome.figures = {
        "attacks": min(options.scaled(len(cases)), len(cases)),
        "most memory": f"{peak_bytes / MIB:.0f} MiB",
        "longest": f"{most_s:.0f} s",
    }
    return outcome


def _problems(finished: Finished, attack: Attack, target: str) -> list[str]:
    said = finished.out + finished.err
    if finished.status is None:
        return [f"it had {finished.peak_bytes / MIB:.0f} MiB after {finished.seconds:.0f} s, and was killed"]
    problems = []
    if finished.status == 0 and target not in attack.harmless_to:
        problems.append(f"it was taken for an answer: {said[-300:]}")
    if finished.status not in {0, *EXIT_CODES.values()} or "Traceback" in said:
        problems.append(f"it ended with {finished.status}: {said[-1500:]}")
    if finished.status and not finished.err.strip():
        problems.append("it ended without a word")
    hidden = base64.b64encode(f"sandbox:{SECRET}".encode()).decode()
    if SECRET in said or hidden in said:
        problems.append("it told the secret")
    return problems
