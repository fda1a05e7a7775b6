"""What a run reads of its data beside the prompts: answers and columns, by its plug-ins.

Columns that nobody reads are not kept, so that neither what they hold nor how large they are
matters. A plug-in says what it reads by `columns`, a set of names or a function of its options;
one without it may read all.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from pipeline.config.load import plugin_class
from pipeline.config.schema import Config
from pipeline.plugins import registry


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Of one run; the default: everything, of a reward that compares with an answer."""

    answers: bool = True  # the reward compares with an answer
    columns: frozenset[str] | None = None  # that are read; None: all
    needed: frozenset[str] = frozenset()  # columns without which the reward cannot be called


EVERYTHING = Wanted()


def wanted_of(config: Config) -> Wanted:
    """Ask the reward and the environment of a loaded configuration."""
    reward, options = plugin_class("reward", config.reward)
    read = [_asked(reward, options, "columns")]
    environment, own = plugin_class("environment", config.environment)
    if not getattr(environment, "idle", False):
        read.append(_asked(environment, own, "columns"))
    known = [names for names in read if names is not None]
    return Wanted(
        answers=registry.needs_answer(reward, options),
        columns=frozenset().union(*known) if len(known) == len(read) else None,
        needed=_asked(reward, options, "needed_columns") or frozenset(),
    )


def _asked(cls: type[Any], options: Any, name: str) -> frozenset[str] | None:
    found: Any = getattr(cls, name, None)
    return cast("frozenset[str] | None", found(options) if callable(found) else found)
