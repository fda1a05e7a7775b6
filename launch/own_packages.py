"""Has darts' own packages found before others of their names that PYTHONPATH leads to.

Its entries come before all that is installed, and a project's own `pipeline/` or `engines/` would
be taken for that of darts.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_NAMES = ("darts", "engines", "launch", "learner", "pipeline")


def prefer_own_packages() -> None:
    """Look where this package lies first, here and in what is started, if one of the others would
    be found elsewhere."""
    root = str(Path(__file__).resolve().parents[1])
    if all(_is_ours(name, root) for name in _NAMES):
        return
    sys.path.insert(0, root)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])


def _is_ours(name: str, root: str) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and os.path.realpath(found.origin or "") == os.path.realpath(
        os.path.join(root, name, "__init__.py")
    )
