"""What can be asked of Mixpanel's profiles beyond all of them: a part, groups, members of cohorts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from mixpanel_source.errors import ConfigError, IncompleteExportError, QueryError, ServerError

PROFILES_PARTIAL: Final = "profiles_partial"
PROFILES_HISTORY: Final = "profiles_history"
MEMBERS_HISTORY: Final = "cohort_members_history"
TABLES: Final = frozenset({PROFILES_PARTIAL, PROFILES_HISTORY, "group_profiles", "cohort_members", MEMBERS_HISTORY})
"""All of engage but `profiles`."""

LAST: Final = "last"
"""As `ProfilesAsked.since`: from shortly before the last walk that missed nothing."""

FAILS_ALONE = (QueryError, ServerError, IncompleteExportError)
"""Errors of one cohort or group type; after others, there is no use in asking for the next."""

_ID = re.compile("-?[0-9]{1,19}")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class ProfilesAsked:
    """Which user profiles, and what of them. Raises ConfigError where that cannot be.

    `output_properties` are the only properties asked for, where there are any: such rows have a table of their own, so
    that none that is whole loses the others. `since` finds profiles by their `$last_seen`. `history` keeps what each
    profile was, in PROFILES_HISTORY, as well.
    """

    where: str | None = None
    output_properties: tuple[str, ...] = ()
    filter_by_cohort: int | None = None
    since: date | Literal["last"] | None = None
    history: bool = False

    def __post_init__(self) -> None:
        if self.output_properties and (self.history or self.since == LAST):
            raise ConfigError(
                "only some properties of the profiles are asked for, which is not enough for their history or for"
                " going on from the last load",
                hint="leave out profiles_properties, or profiles_history and profiles_since",
            )
        if self.since == LAST and (self.where is not None or self.filter_by_cohort is not None):
            raise ConfigError(
                "a load that goes on from the last one takes all profiles",
                hint="with profiles_where or profiles_cohort, give a day to profiles_since",
            )

    @property
    def table(self) -> str:
        return PROFILES_PARTIAL if self.output_properties else "profiles"


@dataclass(frozen=True)
class MembersAsked:
    """Of which cohorts: all where no id is given. `history` keeps who joined and left, in MEMBERS_HISTORY."""

    cohort_ids: tuple[int, ...] = ()
    history: bool = False


def group_ids(given: Sequence[str | int]) -> tuple[str, ...]:
    """Each `data_group_id` once, as text. Raises ConfigError for one that is no signed 64-bit number."""
    if isinstance(given, str):
        given = [given]
    for id_ in given:
        # A float has lost digits already, even where it looks whole.
        if isinstance(id_, (bool, float)) or not _ID.fullmatch(str(id_)) or int(id_) not in _INT64:
            raise ConfigError(
                f"{str(id_)[:40]!r} is no data_group_id",
                hint="it is a whole number of up to 19 digits, often negative: Project settings > Group keys",
            )
    return tuple(dict.fromkeys(str(int(id_)) for id_ in given))


def required_group_ids(given: Sequence[str]) -> Sequence[str]:
    """Raises ConfigError where none is given."""
    if not given:
        raise ConfigError(
            "group_profiles needs to know which groups: no data_group_id is given",
            hint="give --group ID (data_group_ids); the ids are in Mixpanel's Project settings > Group keys",
        )
    return given
