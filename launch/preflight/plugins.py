"""Asks the plug-ins that decide in the stage a small question each, before anything starts.

New ones are made for it, so that nothing of it is left in a run.
"""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.plugins.trial import trial_problems
from pipeline.stage import build


def plugin_problems(config: Config) -> list[str]:
    """Returns what the core could not read of their answers, a line each."""
    plugins = build.build_plugins(config)
    found: list[str] = []
    for kind in plugins.__struct_fields__:
        found += trial_problems(
            kind,
            getattr(config, kind).name,
            getattr(plugins, kind),
            size=config.group.size,
            max_tokens=config.sampling.max_tokens,
        )
    return found
