"""Says which actions of a selector the core refuses, and why; asked by the core and by tests.

Pure: a group is a table of its members' states, an action is judged against it, and
`after` gives the table once it is carried out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import msgspec

from pipeline.plugins.actions import (
    Abort,
    AnyAction,
    Defer,
    Drop,
    Enough,
    Finalize,
    Hold,
    Include,
    Park,
    Sample,
    Stop,
)
from pipeline.plugins.views import ENDED, UNENDED, GroupView, MemberView

PARKABLE = ("running", "queued", "waiting_env")
MOST_CANDIDATES = 1024
"""Of one group, where no setting says otherwise: a guard against selectors that never stop."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What is judged by: states and tokens of the members, candidates so far, how it ended."""

    states: Mapping[int, str]
    tokens: Mapping[int, int]  # sampled ones held
    forkable: Mapping[int, int] = {}  # first tokens that a fork may begin with, at most
    foreign: Collection[str] = ()  # sources of responses that may be included
    sampled: int
    most: int = MOST_CANDIDATES
    closed: str = ""  # chosen, deferred or dropped; "": it is open


def table_of(group: GroupView, most: int = MOST_CANDIDATES) -> Table:
    """Make the table of a view."""
    return Table(
        states={member.id: member.state for member in group.members},
        tokens={member.id: member.tokens for member in group.members},
        forkable={member.id: _forkable(member) for member in group.members},
        foreign=group.foreign,
        sampled=group.budget,
        most=most,
    )


def _forkable(member: MemberView) -> int:
    """As far as a view shows it: of one turn, ended by a stop token if it has finished."""
    if member.foreign:
        return 0
    return member.tokens - (member.state == "finished" or member.hit_limit)


def refusal(table: Table, action: object) -> str:
    """Return why the core refuses this action; '': it does not."""
    if not isinstance(action, AnyAction):
        return "no action of a selector"
    if table.closed:
        return f"the group is {table.closed} by an earlier action"
    match action:
        case Sample():
            return _of_sample(table, action)
        case Include(source=source):
            if source in table.foreign:
                return ""
            known = ", ".join(table.foreign) or "none"
            return f"no response of source {source!r} that it does not hold; there are: {known}"
        case Abort(ids=ids) | Stop(ids=ids) | Park(ids=ids) | Finalize(ids=ids):
            if len(set(ids)) != len(ids) or any(i not in table.states for i in ids):
                return "an id is unknown or named twice"
            return _of_members(table, action)
        case Enough() | Hold() | Defer() | Drop():
            return ""


def _of_sample(table: Table, action: Sample) -> str:
    if action.n < 1 or table.sampled + action.n > table.most:
        return f"the group has {table.sampled} candidates; at most {table.most}, at least one more"
    if action.fork is None:
        return ""
    if action.variant:
        return "a fork has the prompt of the member that it begins with: no variant"
    origin, at = action.fork
    if origin not in table.states:
        return f"fork: no member {origin}"
    end = max(0, table.forkable[origin])
    if not 1 <= at <= end:
        which = f"1 to {end}" if end else "none"
        return (
            f"fork: {at} tokens of member {origin}, of which {which} can be continued "
            "(tokens held, of its first turn, short of its end and of every limit)"
        )
    return ""


def _of_members(table: Table, action: Abort | Stop | Park | Finalize) -> str:
    states = [table.states[i] for i in action.ids]
    match action:
        case Abort():
            return "a member is aborted already" if "aborted" in states else ""
        case Stop(ids=ids):
            fine = all(s in UNENDED and table.tokens[i] for i, s in zip(ids, states, strict=True))
            return "" if fine else "only unended members that hold tokens can be stopped"
        case Park(until=until):
            if until not in ("slot", "published"):
                return "until is 'slot' or 'published'"
            fine = all(state in PARKABLE for state in states)
            return "" if fine else "only members that run or wait can be parked"
        case Finalize(ids=ids, weights=weights):
            if len(ids) < 2:
                return "an advantage needs two members"
            if any(state not in ENDED for state in states):
                return "a member has not ended; Stop it first"
            if weights is not None and (
                len(weights) != len(ids) or not all(math.isfinite(w) and w >= 0 for w in weights)
            ):
                return "one finite weight of at least 0 for each member"
            return ""


def after(table: Table, action: AnyAction) -> Table:
    """The table once a legal action is carried out."""
    states = dict(table.states)
    match action:
        case Abort(ids=ids):
            for i in ids:
                del states[i]
        case Stop(ids=ids):
            states |= dict.fromkeys(ids, "truncated")
        case Park(ids=ids):
            states |= dict.fromkeys(ids, "parked")
        case Sample(n=n):
            return msgspec.structs.replace(table, sampled=table.sampled + n)
        case Include(source=source):
            left = [name for name in table.foreign if name != source]
            return msgspec.structs.replace(table, foreign=left)
        case Finalize():
            return msgspec.structs.replace(table, closed="chosen")
        case Defer():
            return msgspec.structs.replace(table, closed="deferred")
        case Drop():
            return msgspec.structs.replace(table, closed="dropped")
        case Enough() | Hold():
            pass
    return msgspec.structs.replace(table, states=states)


def refusals(table: Table, actions: Iterable[object]) -> list[str]:
    """Return why the core would refuse each action that it would, in the order of the answer."""
    found: list[str] = []
    for action in actions:
        if why := refusal(table, action):
            found.append(f"{action}: {why}")
        elif isinstance(action, AnyAction):
            table = after(table, action)
    return found
