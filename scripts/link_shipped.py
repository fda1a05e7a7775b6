"""Links darts/shipped to the files of configs/ and models/, one by one, so that a wheel holds them.

    python -m scripts.link_shipped

Run it when a file there is new or gone. (The build backend follows links to files alone.)
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "darts" / "shipped"
FOLDERS = ("configs", "models")


def wanted_links() -> dict[Path, str]:
    """Returns link -> target, relative to the link's folder."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    links = {SHIPPED / path.relative_to(ROOT): path for path in files}
    return {link: os.path.relpath(path, link.parent) for link, path in links.items()}


def present_links() -> dict[Path, str]:
    """Returns the same of what is there; "" for a file that is no link."""
    files = (path for path in SHIPPED.rglob("*") if path.is_symlink() or path.is_file())
    return {path: os.readlink(path) if path.is_symlink() else "" for path in files}


def main() -> None:
    wanted = wanted_links()
    for path, target in present_links().items():
        if wanted.get(path) != target:
            path.unlink()
    for link, target in wanted.items():
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)


if __name__ == "__main__":
    main()
