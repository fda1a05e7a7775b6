"""Whether a run was simulated, as its about.json says."""

from __future__ import annotations

from typing import Any

from pipeline.system.run_folder import RunFolder
from pipeline.system.untrusted_files import UnreadableFile, read_json


def simulated_text(run: RunFolder) -> str:
    """What was modelled, in words; '' for a real run, or where about.json cannot be read."""
    try:
        return str(read_json(run.about, dict[str, Any]).get("simulated", ""))
    except UnreadableFile:
        return ""
