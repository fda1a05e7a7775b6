"""Checks a run's reward against its data, before anything starts.

Starts workers as a run would: a reward that cannot be built, a server that does not answer and
reference answers that cannot be graded are found in seconds, not in hours.
"""

from __future__ import annotations

from pipeline.config.schema import Config, Plugin
from pipeline.data.dataset import Dataset, Item
from pipeline.plugins import registry
from pipeline.plugins.views import Sampled
from pipeline.workers.pool import RewardFailed, RewardPool

LOOKED_AT = 200
"""Largest number of answers checked in each data set, evenly spread over it."""
_SHOWN = 20  # complaints listed


def has_checks(plugin: Plugin) -> bool:
    """Returns True if the plug-in can check answers before a run. Raises PluginError."""
    return hasattr(registry.find_plugin("reward", plugin.name), "complaint")


async def reward_problems(config: Config, data: list[Dataset]) -> list[str]:
    """Returns a line for each answer that the reward cannot use, or why it cannot start."""
    plugin = config.reward
    items = [item for found in data for item in _spread(found)]
    try:
        async with RewardPool(plugin, config.workers, most=1) as pool:
            found = await pool.check_answers([_unanswered(item) for item in items])
    except RewardFailed as error:
        own = plugin.name not in registry.builtin_names("reward")  # the user's code: show where
        return [f"{error.why}\n{error.traceback}".rstrip() if own else error.why]
    key = f"reward.{plugin.name}"
    lines = [f"{i.where}: answer: {t} ({key})" for i, t in zip(items, found, strict=False) if t]
    if not lines:
        return []
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    cure = (
        f"{len(lines)} of {len(items)} checked answers: correct them, leave them out, or choose "
        "another reward"
    )
    return [*lines[:_SHOWN], *more, cure]


def _spread(data: Dataset) -> list[Item]:
    return list(data.items[:: max(1, -(-len(data) // LOOKED_AT))])


def _unanswered(item: Item) -> Sampled:
    return Sampled(
        prompt=item.prompt,
        response="",
        finish="stop",
        tokens=0,
        answer=item.answer,
        columns=item.columns,
        messages=item.messages,
    )
