"""Keeps groups that were trained on, and opens them again for a batch rule that replays them.

A kept group is what its rank was sent: tokens, behaviour logprobs, advantages. Its prompt is
not issued again and its tokens stay in the account `trained`; how many are trained on once
more is counted beside the accounts. Trained again, the old logprobs are those of the weights
that sampled it, so the loss's ratio is policy over behaviour.
Source: rollout replay, arXiv 2506.05316; the bound on age is ours.
"""

from __future__ import annotations

import msgspec

from pipeline.coordinator.groups import Group, GroupState, Kept
from pipeline.coordinator.learner_feed import train_group
from pipeline.coordinator.staleness import versions
from pipeline.coordinator.state import CoordinatorState
from pipeline.plugins.views import KeptView


class ReplayBuffer:
    def __init__(self, core: CoordinatorState) -> None:
        self._core = core
        self.kept: dict[int, Kept] = {}  # by group, oldest first

    def keep(self, group: Group) -> None:
        """Keep a group that is about to count as trained; the oldest beyond `step.keep` go."""
        core = self._core
        rewards = [m.reward for m in group.members if m.id in group.chosen and m.reward is not None]
        sent = train_group(group, core.step, core.version)
        self.kept[group.id] = Kept(
            group=group.id,
            prompt=group.prompt,
            reward=sum(rewards) / max(1, len(rewards)),
            version=min(versions(group), default=core.version),
            step=core.step,
            members=tuple(msgspec.structs.replace(m, old=m.behaviour) for m in sent.members),
            variants=sent.variants,
        )
        while len(self.kept) > core.settings.keep:
            del self.kept[next(iter(self.kept))]

    def views(self) -> tuple[KeptView, ...]:
        """What may be trained on again; groups that have become too old are let go."""
        oldest = self._core.version - self._core.settings.keep_versions
        self.kept = {i: kept for i, kept in self.kept.items() if kept.version >= oldest}
        return tuple(
            KeptView(
                group=kept.group,
                prompt=kept.prompt,
                tag=self._core.tag(kept.prompt),
                reward=kept.reward,
                version=kept.version,
                step=kept.step,
                replays=kept.replays,
            )
            for kept in self.kept.values()
        )

    def refusal(self, group: int) -> str:
        """Why this group cannot be replayed in the open step; '': it can."""
        if group not in self.kept:
            return f"group {group} is not kept"
        live = self._core.groups.values()
        if any(other.replay and other.replay.group == group for other in live):
            return f"group {group} is replayed in this step already"
        return ""

    def open(self, group: int) -> Group:
        """A group that can be taken at once, and trains on what is kept of this one."""
        core, kept = self._core, self.kept[group]
        again = Group(
            id=core.next_group,
            kind="train",
            prompt=kept.prompt,
            attempt=0,
            step=core.step,
            size=0,
            max_tokens=0,
            state=GroupState.READY,
            since=core.now,
            replay=kept,
        )
        core.next_group += 1
        core.enter(again)
        return again

    def end(self, group: Group, kept: Kept) -> None:
        """It has left the step, trained on or not."""
        core = self._core
        if group.state is not GroupState.TRAINED:
            return
        core.ledger.replayed += kept.tokens
        core.stats.replayed += kept.tokens
        core.stats.add_fate("replayed")
        if kept.group in self.kept:
            self.kept[kept.group] = msgspec.structs.replace(kept, replays=kept.replays + 1)
