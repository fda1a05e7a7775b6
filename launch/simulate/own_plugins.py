"""A user's configuration as the subject of small runs with faults."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path

import msgspec

from launch.simulate import CONFIG
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.coordinator.state import Plugins
from pipeline.simulation.subject import Subject
from pipeline.stage import build

_STOP = frozenset({1})
_PROMPTS = 40


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration by its file and overrides: what another process loads it by."""

    config: Path
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> str:
        """Of `darts simulate`."""
        return shlex.join([*([str(self.config)] if self.config != CONFIG else []), *self.overrides])


@cache
def subject_of(own: Own) -> Subject:
    """Its plug-ins and method; once for all seeds. Raises ConfigError."""
    return subject_in(load(own.config, own.overrides), own.arguments)


def subject_in(config: Config, arguments: str = "") -> Subject:
    """The same of a loaded configuration."""

    def make(seed: int) -> Plugins:
        return build.build_plugins(msgspec.structs.replace(config, seed=seed))

    settings = build.coordinator_settings(config, prompts=_PROMPTS, stop_tokens=_STOP)
    return Subject(
        settings=settings,
        make=make,
        columns=config.data.variants,
        solved=bool(config.data.solution),
        arguments=arguments,
    )
