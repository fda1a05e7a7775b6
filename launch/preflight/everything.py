"""All checks before a run, as one question: would it start?

Reads model, tokenizer, data and plug-ins as a run would, and starts no engine or learner.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from launch.preflight import rewards
from launch.preflight.plugins import plugin_problems
from launch.preflight.settings import settings_problems
from launch.preflight.weights import weights_line
from launch.preflight.without_effect import without_effect
from pipeline.config import hub, rules
from pipeline.config.schema import Config
from pipeline.data import eval_sets, findings
from pipeline.data.dataset import DataError, load_train
from pipeline.data.tokenizer import ModelError, Tokenizer, refuse_code
from pipeline.data.wanted import wanted_of
from pipeline.plugins.registry import PluginError
from pipeline.stage import build

UNSEEN = "what the engines and the learner need of memory, of GPUs and of each other"
"""What only a start shows."""


class PreflightError(Exception):
    """The run would not start; the message has a line for each reason."""


def check_everything(config: Config, *, ask: bool = False) -> list[str]:
    """Checks model, data and plug-ins; returns lines that say what was found.

    Args:
        ask: also ask the plug-ins that decide a question each, and call the reward (`--dry-run`).

    Raises: PreflightError.
    """
    try:
        tokenizer = Tokenizer(Path(config.model))
        if config.learner.reference_folder:
            refuse_code(Path(config.learner.reference_folder))
        train = load_train(config.data, tokenizer, config.sampling.max_tokens, wanted_of(config))
        held_out = eval_sets.load_eval_sets(config, tokenizer)
        build.coordinator(config, tokenizer, train, held_out)
    except (ModelError, DataError, PluginError) as error:
        raise PreflightError(str(error)) from error
    asked = plugin_problems(config) if ask else []
    if problems := [*settings_problems(config), *asked]:
        raise PreflightError("\n".join(problems))
    data = [train, held_out.data]
    tried = rewards.Tried("")
    if ask:
        try:
            tried = asyncio.run(rewards.try_reward(config, tokenizer, data))
        except rewards.RewardProblems as error:
            raise PreflightError(str(error)) from error
    elif rewards.has_checks(config.reward):
        if problems := asyncio.run(rewards.reward_problems(config, data)):
            raise PreflightError("\n".join(problems))
    told = [*findings.warnings_of(config, tokenizer, train, held_out.data)]
    told += findings.overlap_of(train, held_out.data)
    simulated = config.engine.kind == "simulated"
    skipped = [f"skipped: {line}" for line in (*train.skipped, *held_out.data.skipped)]
    nothing = eval_sets.nothing_held_out(config) if config.eval.every else ""
    return [
        *without_effect(config),
        *([f"note: {nothing}"] if nothing else []),
        *([f"recipe: {config.recipe}"] if config.recipe else []),
        *skipped,
        *(f"warning: {line}" for line in (*rules.warnings(config), *told, *tried.warnings)),
        f"model: {hub.pinned(config.model)} ({tokenizer.vocabulary} tokens)",
        f"weights: {weights_line(config)}",
        *(f"tokens: {fact}" for fact in findings.facts_of(tokenizer, config.sampling.stop)),
        *(["engine: simulated: tokens are random, and nothing is learned"] * simulated),
        f"training: {train.summary_line()}",
        f"held out: {held_out.data.summary_line()}",
        *([f"reward: {tried.line}", f"not looked at: {UNSEEN}"] if ask else []),
        *([f"paced: {pace}: times are emulated"] if (pace := config.paced) else []),
    ]
