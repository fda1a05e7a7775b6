"""Says which version of darts this is, by the metadata of what is installed.

`pyproject.toml` is its only source (RELEASING.md).
"""

from __future__ import annotations

from importlib import metadata

_NAME = "darts-rl"


def darts_version() -> str:
    """Returns the installed version; '0+unknown' for a source tree that is not installed."""
    try:
        return metadata.version(_NAME)
    except metadata.PackageNotFoundError:
        return "0+unknown"
