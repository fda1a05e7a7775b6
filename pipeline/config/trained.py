"""Says whether a run trains. One that does not has no learner: engines serve the model as it is."""

from __future__ import annotations

from pipeline.config.schema import Config


def learner_ranks(config: Config) -> int:
    """Returns the number of learner ranks: 0 with `step.count: 0`, as for `darts eval`."""
    return config.learner.ranks if config.step.count else 0
