"""Runs -> lines of a plot, named by folder and by the settings that differ. Pure.

Finished runs that differ only in `seed` share a line; every other run has its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from launch.report.read_run import Run

_SHOWN = 3  # settings in a name
_SEED = re.compile(r"[-_.](s|seed)?[-_.]?\d+$")  # at the end of a folder's name


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Runs with the same settings."""

    name: str
    differs: dict[str, Any]  # setting -> value, where lines differ
    runs: list[Run]

    @property
    def label(self) -> str:
        """Name and settings, short enough for a legend."""
        shown = [f"{key}={value}" for key, value in self.differs.items()]
        more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
        return " · ".join([self.name, *shown[:_SHOWN], *more])


def flat_settings(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and values. The value of a plug-in (a mapping of one mapping) is its name,
    followed by its options.

    >>> dict(flat_settings({"seed": 1, "selector": {"dual_end": {"longest": 2}}}))
    {'seed': 1, 'selector': 'dual_end', 'selector.dual_end.longest': 2}
    """
    for key, value in settings.items():
        if not isinstance(value, dict):
            yield prefix + key, value
            continue
        inner: dict[str, Any] = value
        if len(inner) == 1 and all(isinstance(v, dict) for v in inner.values()):
            yield prefix + key, next(iter(inner))
        yield from flat_settings(inner, f"{prefix}{key}.")


def run_lines(runs: Sequence[Run]) -> list[Line]:
    """Groups runs into lines, in the order of the runs."""
    found: dict[Any, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        settings = dict(flat_settings(run.settings))
        settings.pop("seed", None)
        alone = "" if run.result else str(run.path)
        same = (alone, *sorted((key, repr(value)) for key, value in settings.items()))
        found.setdefault(same, (settings, []))[1].append(run)
    every = [settings for settings, _ in found.values()]
    differing = _differing(every)
    return [
        Line(
            name=_name(of),
            differs={key: settings[key] for key in differing if key in settings},
            runs=of,
        )
        for settings, of in found.values()
    ]


def _differing(every: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the keys that differ, without the options of plug-ins that differ themselves."""
    keys = dict.fromkeys(key for settings in every for key in settings)
    found = [key for key in keys if len({repr(s.get(key)) for s in every}) > 1]
    return [key for key in found if not any(key.startswith(f"{other}.") for other in found)]


def _name(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name + ("" if runs[0].result else " (unfinished)")
    bare = {_SEED.sub("", run.name) for run in runs}
    name = bare.pop() if len(bare) == 1 else runs[0].name
    return f"{name}, seeds {', '.join(str(run.seed) for run in runs)}"
