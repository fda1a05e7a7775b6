"""Metrics that a step and an evaluation are reported by.

Turns lengths, groups that were trained on and seconds of work into numbers.
Pure. Speed that was bought by training on less, or on shorter, text shows in
`sampled_per_trained`, `tokens_trained` and `depth`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.coordinator.groups import ENDED, Group
from pipeline.coordinator.scheduler import Scheduler
from pipeline.coordinator.state import CoordinatorState

LEARNER_WORK = ("ahead_s", "backward_s", "optimizer_s", "publish_s")
"""Metrics of a rank's step that are seconds of its work."""
OF_ENGINES = ("mismatch", "importance", "importance_cut")
"""Metrics of a rank that compare its logprobs with an engine's: nothing of foreign members."""
PREDICTED = "generation_predicted_s"
"""Seconds in which a budget expects the step to be generated; see `Budget.metrics`."""


def length_metrics(lengths: Sequence[int]) -> dict[str, float]:
    """Mean, 95th percentile and maximum of response lengths, tokens; zeros for none."""
    ordered = sorted(lengths)
    count = len(ordered)
    return {
        "tokens_mean": sum(ordered) / max(1, count),
        "tokens_p95": ordered[min(count - 1, int(0.95 * count))] if count else 0,
        "tokens_max": ordered[-1] if count else 0,
    }


def pass_at(k: int, samples: int, correct: int) -> float:
    """pass@k of one prompt, unbiased: the chance that k of its samples, drawn without putting
    any back, hold a correct one.

        1 - C(n - c, k) / C(n, k)    for n samples, c of them correct, 1 <= k <= n

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.

    >>> pass_at(1, samples=4, correct=1), pass_at(2, samples=4, correct=1)
    (0.25, 0.5)
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def part_means(parts: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """Each part of the rewards, mean over the responses that have it.

    >>> part_means({"math": (3.0, 4)})
    {'math': 0.75}
    """
    return {name: total / count for name, (total, count) in sorted(parts.items())}


def token_metrics(sampled: int, trained: int) -> dict[str, float | None]:
    """Response tokens of a step; what is sampled for each token trained on, None without any."""
    return {
        "tokens_sampled": sampled,
        "tokens_trained": trained,
        "sampled_per_trained": sampled / trained if trained else None,
    }


def trained_metrics(groups: Iterable[Group]) -> dict[str, float]:
    """Metrics of groups about to count as trained; none without groups.

    `depth`: longest member trained on, over the median of the group's ended members,
    mean over groups. 1 means that the long half was never learned from.
    `trained_tokens_mean`: response tokens of a member trained on. Foreign members are in neither.
    """
    depths: list[float] = []
    lengths: list[int] = []
    for group in groups:
        if group.replay:
            continue
        held = {m.id: m.sampled for m in group.candidates if m.state in ENDED}
        chosen = [held[i] for i in group.chosen if i in held]
        if not chosen:
            continue
        depths.append(max(chosen) / max(1.0, statistics.median(held.values())))
        lengths += chosen
    if not depths:
        return {}
    return {
        "depth": sum(depths) / len(depths),
        "trained_tokens_mean": sum(lengths) / len(lengths),
    }


def environment_metrics(core: CoordinatorState) -> dict[str, float]:
    """`turns` passed to environments in a step, and `tokens_appended` by them, which count in no
    metric of tokens sampled or trained; nothing without an environment."""
    if not core.settings.turns:
        return {}
    return {"turns": core.stats.turns, "tokens_appended": core.stats.appended}


def placement_metrics(core: CoordinatorState) -> dict[str, Any]:
    """`placement`, what predicted lengths have changed: legs that got a slot before one of an older
    group (`sooner`), and legs that waited for memory while a slot was free (`for_memory`). Beside
    it by how many tokens a response was off what its prompt's earlier ones, or those of all
    prompts, had been on average (`error_mean`). Nothing unless `placement` asks for either."""
    settings, stats = core.settings, core.stats
    found: dict[str, Any] = {}
    if settings.placement_order == "longest":
        found["sooner"] = stats.placed_sooner
    if settings.kv_tokens:
        found["for_memory"] = stats.waited_for_memory
    if found and stats.predicted:
        found["error_mean"] = stats.predicted_off / stats.predicted
    return {"placement": found} if found else {}


def learner_bubble(ranks: Sequence[Mapping[str, float]], seconds: float) -> dict[str, float]:
    """`bubble_learner`: share of the step in which a rank had nothing to do, mean over ranks.

    Args:
        ranks: each rank's metrics of the step; none of them if it had no update.
        seconds: of the step.
    """
    if not ranks or seconds <= 0:
        return {}
    work_s = sum(rank.get(name, 0.0) for rank in ranks for name in LEARNER_WORK)
    return {"bubble_learner": 1.0 - work_s / (seconds * len(ranks))}


def step_metrics(core: CoordinatorState) -> dict[str, Any]:
    """Metrics of every step that has ended; lengths and rewards are of all its candidates."""
    stats = core.stats
    return {
        "version": core.version,
        **({"paced": core.settings.paced} if core.settings.paced else {}),
        "groups": dict(stats.fates),
        **({"groups_equal": stats.equal} if stats.equal else {}),
        "samples": len(stats.lengths),
        "reward": sum(stats.rewards) / max(1, len(stats.rewards)),
        **({"parts": part_means(stats.parts)} if stats.parts else {}),
        **length_metrics(stats.lengths),
        "seconds": core.now - stats.since,
        **({"rewards_shaped": stats.shaped} if stats.shaped else {}),
        **({"tokens_streamed": stats.streamed} if core.settings.stream else {}),
        **({"choices": dict(stats.choices)} if stats.choices else {}),
        **({"kinds": dict(stats.kinds)} if stats.kinds else {}),
        **({"tokens_replayed": stats.replayed} if stats.replayed else {}),
        **foreign_metrics(stats.foreign, stats.foreign_tokens),
        **({"topped_up": stats.topped_up} if stats.topped_up else {}),
        **placement_metrics(core),
        "ledger": {"sampled": core.ledger.sampled, **core.ledger.accounts},
    }


def foreign_metrics(members: int, tokens: int) -> dict[str, Any]:
    """`foreign`, members trained on that were not sampled for their group, and their tokens, which
    count in no metric of tokens sampled or trained; nothing without any."""
    return {"foreign": {"members": members, "tokens": tokens}} if members else {}


def plan_metrics(plan: Mapping[str, float]) -> dict[str, Any]:
    """`budget`, what the budget said of the step's plans, and apart from it, to be read beside
    `generation_s`, the seconds that it expected; nothing from a budget that says nothing.

    >>> plan_metrics({"known": 3, "generation_predicted_s": 1.5})
    {'budget': {'known': 3}, 'generation_predicted_s': 1.5}
    """
    figures = dict(plan)
    seconds = figures.pop(PREDICTED, None)
    found: dict[str, Any] = {"budget": figures} if figures else {}
    return found if seconds is None else found | {PREDICTED: seconds}


class StepReport:
    """Writes the record of each step; sums what holds over steps."""

    def __init__(self, core: CoordinatorState, scheduler: Scheduler) -> None:
        self._core, self._scheduler = core, scheduler
        self.newest: dict[str, Any] = {}  # metrics of the step that was reported last
        self.normaliser = 0.0
        # over all steps since the start or resume
        self._logprob_s = self._hidden_s = 0.0
        self._predicted_s = self._measured_s = 0.0  # of steps whose time was predicted
        self._streamed = 0  # tokens
        self._shaped = 0  # rewards
        self._adaptive: dict[str, int] = {}
        self._kinds: Counter[str] = Counter()
        self._replayed = 0  # tokens
        self._foreign = self._foreign_tokens = 0  # members, and their tokens
        self._topped_up = 0  # candidates
        self._placement: Counter[str] = Counter()
        self._warned_of_parts = False
        self._groups = self._equal = 0  # ended, and those whose rewards were all equal

    @property
    def hidden_share(self) -> float | None:
        """Share of the seconds of forwards for old and reference logprobs that ran while groups
        of the step were still to come; None if there were none."""
        return round(self._hidden_s / self._logprob_s, 4) if self._logprob_s else None

    def mechanisms(self) -> dict[str, Any]:
        """Return what the run's mechanisms did since its start or resume, for `result.json`."""
        return {
            "adaptive": dict(self._adaptive),
            "generation": {
                "predicted_s": round(self._predicted_s, 3),
                "measured_s": round(self._measured_s, 3),
            },
            "tokens_streamed": self._streamed,
            "rewards_shaped": self._shaped,
            "groups": {"ended": self._groups, "equal": self._equal},
            **({"kinds": dict(self._kinds)} if self._kinds else {}),
            **({"tokens_replayed": self._replayed} if self._replayed else {}),
            **foreign_metrics(self._foreign, self._foreign_tokens),
            **({"topped_up": self._topped_up} if self._topped_up else {}),
            **({"placement": dict(self._placement)} if self._placement else {}),
        }

    def write(
        self, metrics: Mapping[str, float], learner: Mapping[str, float], *, opened: int
    ) -> None:
        """Report the step, and warn of what its audit shows."""
        core, stats, ledger = self._core, self._core.stats, self._core.ledger
        self._logprob_s += learner.get("logprob_s", 0.0)
        self._hidden_s += learner.get("logprob_hidden_s", 0.0)
        self._streamed += stats.streamed
        self._shaped += stats.shaped
        self._count_adaptive(stats.plan, stats.choices)
        self._kinds.update(stats.choices)
        self._kinds.update(stats.kinds)
        self._replayed += stats.replayed
        self._foreign += stats.foreign
        self._foreign_tokens += stats.foreign_tokens
        self._topped_up += stats.topped_up
        if core.settings.placement_order == "longest":
            self._placement["sooner"] += stats.placed_sooner
        if core.settings.kv_tokens:
            self._placement["for_memory"] += stats.waited_for_memory
        self._groups += sum(stats.fates.values())
        self._equal += stats.equal
        self._warn_of_missing_parts()
        bias = stats.bias.means()
        alarm, moved = core.settings.audit_alarm, bias.get("advantage_moved", 0.0)
        if alarm and moved > alarm:
            by_kind = ", ".join(
                f"{kind.replace('_', ' and ')} {shift:+.2f}"
                for kind, shift in bias["advantage_shift_by_kind"].items()
            )
            text = f"audit: selection moves the advantage of a member by {moved:.2f} on average"
            core.report("warning", text=f"{text}, above audit.alarm ({alarm:g}); {by_kind}")
        epochs = getattr(core.plugins.prompt_order, "epochs", dict[str, float]())
        self.newest = {
            "step": core.step,
            "opened": opened,
            **step_metrics(core),
            **token_metrics(
                ledger.unevaluated - stats.sampled_before,
                ledger.accounts["trained"] - stats.trained_before,
            ),
            **({"epochs": epochs} if epochs else {}),
            **environment_metrics(core),
            **metrics,
            **self._scheduler.slot_usage.metrics(core.now),
            **plan_metrics(stats.plan),
            **core.weight_proofs.take_step(),
            **({"audit": bias} if bias else {}),
            "learner": {**self._means(stats.learner), **learner},
        }
        if PREDICTED in stats.plan:
            self._predicted_s += stats.plan[PREDICTED]
            self._measured_s += self.newest["generation_s"]
        core.report("step", **self.newest)

    def _warn_of_missing_parts(self) -> None:
        """Warn once of a selector that never acts, since no reward has the parts it goes by."""
        wanted, stats = self._core.wants.parts, self._core.stats
        if self._warned_of_parts or not wanted or not stats.rewards:
            return
        if not stats.parts.keys() & set(wanted):
            self._warned_of_parts = True
            name = type(self._core.plugins.selector).__name__
            text = f"selector {name} goes by a reward's part {' or '.join(wanted)}"
            many = len(stats.rewards)
            self._core.report("warning", text=f"{text}, and none of {many} rewards has it")

    def _count_adaptive(self, plan: Mapping[str, float], choices: Mapping[str, int]) -> None:
        """Sum how much of what adapts to the prompts has acted: see `result.json`."""
        if "known" in plan:
            known, unseen = int(plan["known"]), int(plan["unseen"])
            more = {"prompts_known": known, "prompts_planned": known + unseen, **choices}
            for name, count in more.items():
                self._adaptive[name] = self._adaptive.get(name, 0) + count

    def _means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Ranks' sums over tokens as means: the loss over the normaliser, the others over the
        tokens that were computed, those of engines over the ones that were sampled here; the
        largest stay as they are."""
        if not sums:
            return {}
        whole = max(1.0, self.normaliser)
        computed = sums.get("computed", whole)
        over = {"loss": whole} | dict.fromkeys(OF_ENGINES, computed - sums.get("foreign", 0.0))
        means = {
            name: value if name.endswith("_max") else value / (over.get(name, computed) or 1.0)
            for name, value in sums.items()
            if name != "computed"
        }
        share = {"computed_share": min(1.0, computed / whole)}  # a forgotten group's are in it
        return means | (share if means else {})
