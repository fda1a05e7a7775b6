"""A configuration -> which logprobs the learner computes, and who uses them.

One answer for the stage, which streams tokens for them, and for the learner, which computes
them. Old logprobs of tokens of the present version cost nothing with one optimizer step per
batch: they are those of the forward pass that is trained on.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pipeline.config.load import plugin_class
from pipeline.config.schema import Config, LearnerConfig
from pipeline.plugins.interfaces import wants_of


class LogprobUses(msgspec.Struct, frozen=True, kw_only=True):
    """What is computed ahead of training, of tokens that are streamed to learner ranks."""

    own: bool
    """Logprobs under the present weights: old ones, and those beside entropies."""
    reference: bool
    """Logprobs under the reference model."""
    answered: bool
    """The stage wants the own ones back: for tokens that a later version trains on, or a
    selector that decides by entropies."""
    entropy: bool
    """The selector decides by entropies."""

    @property
    def streamed(self) -> bool:
        """True if tokens are streamed at all."""
        return self.own or self.reference


def of(config: Config) -> LogprobUses:
    """Answer for a loaded configuration; constructs its selector to ask what it wants."""
    section = config.learner
    cls, options = plugin_class("selector", config.selector)
    entropy = wants_of(cls(options)).entropy
    answered = section.max_staleness > 0 or entropy
    token = section.overlap == "token"
    # At ZeRO 3 a rank cannot run its own model alone.
    own = token and section.zero < 3 and (needs_old(section) or answered)
    return LogprobUses(
        own=own,
        reference=token and bool(section.reference),
        answered=own and answered,
        entropy=entropy,
    )


def needs_old(section: LearnerConfig) -> bool:
    """Return True if old logprobs of the present version need a forward pass of their own."""
    return section.old_logprobs == "always" or section.updates * section.epochs > 1


def importance_mode(
    section: LearnerConfig,
) -> Literal["off", "truncate", "mask", "sequence", "geometric"]:
    """Return what `learner.importance` comes to: stale tokens are corrected by default."""
    if section.importance != "auto":
        return section.importance
    return "truncate" if section.max_staleness else "off"
