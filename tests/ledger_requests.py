"""Requests that a ledger knows of, and that nobody sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mixpanel_source.rate_limit import Permit, RequestLedger
from mixpanel_source.settings import ApiFamily


def spend(ledger: RequestLedger, family: ApiFamily, requests: int = 1) -> None:
    for _ in range(requests):
        with ledger.permit(family):
            pass


@contextmanager
def free_permit() -> Iterator[Permit]:
    """One that counts nowhere."""
    yield Permit(lambda: None)
