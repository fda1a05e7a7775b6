"""Section: responses to held-out prompts in the first and the last evaluation.

The files hold prompt and response as one text. The run's held-out data, which are read again, say
where a prompt ends; without them the texts are shown whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup

from launch.report.read_run import Run, Say
from launch.report.section import Section, folded

_ENTRY = re.compile(r"^\[(-?\d+(?:\.\d+)?(?:e[-+]\d+)?|None)\] ", re.MULTILINE)

Prompts = Callable[[Run], Sequence[str]]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    reward: str
    prompt: str  # empty: not known
    response: str


def entries(text: str, prompts: Sequence[str]) -> list[Sample]:
    """Parses one file. A text belongs to the longest prompt that it begins with."""
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
    """Returns a reader of runs' held-out prompts, which reads each data set once; it finds none if
    the model or the data are gone."""
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
        loaded = load(config, weights=False)
        tokenizer = Tokenizer(Path(loaded.model))
        data = eval_sets.load_eval_sets(loaded, tokenizer).data
    except (ConfigError, DataError, ModelError) as error:
        say(f"{config}: samples are shown without separating their prompts: {error}")
        return []
    return [data[i].prompt for i in range(len(data))]


_SECTION = Section(
    id="samples", title="Samples",
    see="Responses to the same prompts before and after training, with their rewards: what has the "
    "policy learned to write?",
)  # fmt: skip


def samples_section(runs: Sequence[Run], prompts: Prompts) -> Section:
    """Compares first and last responses; `prompts` returns the held-out prompts of a run."""
    known = [run for run in runs if run.samples]
    if not known:
        return _SECTION.without_data(
            "No evaluation has kept samples; eval.every=20 evaluates every 20 steps."
        )
    box = Markup(
        '<p><input id="filter" type="search" placeholder="only those that contain …" '
        'aria-label="filter of samples"> <span id="left"></span></p>'
    )
    return _SECTION.showing(box, *folded((run.name, _compared(run, prompts(run))) for run in known))


def _compared(run: Run, prompts: Sequence[str]) -> Markup:
    first, last = min(run.samples), max(run.samples)
    before, after = (entries(run.samples[step], prompts) for step in (first, last))
    if first == last:
        after = []
    # Prompts in both come first; otherwise the order is that of the files.
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
        return Markup('<span class="soft">not kept</span>')
    return Markup("").join(
        Markup('<div class="answer"><b>{}</b><pre>{}</pre></div>').format(s.reward, s.response)
        for s in samples
    )
