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
    """Base of the selector's actions. Ids are trajectory ids of the group at hand.

    `why` is for readers, free text; `kind` is a short name that the step's record counts by."""


class Sample(Action, frozen=True):
    """`n` more candidates for this group."""

    n: int
    why: str = ""
    variant: str = ""
    """What stands behind the prompt of these candidates and of no other: the text of this column
    of the data, of which `column:0.25` is the first quarter of the tokens. Never trained on."""
    fork: tuple[int, int] | None = None
    """(id, tokens): these begin with so many response tokens of that member, which are counted
    once and keep their logprobs."""
    kind: str = ""


class Include(Action, frozen=True):
    """Put a response that was not sampled for this group among its members, as one that has
    finished. The selector is asked about it at once, with `Finish`."""

    source: str
    """One of the group's `foreign`. `stored`: the newest success of the prompt that was trained on
    (`Wants.stored`), with its reward and logprobs; `solution`: the data's (`data.solution`), which
    is scored as any other and has no logprobs."""
    why: str = ""
    kind: str = ""


class Abort(Action, frozen=True):
    """Stop these members and leave them out; their tokens are waste and counted so."""

    ids: tuple[int, ...]
    why: str = ""
    kind: str = ""


class Stop(Action, frozen=True):
    """End these members now; they stay in the group as truncated and trainable."""

    ids: tuple[int, ...]
    why: str = ""
    kind: str = ""


class Park(Action, frozen=True):
    """Stop these members but keep their tokens; resumed when a slot is free, or not before the
    step has ended, with new weights or without (`published`)."""

    ids: tuple[int, ...]
    until: str = "slot"  # "slot" | "published"
    why: str = ""
    kind: str = ""


class Enough(Action, frozen=True):
    """This group could close now; it stays open and its members continue."""

    why: str = ""
    kind: str = ""


class Hold(Action, frozen=True):
    """This group stays open though all of its members may have ended: it is not dropped, and not
    counted as coming. More `Sample`s, a `Finalize` or an end may follow at any later event."""

    why: str = ""
    kind: str = ""


class Finalize(Action, frozen=True):
    """Choose these members, two or more; the rest are aborted."""

    ids: tuple[int, ...]
    weights: tuple[float, ...] | None = None  # loss weights, in the order of ids; None: all 1
    why: str = ""
    kind: str = ""


class Defer(Action, frozen=True):
    """Give the prompt back: it is asked again later, with new candidates."""

    why: str = ""
    kind: str = ""


class Drop(Action, frozen=True):
    """End the group for this epoch."""

    why: str = ""
    kind: str = ""


AnyAction = Sample | Include | Abort | Stop | Park | Enough | Hold | Finalize | Defer | Drop


# --- batch rules ---------------------------------------------------------------------------


class Take(msgspec.Struct, frozen=True, tag=True):
    """Train on these ready groups in this step."""

    groups: tuple[int, ...]
    why: str = ""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Give these ready groups back: their prompts are asked again later, in another group."""

    groups: tuple[int, ...]
    why: str = ""
    kind: str = ""


class Replay(msgspec.Struct, frozen=True, tag=True):
    """Train once more on these groups, of `view.kept`, beside those that are taken; each at most
    once a step. Their members keep the advantages and logprobs that they had."""

    groups: tuple[int, ...]
    why: str = ""


class Relax(msgspec.Struct, frozen=True, tag=True):
    """Open groups need only reach `size` members from now until the step closes."""

    size: int
    why: str = ""


class Close(msgspec.Struct, frozen=True, tag=True):
    """Raise the barrier: open groups finalize now or are deferred as surplus."""

    why: str = ""


BatchAction = Take | Leave | Replay | Relax | Close


# --- answers of other plug-ins -------------------------------------------------------------


class Plan(msgspec.Struct, frozen=True):
    """The prompts to open next (indices into the data set, in order)."""

    prompts: tuple[int, ...]
    speculate: bool = True
    """False, said with a step's first prompts: these and no others, M candidates each, all of
    them waited for (a long round)."""
    why: str = ""


class Allocation(msgspec.Struct, frozen=True):
    """The answer of a budget for one prompt."""

    candidates: int  # M', trajectories sampled at first
    max_tokens: int  # length limit of each response
    note: str = ""  # written to decisions.jsonl, shown to the selector
    variants: tuple[tuple[int, str], ...] = ()
    """(how many, variant) of the candidates that have one, see `Sample`; the others have none."""


class Advantages(msgspec.Struct, frozen=True):
    """The answer of an advantage for a group, in the order of the chosen members."""

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]  # loss weights; 0: not trained, counts nothing
    shaped: int = 0  # members whose reward the rule changed; counted in the step's record
    tokens: tuple[npt.NDArray[np.float64], ...] | None = None
    """Advantages of single tokens, an array for each member as long as its sampled tokens,
    instead of `values`, which then stand in records alone."""
    why: str = ""


class NoSignal(msgspec.Struct, frozen=True):
    """The group teaches nothing: dropped and replaced."""

    why: str
    kind: str = ""


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
