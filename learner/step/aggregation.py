"""Weighs tokens so that the sum that a loss returns is any of the published means.

The step divides once, by N, the sum of what the ranks counted of their groups. So a mean is a
weight of each member's tokens, and what its group adds to N: both are known from the group
alone, and the gradient that is built group by group is that of the whole batch.

    token     weight w           N = sum of w x tokens    over all tokens (DAPO, 2503.14476)
    sequence  w / own tokens     N = sum of w             over a member's tokens, then over members
                                                          (GRPO, arXiv 2402.03300)
    group     w / group's tokens N = groups               over a group's tokens, then over groups
    constant  w                  N = sum of w x limit     Dr. GRPO, arXiv 2503.20783

w is a member's own loss weight, tokens those that the model sampled, and the limit
`sampling.max_tokens`. Knows no tensor.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec.structs import replace

from learner.forward.micro_batches import counted_tokens
from learner.losses import Loss
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import TrainGroup

Kind = Literal["token", "sequence", "group", "constant"]


class Aggregation(NamedTuple):
    """One of the means. `max_tokens`: `sampling.max_tokens`, which `constant` divides by."""

    kind: Kind = "token"
    max_tokens: int = 0

    def weighed(self, group: TrainGroup) -> TrainGroup:
        """Return the group with the weight of each member's tokens in place of the member's own."""
        if self.kind in ("token", "constant"):
            return group
        whole = counted_tokens(group) if self.kind == "group" else 0.0
        return replace(
            group,
            members=tuple(
                replace(member, weight=member.weight / ((whole or member.sampled_tokens) or 1))
                for member in group.members
            ),
        )

    def counted(self, group: TrainGroup) -> float:
        """Compute what this group adds to N."""
        if self.kind == "token":
            return counted_tokens(group)
        weight = sum(member.weight for member in group.members)
        if self.kind == "group":
            return 1.0 if weight else 0.0
        return weight * (self.max_tokens if self.kind == "constant" else 1)


def aggregation_of(section: LearnerConfig, loss: Loss, max_tokens: int) -> Aggregation:
    """Return what `learner.aggregate` comes to with this loss. Raises ValueError if the loss
    names none that exists."""
    kind = section.aggregate
    if kind == "auto":
        kind = getattr(loss, "aggregate", "token")
        if kind not in ("token", "sequence", "group", "constant"):
            raise ValueError(
                f"loss {type(loss).__name__}: aggregate is {kind!r}, expected token, sequence, "
                "group or constant"
            )
    return Aggregation(kind, max_tokens)
