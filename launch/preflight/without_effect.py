"""A configuration -> settings in it that change nothing, because of another one.

They are legitimate (a short try of a long configuration has many) and never refused: a line
each is printed before a run starts, so that nobody waits for what does not come. What makes
no sense together is refused when a configuration is loaded (`pipeline.config.rules`).
Defaults are not mentioned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.config import deepspeed_json, logprob_uses
from pipeline.config.evaluation import EvalConfig
from pipeline.config.load import plugin_class
from pipeline.config.schema import Config, LearnerConfig, MetricsConfig
from pipeline.plugins import registry
from pipeline.plugins.budgets._top_up import most_candidates
from pipeline.plugins.budgets.length_variance import LengthVarianceOptions
from pipeline.plugins.budgets.uniform import UniformOptions, candidates_of
from pipeline.stage.build import spare_groups

_HOLDS = {"pilot_commit", "xrpo"}
"""Selectors of the house that hold groups."""
_INCLUDES = {"luffy"}
"""Those that include solutions of the data."""


def without_effect(config: Config) -> list[str]:
    """Returns a line for each such setting: its key, its value, and why nothing comes of it."""
    found = [
        *_schedules(config),
        *_streaming(config),
        *_learner(config),
        *_candidates(config),
        *_prompts(config),
        *_engine(config),
    ]
    return [f"note: {key} is {text}" for key, text in found]


def _schedules(config: Config) -> Iterator[tuple[str, str]]:
    count, audit, evaluation = config.step.count, config.audit.every, config.eval
    if audit > count > 0:
        yield "audit.every", f"{audit}, but step.count is {count}: no step is audited"
    elif audit and config.selector.name == "all":
        yield "audit.every", f"{audit}, but the selector all trains on every candidate"
    if not evaluation.every:
        if evaluation.sets:
            names = ", ".join(evaluation.sets)
            yield "eval.sets", f"given ({names}), but eval.every is 0"
        for name in ("greedy", "temperature", "top_p", "top_k", "min_p", "max_tokens"):
            value = getattr(evaluation, name)
            if value != getattr(EvalConfig(), name):
                yield f"eval.{name}", f"{str(value).lower()}, but eval.every is 0"
    if not config.metrics.timing and config.metrics.trace_steps != MetricsConfig().trace_steps:
        if config.metrics.trace_steps:
            yield (
                "metrics.trace_steps",
                f"{config.metrics.trace_steps}, but metrics.timing is false: no trace is written",
            )


def _streaming(config: Config) -> Iterator[tuple[str, str]]:
    section, limit = config.learner, config.sampling.max_tokens
    if section.overlap != "token":
        return
    chunk = config.engine.chunk_tokens
    if not logprob_uses.of(config).streamed:
        why = "no old or reference logprobs are wanted: as with group"
        if section.zero == 3:
            why = "with learner.zero 3 all ranks compute together: as off"
        yield "learner.overlap", f"token, but {why}"
    elif chunk >= limit > 1:
        why = f"engine.chunk_tokens is {chunk}, and a response has at most {limit}"
        yield "learner.overlap", f"token, but {why}: none is streamed before its end"
    elif section.kv_tokens < limit:
        why = f"a response may have {limit}: the longest are computed when their group comes"
        yield "learner.overlap", f"token, but learner.kv_tokens is {section.kv_tokens}, and {why}"


def _learner(config: Config) -> Iterator[tuple[str, str]]:
    section, need = config.learner, config.step.prompts
    if section.min_lr and section.schedule == "constant":
        yield "learner.min_lr", f"{section.min_lr:g}, but learner.schedule is constant"
    if section.schedule != "constant" and section.warmup_steps >= config.step.count > 0:
        why = f"learner.warmup_steps is {section.warmup_steps}, and the run has no step after them"
        yield "learner.schedule", f"{section.schedule}, but {why}"
    if section.importance not in ("auto", "off"):
        cls, _ = plugin_class("loss", config.loss)
        if getattr(cls, "own_importance", False):
            why = f"the loss {config.loss.name} corrects for stale tokens itself, or not at all"
            yield "learner.importance", f"{section.importance}, but {why}"
    fresh = section.updates * section.epochs == 1 and not section.max_staleness
    if config.loss.name == "kl_cov" and fresh:
        why = "with one update and no stale tokens every ratio is 1"
        yield "loss", f"kl_cov, but {why}: no token is held near the old policy"
    if section.no_decay != LearnerConfig().no_decay and not section.weight_decay:
        yield "learner.no_decay", f"{', '.join(section.no_decay)}, but learner.weight_decay is 0"
    decay = section.reference_decay
    if section.reference != "average" and decay != LearnerConfig().reference_decay:
        yield "learner.reference_decay", f"{decay:g}, but learner.reference is not average"
    if gamma := section.policy_shaping:
        if not config.data.solution:
            yield "learner.policy_shaping", f"{gamma:g}, but no data.solution is trained on"
        elif config.loss.name == "drpo":
            yield "learner.policy_shaping", f"{gamma:g}, but the loss drpo weighs whole responses"
    longest = config.sampling.max_tokens + config.data.max_prompt_tokens
    cap = section.tokens_per_micro_batch
    if cap < longest:
        why = f"a prompt and its response may have {longest}: longer ones are computed alone"
        yield "learner.tokens_per_micro_batch", f"{cap}, but {why}, above this limit"
    if section.ranks * section.updates > need:
        why = f"{section.updates} mini-batch(es) of a step with {need} prompt(s)"
        yield "learner.ranks", f"{section.ranks}, but there are {why}: some ranks have no group"
    with contextlib.suppress(deepspeed_json.DeepSpeedFileError):  # told as a problem
        if keys := deepspeed_json.without_effect(section):
            yield "learner.deepspeed", f"a file whose {', '.join(keys)} change nothing here"


def _candidates(config: Config) -> Iterator[tuple[str, str]]:
    """Candidates that a budget never gives, and members that a selector never waits for."""
    budget, selector = config.budget.options, config.selector.options
    name, key = f"budget.{config.budget.name}", f"selector.{config.selector.name}"
    size = config.group.size
    tops_up = budget.get("top_up", "none") != "none"
    if known := _bounds(config):
        low, high, upper = known
        if tops_up and low >= upper:
            why = f"a group begins with at least {low} candidates, and most allows {upper}"
            yield f"{name}.top_up", f"{budget['top_up']}, but {why}"
        high = max(high, upper) if tops_up else high
        prune_at = selector.get("prune_at", 0.0)
        if prune_at * size > high:
            why = f"{name} gives a group at most {high} candidates, for {size} trained on"
            yield f"{key}.prune_at", f"{prune_at:g}, but {why}"
    if config.engine.knee and not tops_up:
        yield "engine.knee", f"{config.engine.knee}, but {name} gives no candidates by top_up"
    if budget.get("mean") and budget.get("time_weight", 0.5) != 0.5:
        why = f"mean is {budget['mean']:g}, so no utility is maximised"
        yield f"{name}.time_weight", f"{budget['time_weight']:g}, but {why}"
    if "depth" in selector:
        depth = selector["depth"]
        if depth == "none" and selector["longest"] != 1:
            yield f"{key}.longest", f"{selector['longest']}, but depth is none"
        if depth != "none" and selector["slack"] != 1:
            yield f"{key}.slack", f"{selector['slack']}, but depth is {depth}"


def _bounds(config: Config) -> tuple[int, int, int] | None:
    """Returns between how many candidates a group begins with, and how many it has at most; None
    for a budget of the user's."""
    _, options = plugin_class("budget", config.budget)
    size = config.group.size
    match options:
        case UniformOptions():
            count = candidates_of(options, size)
            return count, count, most_candidates(options, size)
        case LengthVarianceOptions():
            most = most_candidates(options, size)
            return size + options.spare, most, most
        case _:
            return None


def _prompts(config: Config) -> Iterator[tuple[str, str]]:
    step = config.step
    need = step.prompts * (1 + config.learner.max_staleness)  # of the steps that are open at once
    most = int(step.tries * need)
    spare = spare_groups(step)
    if most < need + spare:
        why = f"step.tries allows {most} groups, and {need} are trained on"
        key = "step.reserve" if step.reserve else "step.reserve_share"
        value = step.reserve or step.reserve_share
        yield key, f"{value:g}, but {why}: at most {most - need} are in reserve"
    if config.advantage.options.get("drop_equal") and most == need:
        key = f"advantage.{config.advantage.name}.drop_equal"
        why = f"step.tries allows {most} groups, as many as are trained on"
        yield key, f"true, but {why}: dropped groups are not replaced, and steps are smaller"
    if config.batch.name == "quorum":
        batch = config.batch.options
        if batch["share"] == 1:
            yield "batch.quorum.share", "1: no group may close with fewer members, as with fifo"
        elif batch["size"] == config.group.size:
            yield "batch.quorum.size", f"{batch['size']}, which is group.size: as with fifo"
    if config.batch.name == "replay" and not step.keep:
        share = config.batch.options["fresh"]
        yield "batch.replay.fresh", f"{share:g}, but step.keep is 0: nothing is there to replay"
    elif step.keep and config.batch.name in {*registry.builtin_names("batch")} - {"replay"}:
        yield "step.keep", f"{step.keep}, but batch {config.batch.name} replays nothing"
    without = {*registry.builtin_names("selector")} - _INCLUDES
    if config.data.solution and config.selector.name in without:
        why = f"selector {config.selector.name} puts no solution into a group"
        yield "data.solution", f"{config.data.solution}, but {why}"
    hold_none = {*registry.builtin_names("selector")} - _HOLDS
    if step.hold and config.selector.name in hold_none:
        yield "step.hold", f"{step.hold:g}, but selector {config.selector.name} holds no group"
    turn = config.environment.options.get("turn_tokens", 0)
    if turn >= config.sampling.max_tokens:
        why = f"a whole response has at most {config.sampling.max_tokens}"
        yield f"environment.{config.environment.name}.turn_tokens", f"{turn}, but {why}"


def _engine(config: Config) -> Iterator[tuple[str, str]]:
    section = config.engine
    for library, given in (("vllm", section.vllm), ("transformers", section.transformers)):
        if given and section.kind != library:
            names = ", ".join(given)
            yield f"engine.{library}", f"given ({names}), but engine.kind is {section.kind}"
