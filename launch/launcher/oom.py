"""Tells if a process that ended by SIGKILL was killed because memory ran out.

Turns the kernel's count of such kills in this process's cgroup (version 1 or 2) and the observed
peak of a process into half a sentence.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_COUNTS = ("memory.events", "memory.oom_control")  # version 2, version 1
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
KILLED = "killed by SIGKILL"
"""The text of `Child.exit_text`."""


def own_groups(root: Path = _GROUPS, memberships: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Returns the directories of this process's memory cgroup and its parents, innermost first;
    [] on a system without. In a container the innermost may be `root` itself."""
    try:
        lines = [line.split(":", 2) for line in memberships.read_text().splitlines()]
    except OSError:
        return []
    found: list[Path] = []
    for _, controllers, path in lines:
        if controllers in ("", "memory"):
            top = root / controllers
            own = top / path.lstrip("/")
            found += [own, *(around for around in own.parents if around.is_relative_to(top))]
    return [group for group in found if any((group / name).is_file() for name in _COUNTS)]


def peak_bytes(pid: int) -> int:
    """Returns the largest resident memory that a live process has had; 0 if it is gone."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


class MemoryWatch:
    """Explains kills of processes; create it before they start.

    Args:
        groups: see `own_groups`.
    """

    def __init__(self, groups: list[Path]) -> None:
        self._groups = groups
        self._kills = self._count()

    def explain_kill(self, how: str, peak: int) -> str:
        """Returns half a sentence on the process's memory; '' if it was not killed.

        Args:
            how: how it ended, see `Child.exit_text`.
            peak: its largest observed memory, bytes.
        """
        if how != KILLED:
            return ""
        kills, before = self._count(), self._kills
        if kills is None or before is None:
            text = "; the kernel does this when memory runs out"
        elif kills > before:
            self._kills = before + 1  # the other kills may belong to other processes of ours
            text = "; the kernel killed it because memory ran out"
        else:
            return "; not because of memory: the kernel counts no such kill"
        return f"{text} (peak seen: {_gib(peak)} of {_gib(self._limit())} GiB)"

    def _count(self) -> int | None:
        """Returns the kills so far in our own group; None if they are not counted."""
        for group in self._groups:
            for name in _COUNTS:
                with contextlib.suppress(OSError):
                    if found := _KILLS.search((group / name).read_text()):
                        return int(found[1])
        return None

    def _limit(self) -> int:
        """Returns the memory limit of the machine or of the tightest cgroup around us, bytes."""
        limits = [psutil.virtual_memory().total]
        for group in self._groups:
            for name in _LIMITS:
                with contextlib.suppress(OSError, ValueError):  # "max": none
                    limits.append(int((group / name).read_text()))
        return min(limits)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
