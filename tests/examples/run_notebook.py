"""Runs the cells of a notebook one after another, in the current directory, without a kernel.

    python tests/examples/run_notebook.py NOTEBOOK

Understood are Python, `%%writefile NAME` as a cell's first line, and lines `!darts ...`. Sources of
cells are kept where `inspect` looks for them, as IPython keeps them.
"""

from __future__ import annotations

import json
import linecache
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any


def cells_of(notebook: Path) -> list[str]:
    """Returns the source of each code cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source: str, number: int, names: dict[str, Any]) -> None:
    first, _, rest = source.partition("\n")
    if first.startswith("%%writefile "):
        Path(first.split()[1]).write_text(rest + "\n", encoding="utf-8")
        return
    if source.startswith("!darts "):
        command = [sys.executable, "-m", "launch.cli", *shlex.split(source)[1:]]
        subprocess.run(command, check=True)
        return
    file = f"<cell {number}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[file] = (len(source), None, lines, file)
    exec(compile(source, file, "exec"), names)


def main() -> None:
    sys.path.insert(0, "")  # as in a kernel
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells_of(Path(sys.argv[1])), start=1):
        run_cell(source, number, names)


if __name__ == "__main__":
    main()
