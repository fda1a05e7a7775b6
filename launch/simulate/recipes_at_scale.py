"""Recipes at published scale: each beside synchronous rollout, and beside its paper's headline.

Turns recipe and set-up into one simulated run, and that into times, tokens and signal against
synchronous rollout in the same set-up. A recipe is laid over synchronous rollout, so that a row
shows what the recipe changes, and its numbers of tokens grow with the limit. What the papers
report, and why a run is elsewhere, is in `headlines`. Every built-in recipe is simulated, or in
`NOT_SIMULATED`, or acts on the learner alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from launch.simulate import CONFIG
from launch.simulate.headlines import HEADLINES, NONE, TOLERANCE, Counts, Headline
from launch.simulate.methods_at_scale import SYNC
from launch.simulate.scenario import STOP, Metrics, Scenario, run_method
from pipeline.config.load import load
from pipeline.config.recipes import builtin_recipes
from pipeline.coordinator.events import AnyCommand, AnyEvent, ForgetGroup, Generate, TrainGroup
from pipeline.simulation.workload import Lengths
from pipeline.stage import build

OF_LIMIT = 128
"""`sampling.max_tokens` of configs/quickstart.yaml, for which recipes give numbers of tokens."""
TOKEN_OPTIONS = (
    "selector.arrol.checkpoint",
    "selector.duet.checkpoint",
    "selector.dot.every",
    "selector.echo.window",
    "selector.ulorl.segment",
    "advantage.grpo.overlong_tokens",
)
"""Options of recipes that are numbers of tokens; a run has them in proportion to its limit."""

NOT_SIMULATED = {
    "dars_breadth": "as `dars`; the second pass over a batch is the learner's",
    "echo": "prunes by how confidence moves within a response, which a modelled one has not",
    "grpo": "is synchronous rollout, the baseline",
    "loong_rl": "is plain GRPO; the method is in the data",
    "luffy": "is plain GRPO beside solutions of the data, which cost an engine nothing",
    "scope": "needs a reward that scores the steps of a response",
}
"""Recipes that a simulation of time has nothing to say of, and why."""


# --- set-ups ------------------------------------------------------------------------------------

COMMON = Scenario(engines=32, steps=4, learner_gpus=128)
"""7B on 32 H20, 128 prompts x 8, a limit of 8192."""
_KNOWN = {"steps": 6, "dataset": 256}
"""Three epochs, where a recipe goes by what it has learnt of a prompt."""
_AHEAD = 10
"""Steps where generation runs ahead, which it does not at the end of a run."""
_UNLIKE = msgspec.structs.replace(COMMON.lengths, difficulty=3.0)
"""Prompts of which many are always right or always wrong."""
_16K = Lengths(median=2000, between=0.45, within=0.9)
_DARTS = Lengths(median=800, between=0.4, within=0.335, uneven=0.3)  # `published`, as fitted
_64K = Lengths(median=9600, between=0.45, within=0.8)  # as COMMON's, for each token of the limit


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One row: a recipe in a set-up."""

    recipe: str
    setup: str = ""  # what is not as in COMMON
    scenario: Scenario = COMMON
    more: tuple[str, ...] = ()  # settings over the recipe's
    base_size: int = 8  # M of synchronous rollout


def _case(recipe: str, setup: str, *more: str, base_size: int = 8, **changed: Any) -> Case:
    scenario = msgspec.structs.replace(COMMON, **changed)
    return Case(recipe=recipe, setup=setup, scenario=scenario, more=more, base_size=base_size)


_OWN = (
    *(_case(recipe, "", **_KNOWN) for recipe in ("dart_gui", "dot", "duet")),
    *(_case(recipe, "", steps=_AHEAD)
      for recipe in ("areal", "decoupled_ppo", "minpro", "off_policy_mask", "ppo_ewma", "roll",
                     "vespo")),
    *(_case(recipe, "", steps=8) for recipe in ("sorted_rl", "sorted_rl_strict", "tti")),
    _case("april", "8 H20, 32 x 8, limit 16384, a learner for nothing", steps=_AHEAD, engines=8,
          prompts=32, limit=16_384, lengths=_16K, learner_factor=1e-3),
    _case("brorl", "8 H20, 16 x 512 against 16 x 16, a learner for nothing", base_size=16, steps=2,
          engines=8, prompts=16, learner_factor=1e-3),
    _case("darts_published", "the first table's prompts, a learner of 32 H20", learner_gpus=32,
          lengths=_DARTS, **_KNOWN),
    _case("pilot_commit", "16 x 64, unlike prompts", base_size=64, size=64, prompts=16,
          lengths=_UNLIKE),
    _case("siri", "a cycle of 4 steps", "budget.siri.period=4"),
    _case("tail_batching", "128 H800, limit 16384", steps=5, engines=128, device="h800",
          learner_gpus=128, limit=16_384, lengths=_16K),
    _case("ulorl", "30B-A3B on 16 x 4 H800, 64 x 8, limit 65536", steps=8, shape="qwen3-30b-a3b",
          device="h800", engines=16, gpus_of_engine=4, prompts=64, limit=65_536, lengths=_64K),
    _case("vcpo", "a lag of 2", "learner.max_staleness=2", steps=_AHEAD),
    *(_case(recipe, "unlike prompts", lengths=_UNLIKE, **_KNOWN)
      for recipe in ("dapo", "difficulty", "difficulty_replay", "reward_variance", "xrpo")),
)  # fmt: skip
"""Set-ups of the papers, as far as our sources name them, and what shows a recipe at work."""


def cases() -> list[Case]:
    """Every recipe that acts on more than the learner, by name, in its own set-up or in COMMON."""
    own = {case.recipe: case for case in _OWN}
    return [
        own.get(recipe.name, Case(recipe=recipe.name))
        for recipe in builtin_recipes()
        if recipe.acts_on != ("learn",) and recipe.name not in NOT_SIMULATED
    ]


def of_learner() -> list[str]:
    """Recipes that act on the learner alone: neither times nor tokens are theirs."""
    recipes = builtin_recipes()
    return [r.name for r in recipes if r.acts_on == ("learn",) and r.name not in NOT_SIMULATED]


def settings_of(case: Case) -> tuple[Scenario, tuple[str, ...]]:
    """The case's scenario and settings: its recipe over synchronous rollout, with overlap unless
    the recipe says otherwise, and its tokens in proportion to the limit."""
    recipe = f"recipe=grpo,{case.recipe}"
    found, plain = [recipe], load(CONFIG)
    config = load(CONFIG, found)
    scenario = case.scenario
    if config.group.size != plain.group.size:
        scenario = msgspec.structs.replace(scenario, size=config.group.size)
    if config.learner.overlap == "off":
        found.append("learner.overlap=group")
    for option in TOKEN_OPTIONS:
        kind, plugin, key = option.split(".")
        chosen = getattr(config, kind)
        if chosen.name == plugin and (tokens := chosen.options[key]):
            found.append(f"{option}={max(1, tokens * scenario.limit // OF_LIMIT)}")
    if held := config.placement.kv_tokens:
        found.append(f"placement.kv_tokens={held * scenario.limit // OF_LIMIT}")
    return scenario, (*found, *case.more)


# --- runs ---------------------------------------------------------------------------------------


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run; a step's where nothing else is said."""

    metrics: Metrics
    rollouts: float  # that were begun
    signal: float  # reward variance of the groups trained on, times their members


class Seen:
    """Counts rollouts and signal as the coordinator sends them out."""

    def __init__(self) -> None:
        self._rollouts: set[int] = set()
        self._signal: dict[int, list[float]] = {}  # group -> of each time it was trained on

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        del now, event
        for command in commands:
            match command:
                case Generate(kind="train"):
                    self._rollouts.add(command.trajectory)
                case TrainGroup():
                    rewards = [member.reward for member in command.members if member.weight]
                    signal = len(rewards) * statistics.pvariance(rewards) if rewards else 0.0
                    self._signal.setdefault(command.group, []).append(signal)
                case ForgetGroup():
                    self._signal[command.group].pop()
                case _:
                    pass

    def figures(self, metrics: Metrics, steps: int) -> Figures:
        return Figures(
            metrics=metrics,
            rollouts=len(self._rollouts) / steps,
            signal=sum(map(sum, self._signal.values())) / steps,
        )


def figures_of(scenario: Scenario, overrides: Sequence[str]) -> Figures:
    """Simulates one run."""
    seen = Seen()
    metrics, _ = run_method(scenario, overrides, [seen])
    return seen.figures(metrics, scenario.steps)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe against synchronous rollout in the same set-up."""

    recipe: str
    setup: str
    speed_up: float
    per_token: float  # speed-up per token trained on
    per_signal: float
    sampled_per_trained: float
    depth: float
    idle: float  # share of slot-seconds while a step generates
    simulated: float | None  # what the headline counts, of this run


def row_of(case: Case, base: Figures, own: Figures) -> Row:
    """Compares two runs, and finds what the recipe's headline counts."""
    speed_up = base.metrics.step_s / own.metrics.step_s
    factors = {
        Counts.STEP: speed_up,
        Counts.THROUGHPUT: speed_up * _sampled(own.metrics) / _sampled(base.metrics),
        Counts.BUBBLE: base.metrics.bubble_engine / own.metrics.bubble_engine,
        Counts.ROLLOUTS: base.rollouts / base.signal / own.rollouts * own.signal,
        Counts.SIGNAL: speed_up * own.signal / base.signal,
    }
    counts = headline_of(case.recipe).counts
    return Row(
        recipe=case.recipe,
        setup=case.setup,
        speed_up=speed_up,
        per_token=speed_up * own.metrics.trained_tokens / base.metrics.trained_tokens,
        per_signal=factors[Counts.SIGNAL],
        sampled_per_trained=own.metrics.sampled_per_trained,
        depth=own.metrics.depth,
        idle=own.metrics.bubble_engine,
        simulated=factors[counts] if counts else None,
    )


def _sampled(metrics: Metrics) -> float:
    return metrics.sampled_per_trained * metrics.trained_tokens


def headline_of(recipe: str) -> Headline:
    return HEADLINES.get(recipe, NONE)


def recipe_table(
    progress: Callable[[str], None], chosen: Sequence[Case] | None = None
) -> list[Row]:
    """Simulates every case, and synchronous rollout once in each set-up."""
    known: dict[bytes, Figures] = {}
    rows: list[Row] = []
    for case in cases() if chosen is None else chosen:
        same = msgspec.structs.replace(case.scenario, size=case.base_size)
        base, own = (_once(known, *run) for run in ((same, SYNC), settings_of(case)))
        rows.append(row_of(case, base, own))
        progress(f"{case.recipe}: {rows[-1].speed_up:.2f}x")
    return rows


def _once(known: dict[bytes, Figures], scenario: Scenario, overrides: Sequence[str]) -> Figures:
    """Runs that differ in losses alone are the same run."""
    config = scenario.method_config(overrides)
    numbers = build.coordinator_settings(config, prompts=1, stop_tokens=STOP)
    decides = (scenario, build.deciding(config), numbers, config.data.variants)
    key = msgspec.json.encode(decides)
    if key not in known:
        known[key] = figures_of(scenario, overrides)
    return known[key]


# --- the page -----------------------------------------------------------------------------------


def recipe_markdown(rows: Sequence[Row]) -> str:
    """The table, then why a row misses its headline, then the recipes that have no row."""
    titles = "recipe | x | x per token | x per signal | sampled per trained | depth | idle"
    lines = [f"| {titles} | published | simulated | off |", "|---" * 10 + "|"]
    for row in rows:
        headline = headline_of(row.recipe)
        name = f"`{row.recipe}`" + (f" ({row.setup})" if row.setup else "")
        cells = (
            name,
            f"{row.speed_up:.2f}",
            f"{row.per_token:.2f}",
            f"{row.per_signal:.2f}",
            f"{row.sampled_per_trained:.2f}",
            f"{row.depth:.1f}",
            f"{row.idle:.0%}",
            headline.says + (f" ({headline.counts})" if headline.counts else ""),
            "" if row.simulated is None else f"{row.simulated:.2f}",
            "" if row.simulated is None else f"{headline.deviation(row.simulated):+.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_misses(rows), "", *_without_a_row()])


def missed(row: Row) -> bool:
    """Whether what was simulated is further from the headline than needs no reason."""
    if row.simulated is None:
        return False
    return abs(headline_of(row.recipe).deviation(row.simulated)) > TOLERANCE


def _misses(rows: Sequence[Row]) -> Iterator[str]:
    yield "Where a row is off by more than 15%:"
    yield ""
    for row in filter(missed, rows):
        yield f"- `{row.recipe}`: {headline_of(row.recipe).why or 'not explained.'}"


def _without_a_row() -> Iterator[str]:
    yield "Not simulated: " + "; ".join(f"`{n}` {why}" for n, why in NOT_SIMULATED.items()) + "."
    yield ""
    yield (
        "Recipes of the learner alone change neither times nor tokens here: their headlines are "
        "accuracy, stability, or length after training, which a simulation of time cannot show."
    )
    names = of_learner()
    given = [f"`{n}` {HEADLINES[n].says}" for n in names if n in HEADLINES]
    others = [f"`{n}`" for n in names if n not in HEADLINES]
    yield f"Reported: {'; '.join(given)}. No figure in our sources: {', '.join(others)}."
