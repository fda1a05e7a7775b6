"""Location of a run's folder: on rank 0's machine, and on machines that share its file system.

Rank 0 writes the name of its round there, and the others look for it: on another machine the same
path may hold nothing, or an unrelated folder. A machine without the folder writes down where it
is, so that no new run starts there by mistake when it later becomes the first machine.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.system.durable_files import write_file
from pipeline.system.run_folder import RunError, RunFolder
from pipeline.system.untrusted_files import UnreadableFile, read_text

_ROUND = "round"
_NOTE = "elsewhere"


def write_round(run: Path, round_: str) -> None:
    """Marks the folder as the run's, on rank 0."""
    write_file(run / _ROUND, f"{round_}\n")


def remove_round(run: Path) -> None:
    """Removes the mark, when rank 0 ends."""
    (run / _ROUND).unlink(missing_ok=True)


def is_shared(run: Path, round_: str) -> bool:
    """Returns True if this machine sees rank 0's folder under the same path."""
    try:
        return read_text(run / _ROUND, 4096).strip() == round_
    except UnreadableFile:
        return False


def write_location(run: Path, host: str) -> None:
    """Writes down the host of the folder, on a machine that does not share it."""
    write_file(run / _NOTE, f"{host}\n")


def refuse_moved_run(run: RunFolder) -> None:
    """Raises RunError if the run is on another machine's disk."""
    path = run.path / _NOTE
    if path.exists() and not run.config.exists():
        try:
            host = read_text(path, 4096).strip()
        except UnreadableFile:
            host = "another machine"
        raise RunError(
            f"{run.path}: the folder of this run is on {host}, but torchrun "
            "made this machine the first one: the one with --node-rank=0, or with --rdzv-endpoint "
            "the one whose --local-addr (or host name) sorts first as text. Make the machine with "
            "the folder the first, or share or move the folder; to start a new run here, remove "
            f"{path}"
        )
