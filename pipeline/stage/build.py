"""A configuration becomes a coordinator: settings in numbers, plug-ins constructed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from pipeline.config import logprob_uses
from pipeline.config.load import environment_options, plugin_class
from pipeline.config.schema import Config, Plugin, StepConfig
from pipeline.config.trained import learner_ranks
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.state import Plugins, Settings
from pipeline.coordinator.timeouts import Timeouts
from pipeline.data.dataset import ANSWERS, DataError, Dataset
from pipeline.data.eval_sets import HeldOut
from pipeline.data.tokenizer import Tokenizer
from pipeline.observability.trackers import Tracker
from pipeline.plugins import registry
from pipeline.plugins.interfaces import RewardOptions, wants_of
from pipeline.plugins.variants import column_and_share
from pipeline.plugins.views import EvalSet, SourceView
from pipeline.system.run_folder import RunFolder
from pipeline.wire.server import StageServer

GAP_LIMIT_FLOAT32 = 1e-3
"""Nats; 4e-6 was measured on a CPU."""
GAP_LIMIT_ROUNDED = 2.0
"""Nats, where engine or learner is in bfloat16: 0.29 was measured on the built-in model, at
temperature 0.7; one wrong layer shows 9 and more there, a wrong temperature 6."""


@dataclass(slots=True)
class Parts:
    """The parts of a stage; built by `pipeline.stage`."""

    config: Config
    run: RunFolder
    server: StageServer
    coordinator: Coordinator
    tokenizer: Tokenizer
    data: dict[str, Dataset]  # kind of group (train, eval) -> prompts
    incarnation: int
    weights: Path
    spare_weights: Path  # on the disk: for a version that finds no room in `weights`
    resumed_step: int  # of the checkpoint that the run continues from, -1 for none
    trackers: list[Tracker] = field(default_factory=list[Tracker])
    notes: tuple[str, ...] = ()  # warnings that this leg of the run begins with

    @property
    def silence_s(self) -> dict[str, float]:
        """Seconds a peer may be silent, by role: a cut link loses no learner rank at once."""
        lost_s, nodes = self.config.timeouts.heartbeat_s, self.config.nodes
        patience_s = max(nodes.patience_s, lost_s) if self.server.accepts_remote else lost_s
        return {"engine": lost_s, "learner": patience_s}

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, with a variant, and its longest response together."""
        limit = self.config.sampling.max_tokens
        responses = {"train": limit, "eval": self.config.eval.max_tokens or limit}
        return max(
            (
                item.most_tokens + responses[kind]
                for kind, data in self.data.items()
                for item in data.items
            ),
            default=limit,
        )


def coordinator_settings(
    config: Config,
    *,
    prompts: int,
    stop_tokens: frozenset[int],
    sources: tuple[SourceView, ...] = (),
    held_out: int = 0,
    held_out_tags: tuple[str, ...] = (),
    eval_sets: tuple[EvalSet, ...] = (),
) -> Settings:
    """The coordinator's part of the configuration, for so many prompts to train on."""
    exact = config.engine.dtype == config.learner.dtype == "float32"
    options = environment_options(config)
    return Settings(
        seed=config.seed,
        steps=config.step.count,
        need=config.step.prompts,
        reserve=spare_groups(config.step),
        hold=math.floor(config.step.hold * config.step.prompts),
        tries=config.step.tries,
        keep=config.step.keep,
        keep_versions=config.step.keep_versions,
        size=config.group.size,
        max_tokens=config.sampling.max_tokens,
        ranks=learner_ranks(config),
        engines=config.engine.count,
        overlap=config.learner.overlap,
        stream=logprob_uses.of(config).streamed,
        prompts=prompts,
        sources=sources,
        held_out=held_out,
        held_out_tags=held_out_tags,
        eval_every=config.eval.every if held_out else 0,
        eval_samples=config.eval.samples,
        eval_sets=eval_sets,
        eval_max_tokens=config.eval.max_tokens,
        eval_greedy=config.eval.greedy,
        eval_correct=config.eval.correct,
        eval_best=config.eval.best,
        checkpoint_every=config.checkpoint.every,
        stop_tokens=stop_tokens,
        log_wait_s=config.timeouts.log_wait_s,
        limits=limits(config),
        gap_limit=GAP_LIMIT_FLOAT32 if exact else GAP_LIMIT_ROUNDED,
        knee=config.engine.knee,
        placement_order=config.placement.order,
        kv_tokens=config.placement.kv_tokens,
        max_staleness=config.learner.max_staleness,
        stale=config.learner.stale,
        turns=options.turns if options else 0,
        turn_tokens=options.turn_tokens if options else 0,
        audit_every=config.audit.every,
        audit_alarm=config.audit.alarm,
        paced=config.paced,
        group_reward=registry.judges_groups(*plugin_class("reward", config.reward)),
    )


def spare_groups(step: StepConfig) -> int:
    """Groups opened beyond those that a step needs."""
    return step.reserve + math.floor(step.reserve_share * step.prompts + 0.5)


def limits(config: Config) -> Timeouts:
    """Returns how long each kind of wait may last."""
    timeouts, (_, options) = config.timeouts, plugin_class("reward", config.reward)
    batch = options.batch if isinstance(options, RewardOptions) else 1
    return Timeouts(
        join_s=timeouts.join_s,
        load_s=timeouts.load_s,
        abort_s=timeouts.abort_s,
        sampling_s=timeouts.sampling_s,
        no_token_s=timeouts.no_token_s,
        # A call whose worker dies is tried again, a batch that fails response by response.
        reward_s=timeouts.reward_s + (1 + batch) * config.workers.limit_s,
        learner_s=timeouts.learner_s,
        close_s=config.learner.close_s,
        checkpoint_s=timeouts.checkpoint_s,
    )


def build_plugins(config: Config) -> Plugins:
    """The plug-ins that decide in the stage. Raises PluginError."""
    return make_plugins(deciding(config), config.seed)


def deciding(config: Config) -> dict[str, Plugin]:
    """Kind -> plug-in, of those that decide in the stage."""
    return {kind: getattr(config, kind) for kind in Plugins.__struct_fields__}


def make_plugins(named: Mapping[str, Plugin], seed: int) -> Plugins:
    """The plug-ins of these names and options. Raises PluginError, msgspec.ValidationError."""

    def make(kind: str, **extra: Any) -> Any:
        cls, options = plugin_class(kind, named[kind])
        return cls(options, **extra)

    return Plugins(
        prompt_order=make("prompt_order", seed=seed),
        budget=make("budget"),
        selector=make("selector"),
        batch=make("batch"),
        advantage=make("advantage"),
    )


def coordinator(
    config: Config, tokenizer: Tokenizer, train: Dataset, held_out: HeldOut
) -> Coordinator:
    """A fresh coordinator for this run. Raises DataError if prompts lack what the reward wants,
    PluginError if the model has no tokens for what an environment may append."""
    check_answers(config, train, held_out.data)
    _check_entropy(config)
    _check_failure_text(config, tokenizer)
    lengths = [len(item.tokens) // 4 for item in train.items]
    tags = [item.tag for item in train.items]
    numbers = coordinator_settings(
        config,
        prompts=len(train),
        sources=train.shares,
        stop_tokens=tokenizer.eos,
        held_out=len(held_out),
        held_out_tags=tuple(item.tag for item in held_out.data.items),
        eval_sets=held_out.sets,
    )
    numbers = structs.replace(numbers, rollouts_every=config.rollouts.every)
    plugins = build_plugins(config)
    _check_group_reward(config, plugins)
    _check_variants(config, plugins)
    _check_solution(config, plugins)
    return Coordinator(numbers, plugins, lengths, tags, train.variant_lengths(), train.solutions())


def _check_group_reward(config: Config, plugins: Plugins) -> None:
    """Rewards over whole groups come after the choice that a selector makes."""
    if wants_of(plugins.selector).reward and registry.judges_groups(
        *plugin_class("reward", config.reward)
    ):
        raise registry.PluginError(
            f"selector.{config.selector.name} decides by rewards, and reward.{config.reward.name} "
            "judges a group once its members have been chosen; name another of either"
        )


def _check_variants(config: Config, plugins: Plugins) -> None:
    """What a plug-in says beforehand, in `variants`, that it will name."""
    for kind in ("selector", "budget"):
        for variant in getattr(getattr(plugins, kind), "variants", ()):
            try:
                column_and_share(variant, config.data.variants)
            except ValueError as error:
                name = getattr(config, kind).name
                raise registry.PluginError(f"{kind}.{name}: {error}; add it there") from error


def _check_solution(config: Config, plugins: Plugins) -> None:
    """A selector that includes the data's solutions needs some."""
    if wants_of(plugins.selector).solution and not config.data.solution:
        raise registry.PluginError(
            f"selector.{config.selector.name} puts the data's solution into each group: name the "
            "field that holds it with data.solution"
        )


def _check_entropy(config: Config) -> None:
    uses = logprob_uses.of(config)
    if uses.entropy and not uses.own:
        raise registry.PluginError(
            f"selector.{config.selector.name}: it decides by entropies, which the learner computes "
            "of streamed tokens: set learner.overlap: token, and learner.zero to 0, 1 or 2"
        )


def _check_failure_text(config: Config, tokenizer: Tokenizer) -> None:
    options = environment_options(config)
    text = options.failure_text if options else ""
    try:
        tokenizer.encode(text)
    except ValueError as error:
        raise registry.PluginError(
            f"environment.{config.environment.name}.failure_text: found {text!r:.80}, which "
            f"{error}; take characters that the model's tokenizer has"
        ) from error


def check_answers(config: Config, *data: Dataset) -> None:
    """A reward that compares with an answer would give every response the same without one."""
    if not registry.needs_answer(*plugin_class("reward", config.reward)):
        return
    for source in (source for dataset in data for source in dataset.sources):
        if not source.answer:
            found = f"no row has any of the fields {', '.join(ANSWERS)}"
            raise DataError(
                f"{source.name}: {found if source.sought else 'data.answer is none'}, and the "
                f"reward {config.reward.name} compares with an answer; name its field with "
                "data.answer"
            )
