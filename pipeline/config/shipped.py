"""Locates the configurations, recipes and tiny models that come with darts.

A source tree has them in configs/ and models/, and darts/shipped links there; an installed darts
has them in darts/shipped itself. Their names are the same in both: `configs/quickstart.yaml` and
`models/chain-sums` mean these, wherever no file of one's own has that name.
"""

from __future__ import annotations

from pathlib import Path

_QUICKSTART = Path("configs") / "quickstart.yaml"
_PACKAGE = Path(__file__).resolve().parents[2] / "darts" / "shipped"
ROOT = (_PACKAGE / _QUICKSTART).resolve().parents[1]
"""Folder of `configs` and `models`."""


def config_file(given: Path) -> Path:
    """Returns the file, or the shipped one of its name if no such file is there."""
    shipped = ROOT / given
    is_there = given.is_absolute() or given.exists() or not shipped.is_file()
    return given if is_there else shipped


def holds(given: str) -> bool:
    """Returns True if something shipped has this relative path."""
    if not given or Path(given).is_absolute():
        return False
    try:
        return (ROOT / given).exists()
    except (OSError, ValueError):  # longer than a name may be, or no name
        return False
