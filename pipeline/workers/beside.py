"""Links in a worker's directory to the files that lie beside its plug-in's source.

So that user code opens `lookup.json` as it would where it lies, while what it writes anew stays in
the worker's directory, and goes with it. What is linked is not copied: to write to it would be to
write to the original.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MOST = 1000
"""Links for a folder: of a home directory, say, not everything."""


def folders_of(plugin: Any) -> list[str]:
    """Folders of the source that a plug-in runs: its functions', or that of its class."""
    cls = type(plugin)
    if cls.__module__.split(".")[0] != "pipeline":
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        return [str(Path(file).absolute().parent)] if file else []
    inner = [folder for part in getattr(plugin, "parts", ()) for folder in folders_of(part)]
    return list(dict.fromkeys([*getattr(plugin, "folders", ()), *inner]))


def link_files(folders: Iterable[str], directory: str) -> None:
    """Link what lies in the folders into the directory; of equal names the first counts."""
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for number, entry in enumerate(sorted(entries, key=lambda entry: entry.name)):
                if number >= _MOST:
                    break
                if not entry.name.startswith((".", "__pycache__")):
                    with contextlib.suppress(OSError):
                        os.symlink(entry.path, os.path.join(directory, entry.name))
