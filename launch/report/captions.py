"""A traced step and its critical path -> a sentence on what it waited for, and its trajectories.

The sentence follows the path: the work before the first trajectory, the trajectories that waited
for each other, and the work after the last one. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from launch.report.section import html_table, seconds_text
from launch.report.spans import TracedStep
from launch.report.straggler_path import Kinds, StragglerPath
from launch.report.stragglers import Life

_LISTED = 8  # trajectories in the table; more if the path has more
_NAMED = 0.01  # share of the step from which work is named in the sentence
_BEFORE = 0.05  # share of the step from which the work before is mentioned
_TRAINED = "trained"
_HEAD = ("trajectory", "group", "prompt", "engine", "fate", "tokens", "ran", "ended at",
         "on the path")  # fmt: skip


class Caption(msgspec.Struct, frozen=True, kw_only=True):
    """The caption of one step."""

    straggler: Life | None
    html: Markup


def step_caption(step: TracedStep, found: Sequence[Life], path: StragglerPath | None) -> Caption:
    """Writes the caption of a step.

    Args:
        found: the step's trajectories, the longest-running first.
        path: None if the run has no timing.
    """
    by_id = {life.trajectory: life for life in found}
    late = _last_trained(found) if path is None else None
    if path is not None and path.links:
        late = by_id.get(path.links[-1].trajectory)
    said = f"Step {step.number} took {seconds_text(step.seconds)}. "
    said += _without(late) if path is None else _along(path, by_id, step.seconds)
    return Caption(
        straggler=late, html=Markup('<p class="caption">{}</p>{}').format(said, _table(found, path))
    )


def _last_trained(found: Sequence[Life]) -> Life | None:
    return max((f for f in found if f.fate == _TRAINED), key=lambda f: f.end, default=None)


def _without(late: Life | None) -> str:
    if late is None:
        return "No trained trajectory ended in it."
    return (
        f"The last trained trajectory was {late.trajectory} of group {late.group} "
        f"({late.tokens:,} tokens on engine {late.engine}), which ended {seconds_text(late.end)} "
        "after the step's start."
    )


def _along(path: StragglerPath, by_id: dict[int, Life], whole: float) -> str:
    if not path.links:
        return f"No trajectory is on its critical path, but {_listed(path.after, whole)}."
    *earlier, last = path.links
    said = "It waited for " if not earlier else "Each had to wait for the one before it: "
    names = [f"{link.trajectory} ({seconds_text(link.end - link.start)})" for link in earlier]
    spent = seconds_text(last.end - last.start)
    if life := by_id.get(last.trajectory):
        of = f" of group {life.group}"
        held = f"{spent}, {life.tokens:,} tokens on engine {last.engine}"
    else:  # for example of an evaluation
        of, held = "", f"{spent} on engine {last.engine}"
    names.append(f"{last.trajectory}{of} ({held})")
    end = seconds_text(last.end)
    said += f"trajectory {' → '.join(names)}, which ended {end} after the step's start."
    if sum(spent for _, spent in path.before) > _BEFORE * whole:
        said += f" Before {'the first' if earlier else 'it'}: {_listed(path.before, whole)}."
    return f"{said} After it: {_listed(path.after, whole)}." if path.after else said


def _listed(kinds: Kinds, whole: float) -> str:
    """Lists work by its seconds; what is too short to be named is `other`."""
    long = [(what, spent) for what, spent in kinds if spent >= _NAMED * whole]
    rest = sum(spent for _, spent in kinds[len(long) :])
    named = [f"{what} {seconds_text(spent)}" for what, spent in long]
    return ", ".join([*named, *([f"other {seconds_text(rest)}"] if rest > 0 else [])])


def _table(found: Sequence[Life], path: StragglerPath | None) -> Markup:
    """Lists the trajectories on the path in its order, then the longest-running ones."""
    if not found:
        return Markup()
    links = path.links if path is not None else []
    spent = {link.trajectory: link.end - link.start for link in links}
    last = links[-1].trajectory if links else None
    by_id = {life.trajectory: life for life in found}
    order = [by_id[trajectory] for trajectory in spent if trajectory in by_id]
    order += [life for life in found if life.trajectory not in spent]
    rows = [
        (
            life.trajectory, life.group, life.prompt, life.engine, life.fate,
            f"{life.tokens:,}", seconds_text(life.running_s), seconds_text(life.end),
            (seconds_text(spent[life.trajectory]) if life.trajectory in spent else "–")
            + (" (straggler)" if life.trajectory == last else ""),
        )
        for life in order[: max(_LISTED, len(spent))]
    ]  # fmt: skip
    columns = len(_HEAD) if path is not None else len(_HEAD) - 1
    return html_table(_HEAD[:columns], [row[:columns] for row in rows], texts=5)
