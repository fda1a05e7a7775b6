"""Where a run over several machines has its folder: with rank 0, and with whoever shares its files.

Rank 0 leaves the name of its round there, and the others look for it: under the
same path on another machine may lie nothing, or a folder of the same name. One
that is not the run's gets a note of where that is, so that no run is begun
anew there unasked when rank 0 is another machine one day.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.system.run_folder import RunError, RunFolder

_ROUND = "round"
_NOTE = "elsewhere"


def write_round(run: Path, round_: str) -> None:
    """Rank 0: this is the folder."""
    (run / _ROUND).write_text(f"{round_}\n")


def remove_round(run: Path) -> None:
    """Rank 0, at its end."""
    (run / _ROUND).unlink(missing_ok=True)


def is_shared(run: Path, round_: str) -> bool:
    """Whether what this machine has under the path of rank 0's folder is that folder."""
    try:
        return (run / _ROUND).read_text().strip() == round_
    except OSError:
        return False


def write_location(run: Path, host: str) -> None:
    """On a machine that does not share it: where it is."""
    (run / _NOTE).write_text(f"{host}\n")


def refuse_moved_run(run: RunFolder) -> None:
    """Raise RunError if the run is on another machine's disk."""
    path = run.path / _NOTE
    if path.exists() and not run.config.exists():
        raise RunError(
            f"{run.path}: holds what this machine kept of a run whose folder is on "
            f"{path.read_text().strip()}, but torchrun has made this machine the first: it is the "
            "one whose --local-addr (or host name) comes first as text. Give the machine with the "
            f"folder such a one, or share or move the folder; to begin anew here, remove {path}"
        )
