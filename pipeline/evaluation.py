"""Evaluation: held-out prompts, sampled between a publish and the next step's prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.core import Core
from pipeline.figures import length_figures
from pipeline.groups import Group, State
from pipeline.roster import Roster


class Evaluations:
    def __init__(self, core: Core) -> None:
        self._core = core
        self.last_step = -1  # step at which the last one was finished
        self.history: list[dict[str, float]] = []
        self._open = 0
        self._rewards: list[float] = []
        self._by_tag: dict[str, list[float]] = {}  # rewards by kind of prompt
        self._lengths_by_tag: dict[str, list[int]] = {}
        self._lengths: list[int] = []
        self._truncated = 0
        self._missing = 0
        self._since = 0.0
        self.numbers_before = (0, 0)  # of the next group and trajectory, when it began

    def due(self, final: bool) -> bool:
        """Before the first step, every `eval_every` steps, and after the last."""
        every = self._core.settings.eval_every
        step = self._core.step
        return bool(every) and self.last_step != step and (step % every == 0 or final)

    def begin(self, roster: Roster) -> None:
        settings = self._core.settings
        self._rewards, self._lengths, self._truncated, self._missing = [], [], 0, 0
        tags = sorted(set(settings.held_out_tags) - {""})
        self._by_tag, self._lengths_by_tag = {tag: [] for tag in tags}, {tag: [] for tag in tags}
        self._since = self._core.now
        self.numbers_before = (self._core.next_group, self._core.next_trajectory)
        self._open = settings.held_out
        for prompt in range(settings.held_out):
            roster.open(
                "eval", prompt, 0, settings.eval_samples, settings.max_tokens, settings.eval_samples
            )

    def add(self, group: Group) -> None:
        """All samples of a held-out prompt are scored."""
        self._open -= 1
        tags = self._core.settings.held_out_tags
        tag = tags[group.prompt] if tags else ""
        for member in group.members:
            if member.state is State.ABORTED:
                continue
            self._lengths.append(member.sampled)
            self._truncated += member.state is State.TRUNCATED
            if tag:
                self._lengths_by_tag[tag].append(member.sampled)
            if member.reward is None:
                self._missing += 1
            else:
                self._rewards.append(member.reward)
                if tag:
                    self._by_tag[tag].append(member.reward)

    @property
    def done(self) -> bool:
        return self._open == 0

    @property
    def open(self) -> int:
        return self._open

    @property
    def untouched(self) -> bool:
        """Whether one has begun of which nothing has ended."""
        return 0 < self._open == self._core.settings.held_out

    def finish(self) -> None:
        count = max(1, len(self._lengths))
        figures: dict[str, float] = {
            "accuracy": sum(self._rewards) / max(1, len(self._rewards)),
            **length_figures(self._lengths),
            "truncated": self._truncated / count,
            "samples": len(self._lengths),
            "missing": self._missing,
            "seconds": self._core.now - self._since,
        }
        self.last_step = self._core.step
        self.history.append({"step": self._core.step, **figures})
        self._core.report(
            "eval",
            **figures,
            by_tag=_means(self._by_tag),
            tokens_by_tag=_means(self._lengths_by_tag),
            version=self._core.version,
        )


def _means(by_tag: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {tag: sum(found) / max(1, len(found)) for tag, found in by_tag.items()}
