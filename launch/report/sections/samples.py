"""Section: responses to held-out prompts in the first and the last evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from launch.report.read_run import Run
from launch.report.section import Section, folded
from pipeline.observability.recorder import SampleLine

_SECTION = Section(
    id="samples", title="Samples",
    see="Responses to the same held-out prompts before and after training, with their rewards: "
    "what has the policy learned to write?",
)  # fmt: skip


def samples_section(runs: Sequence[Run]) -> Section:
    """Compares first and last responses."""
    known = [run for run in runs if run.samples]
    if not known:
        return _SECTION.without_data(
            "No evaluation has kept samples; eval.every=20 evaluates every 20 steps."
        )
    return _SECTION.showing(filter_box(), *folded((run.name, _compared(run)) for run in known))


def filter_box() -> Markup:
    """A field that leaves only the rows in its section that contain a text."""
    return Markup(
        '<p><input class="filter" type="search" placeholder="only those that contain …" '
        'aria-label="filter of texts"> <span class="left"></span></p>'
    )


def _compared(run: Run) -> Markup:
    first, last = min(run.samples), max(run.samples)
    before, after = run.samples[first], run.samples[last]
    if first == last:
        after = []
    # Prompts in both come first; otherwise the order is that of the files.
    order = dict.fromkeys(s.prompt for s in (*before, *after))
    both = {s.prompt for s in before} & {s.prompt for s in after}
    answers = {s.prompt: s.answer for s in (*before, *after)}
    rows = Markup("").join(
        Markup('<tr class="sample"><td>{}{}</td><td>{}</td><td>{}</td></tr>').format(
            prompt, gold(answers[prompt]), *(_answers([s for s in some if s.prompt == prompt])
                                             for some in (before, after))
        )
        for prompt in sorted(order, key=lambda p: p not in both)
    )  # fmt: skip
    return Markup(
        '<div class="wide"><table class="samples"><thead><tr><th>prompt</th>'
        "<th>at step {}</th><th>at step {}</th></tr></thead><tbody>{}</tbody></table></div>"
    ).format(first, last, rows)


def gold(answer: str) -> Markup:
    """The answer that the reward compares with, below a prompt."""
    return Markup('<div class="soft">answer: {}</div>').format(answer) if answer else Markup()


def _answers(samples: Sequence[SampleLine]) -> Markup:
    if not samples:
        return Markup('<span class="soft">not kept</span>')
    return Markup("").join(
        Markup('<div class="answer"><b>{}</b><pre>{}</pre></div>').format(
            f"{s.reward:.4g}", s.response
        )
        for s in samples
    )
