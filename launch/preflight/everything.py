"""All checks before a run, as one question: would it start?

Reads model, tokenizer, data and plug-ins as a run would, and starts no engine or learner.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from launch.preflight import rewards
from launch.preflight.plugins import plugin_problems
from launch.preflight.settings import settings_problems
from launch.preflight.without_effect import without_effect
from pipeline.config import rules
from pipeline.config.schema import Config
from pipeline.data import eval_sets
from pipeline.data.dataset import DataError, load_train
from pipeline.data.tokenizer import ModelError, Tokenizer, refuse_code
from pipeline.plugins.registry import PluginError
from pipeline.stage import build


class PreflightError(Exception):
    """The run would not start; the message has a line for each reason."""


def check_everything(config: Config, *, ask: bool = False) -> list[str]:
    """Checks model, data and plug-ins; returns lines that say what was found.

    Args:
        ask: also ask the plug-ins that decide a question each (`--dry-run`).

    Raises: PreflightError.
    """
    try:
        tokenizer = Tokenizer(Path(config.model))
        if config.learner.reference not in ("", "start"):
            refuse_code(Path(config.learner.reference))
        train = load_train(config.data, tokenizer, config.sampling.max_tokens)
        held_out = eval_sets.load_eval_sets(config, tokenizer)
        build.coordinator(config, tokenizer, train, held_out)
    except (ModelError, DataError, PluginError) as error:
        raise PreflightError(str(error)) from error
    if problems := [*settings_problems(config), *(plugin_problems(config) if ask else [])]:
        raise PreflightError("\n".join(problems))
    if rewards.has_checks(config.reward):
        if problems := asyncio.run(rewards.reward_problems(config, [train, held_out.data])):
            raise PreflightError("\n".join(problems))
    skipped = [f"skipped: {line}" for line in (*train.skipped, *held_out.data.skipped)]
    return [
        *without_effect(config),
        *([f"recipe: {config.recipe}"] if config.recipe else []),
        *skipped,
        *(f"warning: {line}" for line in rules.warnings(config)),
        f"model: {config.model} ({tokenizer.vocabulary} tokens)",
        f"training: {train.summary_line()}",
        f"held out: {held_out.data.summary_line()}",
        *([f"paced: {pace}: times are emulated"] if (pace := config.paced) else []),
    ]
