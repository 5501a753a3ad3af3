"""The plan of a load of events, with Mixpanel's own counts by day where they save more requests than they cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime

from mixpanel_source.discovery import NOT_TOLD, Discovery
from mixpanel_source.exports import EventFilter
from mixpanel_source.planner import Plan, requests_saved
from mixpanel_source.project import Project
from mixpanel_source.windows import DateRange, LoadedDay

logger = logging.getLogger(__name__)

COUNT_REQUESTS = 2
"""What the counts cost: the names of events, and their counts by day."""


def planned(project: Project, asked: DateRange, filter_: EventFilter, loaded: Sequence[LoadedDay]) -> Plan:
    """What to export for `asked`. Raises ConfigError for dates that cannot be, before anything is asked."""
    plan = project.plan(asked, loaded)
    tell_counts(plan, project, filter_)
    return plan


def tell_counts(plan: Plan, project: Project, filter_: EventFilter) -> None:
    """Tell `plan` Mixpanel's counts, where the project has loads ask for them and they are worth it."""
    if project.count_events:
        plan.tell(counts_of(plan, project, filter_))


def counts_of(plan: Plan, project: Project, filter_: EventFilter) -> Mapping[date, int]:
    """Events by day where `plan` knows nothing of them, by two requests of the Query API at most.

    None where that costs more than it can save, and where Mixpanel does not answer: a load has to do without them.
    """
    days = plan.days_unknown()
    cost = COUNT_REQUESTS - bool(filter_.events)
    if filter_.where is not None or requests_saved(len(days), project.window_limits) <= cost:
        return {}
    last = min(days[-1], datetime.now(project.report_calendar).date())
    # Not worth any wait, nor another attempt.
    with replace(project, retries=0, wait=False, on_wait=None).client() as client:
        try:
            counts = Discovery(client).day_counts(days[0], last, filter_.events)
        except NOT_TOLD as error:
            logger.info("the events by day are not known beforehand: %s", error.message)
            return {}
    return {day: counts[day] for day in days if day in counts}
