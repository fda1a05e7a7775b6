"""The answers of plug-ins: actions of the selector, values of the other kinds.

Plain frozen values; the coordinator carries them out and refuses wrong ones
with an error that names the plug-in, the group and the action.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt


class Action(msgspec.Struct, frozen=True, tag=True):
    """Base of the selector's actions. Ids are trajectory ids of the group at hand."""


class Sample(Action, frozen=True):
    """`n` more candidates for this group."""

    n: int
    why: str = ""


class Abort(Action, frozen=True):
    """Stop these members and leave them out; their tokens are waste and counted so."""

    ids: tuple[int, ...]
    why: str = ""


class Stop(Action, frozen=True):
    """End these members now; they stay in the group as truncated and trainable."""

    ids: tuple[int, ...]
    why: str = ""


class Park(Action, frozen=True):
    """Stop these members but keep their tokens; resumed when a slot is free,
    or not before the next publish."""

    ids: tuple[int, ...]
    until: str = "slot"  # "slot" | "published"
    why: str = ""


class Enough(Action, frozen=True):
    """This group could close now; it stays open and its members continue."""

    why: str = ""


class Finalize(Action, frozen=True):
    """Choose these members, two or more; the rest are aborted."""

    ids: tuple[int, ...]
    weights: tuple[float, ...] | None = None  # loss weights, in the order of ids; None: all 1
    why: str = ""
    rule: str = ""
    """Name of the rule that chose, if the step's record is to count the groups chosen by it."""


class Defer(Action, frozen=True):
    """Give the prompt back: it is asked again later, with new candidates."""

    why: str = ""


class Drop(Action, frozen=True):
    """End the group for this epoch."""

    why: str = ""


AnyAction = Sample | Abort | Stop | Park | Enough | Finalize | Defer | Drop


# --- batch rules ---------------------------------------------------------------------------


class Take(msgspec.Struct, frozen=True, tag=True):
    """Train on these ready groups in this step."""

    groups: tuple[int, ...]


class Relax(msgspec.Struct, frozen=True, tag=True):
    """Open groups need only reach `size` members from now until the step closes."""

    size: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """Raise the barrier: open groups finalize now or are deferred as surplus."""


BatchAction = Take | Relax | Close


# --- answers of other plug-ins -------------------------------------------------------------


class Plan(msgspec.Struct, frozen=True):
    """The prompts to open next (indices into the data set, in order)."""

    prompts: tuple[int, ...]
    speculate: bool = True
    """False, said with a step's first prompts: these and no others, M candidates each, all of
    them waited for (a long round)."""


class Allocation(msgspec.Struct, frozen=True):
    """The answer of a budget for one prompt."""

    candidates: int  # M', trajectories sampled at first
    max_tokens: int  # length limit of each response
    note: str = ""  # written to decisions.jsonl


class Advantages(msgspec.Struct, frozen=True):
    """The answer of an advantage for a group, in the order of the chosen members."""

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]  # loss weights; 0: not trained, counts nothing
    shaped: int = 0  # members whose reward the rule changed; counted in the step's record


class NoSignal(msgspec.Struct, frozen=True):
    """The group teaches nothing: dropped and replaced."""

    why: str


class Append(msgspec.Struct, frozen=True):
    """Text or tokens that an environment adds to a response: context, never trained on."""

    text: str = ""
    tokens: tuple[int, ...] = ()  # instead of a text
    memory: Any = None
    """Kept with the response and shown at its next turn; what JSON can hold."""


class Score(msgspec.Struct, frozen=True):
    """A reward with its parts (logged, shown by name)."""

    value: float
    parts: dict[str, float] = {}
