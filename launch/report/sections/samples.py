"""Section: what held-out prompts were answered in the first and in the last evaluation.

The files hold prompt and response as one text. Where a prompt ends is known from the run's
held-out data, which are read again; without them texts are shown whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup

from launch.report.read_run import Run, Say
from launch.report.section import Section

_ENTRY = re.compile(r"^\[(-?\d+(?:\.\d+)?(?:e[-+]\d+)?|None)\] ", re.MULTILINE)

Prompts = Callable[[Run], Sequence[str]]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    reward: str
    prompt: str  # empty: not known
    response: str


def entries(text: str, prompts: Sequence[str]) -> list[Sample]:
    """The samples of one file. The longest prompt with which a text begins is its own."""
    parts = _ENTRY.split(text)[1:]
    found: list[Sample] = []
    for reward, written in zip(parts[::2], parts[1::2], strict=True):
        whole = written.replace(
            "\n\\[", "\n["
        )  # as `pipeline.observability.recorder` keeps them apart
        prompt = max((p for p in prompts if whole.startswith(p)), key=len, default="")
        response = whole[len(prompt) :].removesuffix("\n")
        found.append(Sample(reward=reward, prompt=prompt, response=response))
    return found


def held_out(say: Say) -> Prompts:
    """A reader of runs' held-out prompts, which reads each data set once; none where the
    model or the data are not here any more."""
    known: dict[str, Sequence[str]] = {}

    def prompts(run: Run) -> Sequence[str]:
        key = repr((run.settings.get("model"), run.settings.get("data")))
        if key not in known:
            known[key] = _read(run.path / "config.yaml", say)
        return known[key]

    return prompts


def _read(config: Path, say: Say) -> Sequence[str]:
    from pipeline.config.load import ConfigError, load
    from pipeline.data import eval_sets
    from pipeline.data.dataset import DataError
    from pipeline.data.tokenizer import ModelError, Tokenizer

    try:
        loaded = load(config, ())
        tokenizer = Tokenizer(Path(loaded.model))
        data = eval_sets.load_eval_sets(loaded, tokenizer).data
    except (ConfigError, DataError, ModelError) as error:
        say(f"{config}: samples are shown without their prompts told apart: {error}")
        return []
    return [data[i].prompt for i in range(len(data))]


def section(runs: Sequence[Run], prompts: Prompts) -> Section:
    """Args: prompts: held-out prompts of a run."""
    see = (
        "The same prompts answered before and after training, with their rewards: what has the "
        "policy learned to write?"
    )
    known = [run for run in runs if run.samples]
    if not known:
        return Section(
            id="samples", title="Samples", see=see,
            missing="No evaluation has kept samples; with eval.every=20 each one does.",
        )  # fmt: skip
    box = Markup(
        '<p><input id="filter" type="search" placeholder="only those that contain …" '
        'aria-label="filter of samples"> <span id="left"></span></p>'
    )
    return Section(id="samples", title="Samples", see=see, content=[
        box,
        *(
            Markup("<details{}><summary>{}</summary>{}</details>").format(
                Markup(" open") if i == 0 else "", run.name, _compared(run, prompts(run))
            )
            for i, run in enumerate(known)
        ),
    ])  # fmt: skip


def _compared(run: Run, prompts: Sequence[str]) -> Markup:
    first, last = min(run.samples), max(run.samples)
    before, after = (entries(run.samples[step], prompts) for step in (first, last))
    if first == last:
        after = []
    # Prompts that both have come first, then in the order of the files.
    order = dict.fromkeys(s.prompt for s in (*before, *after))
    both = {s.prompt for s in before} & {s.prompt for s in after}
    rows = Markup("").join(
        Markup('<tr class="sample"><td>{}</td><td>{}</td><td>{}</td></tr>').format(
            prompt or "–", *(_answers([s for s in some if s.prompt == prompt])
                             for some in (before, after))
        )
        for prompt in sorted(order, key=lambda p: p not in both)
    )  # fmt: skip
    return Markup(
        '<div class="wide"><table class="samples"><thead><tr><th>prompt</th>'
        "<th>at step {}</th><th>at step {}</th></tr></thead><tbody>{}</tbody></table></div>"
    ).format(first, last, rows)


def _answers(samples: Sequence[Sample]) -> Markup:
    if not samples:
        return Markup('<span class="soft">not among those kept</span>')
    return Markup("").join(
        Markup('<div class="answer"><b>{}</b><pre>{}</pre></div>').format(s.reward, s.response)
        for s in samples
    )
