"""Advantage `gpg`: as `grpo`, scaled so that groups without a signal take nothing away.

A group whose rewards are all equal has gradient 0 and still counts in the step's mean. The others
are multiplied by alpha = members of the step / members of groups with a signal. That is known
when the step is complete, so its groups wait for each other. The published program also samples
anew when too few groups have a signal; here that is `drop_equal`, with which alpha is 1.
Source: GPG, arXiv 2504.02546. A signal is judged without the overlong penalty (ours).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from pipeline.plugins.actions import Advantages, NoSignal
from pipeline.plugins.advantages._shaping import GroupMeanOptions, by_group_mean
from pipeline.plugins.registry import register
from pipeline.plugins.views import GroupOutcome, Outcome


class GpgOptions(GroupMeanOptions, frozen=True, kw_only=True):
    """Options of the `gpg` advantage."""


@register("advantage", "gpg")
class Gpg:
    Options = GpgOptions

    def __init__(self, options: GpgOptions | None = None) -> None:
        self._options = options or GpgOptions()

    def advantages(self, members: Sequence[Outcome]) -> Advantages | NoSignal:
        return by_group_mean(members, self._options)

    def of_step(self, groups: Sequence[GroupOutcome]) -> Sequence[Advantages]:
        """The same, scaled by the share of members whose group has a signal."""
        with_signal = [np.ptp([member.reward for member in group.members]) > 0 for group in groups]
        members = sum(len(group.members) for group in groups)
        counted = sum(
            len(group.members) for group, signal in zip(groups, with_signal, strict=True) if signal
        )
        alpha = members / counted if counted else 1.0
        why = f"times {alpha:.4g}: {sum(with_signal)} of {len(groups)} groups have a signal"
        answers: list[Advantages] = []
        for group in groups:
            answer = self.advantages(group.members)
            assert isinstance(answer, Advantages), "it had a signal when it was asked about alone"
            answers.append(msgspec.structs.replace(answer, values=answer.values * alpha, why=why))
        return answers
