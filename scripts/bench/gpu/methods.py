"""Compares methods on one GPU that engine and learner share: `scripts.bench.gpu.run --methods`.

The model has Qwen2.5-0.5B's shape and random weights, with lengths that are heavy-tailed within a
prompt (`scripts.bench.gpu.tail`). The methods are those of `darts bench compare`; each is one
`darts train` that is ended when its share of the time is over, and all steps that it has finished
count, except the first. The reward is a coin, so there is nothing to learn: the table is about
seconds and tokens.

The engine is vLLM where that is installed, with its own CUDA graphs. Else it is transformers', with
CUDA graphs if it could capture them and decode within a minute (the part `graphs`); a response may
be as long as the engine's speed permits.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launch.bench.compare.methods import METHODS
from launch.run_files.jsonl import all_lines
from launch.run_files.records import GroupLine
from scripts.bench.gpu.parts import GRACE_S, LATE, Parts
from scripts.bench.gpu.pipeline import GRAPHS, add_averages, gpu_settings

COMPARED = ("sync", "first_m", "top_up_quorum", "darts_published", "darts_barrier")
ALL_S = 440.0
"""Seconds for everything: eight minutes with the start of a machine."""
METHOD_STEPS = 100  # never reached within a method's time
_MODEL_S, _GRAPHS_S = 60.0, 60.0
_PROBED = 192  # sequences: a step of 16 prompts with 12 candidates each
# Fewer graphs to capture than with the library's own intervals.
_FEW_GRAPHS = GRAPHS | {"q_padding_interval_size": 64, "kv_padding_interval_size": 16384}


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, and the lengths that its speed permits."""

    about: str
    engine: dict[str, Any]
    tail: tuple[int, int]  # mean lengths of the two kinds of responses
    max_tokens: int


TINY = Scale(about="transformers, tiny", engine={"slots": 48}, tail=(6, 72), max_tokens=96)
VLLM = Scale(about="vLLM", engine={"kind": "vllm"}, tail=(40, 480), max_tokens=1536)
EAGER = Scale(about="transformers", engine={}, tail=(12, 144), max_tokens=192)
CAPTURED = Scale(
    about="transformers with CUDA graphs",
    engine={"transformers": _FEW_GRAPHS},
    tail=EAGER.tail,
    max_tokens=384,
)


def vllm_usable() -> bool:
    """Whether vLLM is installed and there is a GPU for it."""
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None


def method_settings(model: Path, scale: Scale, tiny: bool, steps: int) -> dict[str, Any]:
    """Returns what all methods share; budget, selector and overlap are a method's own."""
    settings = gpu_settings(model, "group", tiny, steps)
    del settings["selector"], settings["learner"]["overlap"]
    settings["sampling"]["max_tokens"] = scale.max_tokens
    settings["group"]["size"] = 8  # as the methods have it
    settings["engine"] |= scale.engine
    settings["timeouts"]["heartbeat_s"] = 15.0  # a stall is a slow step here, no fault
    return settings


def method_overrides(name: str, slots: int) -> tuple[str, ...]:
    """Returns a method's settings.

    >>> method_overrides("top_up", 256)[-1]
    'engine.knee=256'
    """
    given = METHODS[name].overrides
    # A GPU decodes as many sequences as it has slots at nearly one speed. A CPU does not: there
    # the measured knee of a tiny model would leave nothing to top up.
    return (*given, f"engine.knee={slots}") if "budget.top_up=fewest" in given else given


def measure_methods(out: Path, tiny: bool, steps: int) -> dict[str, Any]:
    """Runs every method in turn; failures are recorded."""
    parts, model = Parts(out, ALL_S, tiny=tiny), out / "model"
    scale = TINY if tiny else VLLM if vllm_usable() else CAPTURED
    shape = ["--tiny", "--mean-tokens", "32", "--dtype", "float32"] if tiny else []
    tail = ["--tail", *map(str, scale.tail)]
    command = ["scripts.bench.gpu.model", "--out", str(model), *shape, *tail]
    parts.run_part("model", command, _MODEL_S)
    if scale is CAPTURED and not _graphs_work(parts, out, model):
        scale = EAGER
    parts.document |= {"engine": scale.about, "max_tokens": scale.max_tokens, "tail": scale.tail}
    config = out / "methods.yaml"
    settings = method_settings(model, scale, tiny, steps)
    config.write_text(yaml.safe_dump(settings))
    for index, name in enumerate(COMPARED):
        folder = out / f"run-{name}"
        command = ["launch.cli", "train", str(config), "--out", str(folder)]
        limit_s = parts.left_s / (len(COMPARED) - index) - GRACE_S
        command += method_overrides(name, settings["engine"]["slots"])
        done = parts.run_part(name, command, limit_s)
        add_averages(done, folder)
        if "found" in done:
            done["found"]["longest_over_mean"] = longest_over_mean(folder / "decisions.jsonl")
            if done["error"].startswith(LATE):  # as planned
                done["error"] = ""
    parts.write()
    return parts.document


def _graphs_work(parts: Parts, out: Path, model: Path) -> bool:
    """Whether the engine could capture graphs and decode with them in time."""
    config = out / "graphs.yaml"
    config.write_text(yaml.safe_dump(method_settings(model, CAPTURED, False, METHOD_STEPS)))
    probed = ("--running", str(_PROBED))
    done = parts.measure_alone("graphs", "scripts.bench.gpu.engine", config, _GRAPHS_S, *probed)
    return "found" in done


def longest_over_mean(decisions: Path) -> float | None:
    """Averages longest over mean length of the candidates of a group, over all groups.

    Candidates that were ended early count with the tokens that they have, so it is the model's own
    ratio only for a method that waits for all.
    """
    lines = all_lines(decisions) if decisions.exists() else []
    groups = [msgspec.convert(line, GroupLine) for line in lines if line["what"] == "group"]
    lengths = [[m.tokens for m in group.members if m.tokens] for group in groups]
    found = [max(group) / statistics.fmean(group) for group in lengths if group]
    return statistics.fmean(found) if found else None


def methods_table(found: Mapping[str, Any]) -> list[str]:
    """Formats the results."""
    short, long = found["tail"]
    drawn = f"mean lengths {short} and {long}, three to one, at most {found['max_tokens']} tokens"
    columns = ("method", "steps", "s a step", "of sync", "sampled", "trained", "hidden")
    lines = [
        f"engine: {found['engine']}; {drawn}; sampled and trained are tokens a step",
        "",
        f"| {' | '.join((*columns, 'longest over mean'))} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    runs = {name: found["parts"].get(name, {}).get("found") for name in COMPARED}
    base = (runs["sync"] or {}).get("step_s")
    for name, run in runs.items():
        if run is None:
            continue
        ratio = f"{run['step_s'] / base:.2f}" if base else "-"
        tail = run["longest_over_mean"]
        lines.append(
            f"| {name} | {run['steps']} | {run['step_s']:.2f} | {ratio} | {run['sampled']:.0f} "
            f"| {run['trained']:.0f} | {run['hidden_share']:.0%} "
            f"| {'-' if tail is None else f'{tail:.1f}'} |"
        )
    errors = [f"{name}: {p['error']}" for name, p in found["parts"].items() if p["error"]]
    return [*lines, *(["", *errors] if errors else [])]
