"""Whether a run was simulated, as its about.json says."""

from __future__ import annotations

import json

from pipeline.system.run_folder import RunFolder


def simulated_text(run: RunFolder) -> str:
    """What was modelled, in words; '' for a real run, or where about.json cannot be read."""
    try:
        return str(json.loads(run.about.read_text()).get("simulated", ""))
    except (OSError, ValueError, AttributeError):
        return ""
