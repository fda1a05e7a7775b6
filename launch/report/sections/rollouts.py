"""Section: responses of the newest step with the lowest and the highest rewards."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from markupsafe import Markup

from launch.report.read_run import Run, Say
from launch.report.section import Section, folded
from launch.report.sections.samples import filter_box, gold
from pipeline.observability.rollout_files import RolloutLine, files_in, read_rollouts
from pipeline.system.untrusted_files import UnreadableFile

SHOWN = 6
"""Responses with the lowest, and with the highest rewards."""
_MOST = 20_000
"""Characters of a response; `darts show --full` shows all."""
_SECTION = Section(
    id="rollouts", title="Rollouts",
    see="What the policy wrote in training at the newest step, the worst and the best by reward, "
    "and what became of it. “darts show” shows the others.",
)  # fmt: skip


def rollouts_section(runs: Sequence[Run], say: Say) -> Section:
    """Lists responses of each run that has kept any."""
    found = [(run.name, _of_run(run, say)) for run in runs]
    known = [(name, part) for name, part in found if part]
    if not known:
        return _SECTION.without_data(
            "No responses are kept: set rollouts.every=1, or train a step first."
        )
    return _SECTION.showing(filter_box(), *folded(known))


def _of_run(run: Run, say: Say) -> Markup:
    files = files_in(run.path / "rollouts")
    if not files:
        return Markup()
    step, path = max(files.items())
    lines: list[RolloutLine] = []
    try:
        lines.extend(read_rollouts(path))
    except UnreadableFile as error:  # what stands before the damage is shown
        say(str(error))
    scored = [line for line in lines if line.reward is not None]
    worst = heapq.nsmallest(SHOWN, scored, key=_reward)
    best = heapq.nlargest(SHOWN, [line for line in scored if line not in worst], key=_reward)
    if not worst:
        return Markup()
    return Markup("{}{}").format(_table(f"lowest rewards at step {step + 1}", worst),
                                 _table(f"highest rewards at step {step + 1}", best))  # fmt: skip


def _reward(line: RolloutLine) -> float:
    assert line.reward is not None
    return line.reward


def _table(title: str, lines: Sequence[RolloutLine]) -> Markup:
    rows = Markup("").join(
        Markup(
            '<tr class="sample"><td>{}{}</td><td><div class="answer"><b>{}</b><pre>{}</pre></div>'
            "</td><td>{}</td></tr>"
        ).format(
            line.prompt_text,
            gold(line.answer),
            f"{line.reward:.4g}",
            line.response[:_MOST],
            _fate(line),
        )
        for line in lines
    )
    return Markup(
        '<div class="wide"><table class="samples"><thead><tr><th>prompt</th><th>{}</th>'
        "<th>what became of it</th></tr></thead><tbody>{}</tbody></table></div>"
    ).format(title, rows)


def _fate(line: RolloutLine) -> str:
    said = f"{line.fate}, {line.tokens} tokens, {line.finish}"
    if line.foreign:
        said += f", not sampled for it ({line.foreign})"
    if line.advantage is not None:
        said += f", advantage {line.advantage:+.3g}"
    why = f": {line.why}" if line.why else ""
    return f"{said}{why} (trajectory {line.id} of group {line.group})"
