"""The section `placement`: which response gets the next slot of an engine, and when."""

from __future__ import annotations

from typing import Literal

from pipeline.config.setting_types import Section
from pipeline.plugins.ranges import NonNegativeInt


class PlacementConfig(Section, frozen=True, kw_only=True):
    order: Literal["oldest", "longest"] = "oldest"
    """Of candidates that wait for a slot, those first whose group is the `oldest`, or which are
    predicted to be the `longest`: by their engine if it says so, else by what was sampled before
    for their prompt, or for any. Interrupted ones go before new ones either way."""
    kv_tokens: NonNegativeInt = 0
    """Tokens that the key/value cache of one engine holds. A response gets a slot only where the
    predicted peak of all that run there stays below (Past-Future). 0: slots alone decide."""
