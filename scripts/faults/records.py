"""Reads from a run's own files whether anything was lost, or done twice.

Every function returns problems in words; none means that all is as it has to be. What a run that
was stopped has to leave is `open_problems`, and one that is done `final_problems`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.run_files.jsonl import read_lines
from pipeline.checkpoint import store
from pipeline.system.run_folder import RunFolder


def records(path: Path, what: str) -> list[dict[str, Any]]:
    """Reads lines of one kind. Raises ValueError for one that does not parse."""

    def bad(text: str) -> None:
        raise ValueError(text)

    return list(read_lines(path, {what: dict}, bad)) if path.exists() else []


def steps_done(run: Path) -> int:
    return len(records(run / "metrics.jsonl", "step"))


def times_trained(run: Path) -> Counter[int]:
    """Returns how often each prompt was trained on."""
    groups = records(run / "decisions.jsonl", "group")
    return Counter(line["prompt"] for line in groups if line["fate"] == "trained")


def result_problems(run: Path) -> list[str]:
    """Holds the token accounts of a run that is done against the engines' own count."""
    try:
        result = json.loads((run / "result.json").read_bytes())
        sums, reported = sum(result["tokens"].values()), result["tokens_reported_by_engines"]
    except (OSError, ValueError, KeyError) as error:
        return [f"result.json: {error!r}"]
    if sums != reported:
        return [f"the accounts have {sums} tokens, the engines reported {reported}"]
    return []


def open_problems(run: Path, prompts: int) -> list[str]:
    """Problems of a run that may not have ended: a prompt was trained on twice or is none of the
    data's `prompts`, a step is missing or there twice, or books do not balance."""
    try:
        return list(_of_prompts(run, prompts)) + step_problems(run)
    except ValueError as error:
        return [f"damaged: {error}"]


def _of_prompts(run: Path, prompts: int) -> Iterator[str]:
    trained = times_trained(run)
    if twice := sorted(prompt for prompt, times in trained.items() if times > 1):
        yield f"trained on more than once: prompts {twice}"
    if unknown := sorted(trained.keys() - set(range(prompts))):
        yield f"trained on, and not in the data: prompts {unknown}"


def step_problems(run: Path) -> list[str]:
    """Problems of the steps on file: one is missing or there twice, or its books do not balance.
    Raises ValueError for a line that does not parse."""
    return list(_of_steps(run))


def _of_steps(run: Path) -> Iterator[str]:
    lines = records(run / "metrics.jsonl", "step")
    numbers = [line["step"] for line in lines]
    if numbers != list(range(len(numbers))):
        yield f"steps on file: {numbers}"
    for line in lines:
        accounts = dict(line["ledger"])
        sampled = accounts.pop("sampled")
        if (total := sum(accounts.values())) != sampled:
            yield f"step {line['step']}: {sampled} tokens sampled, {total} in accounts"
    for line in records(run / "metrics.jsonl", "warning"):
        if "the ledger is off" in str(line["text"]):
            yield str(line["text"])


def final_problems(run: Path, prompts: int) -> list[str]:
    """Problems of a run whose data is at its end: what `open_problems` finds, a prompt that was
    never trained on, and files that are not whole or should not be there."""
    found = open_problems(run, prompts) + result_problems(run)
    if found:
        return found
    if left_out := sorted(set(range(prompts)) - times_trained(run).keys()):
        found.append(f"never trained on: prompts {left_out}{_why_dropped(run, left_out)}")
    return found + list(_of_files(RunFolder(run)))


def _why_dropped(run: Path, prompts: list[int]) -> str:
    groups = records(run / "decisions.jsonl", "group")
    why = {f"{g['fate']}: {g['why']}" for g in groups if g["prompt"] in prompts}
    return f" ({'; '.join(sorted(why))})" if why else ""


def _of_files(run: RunFolder) -> Iterator[str]:
    for path in (run.metrics, run.decisions):
        if not path.read_bytes().endswith(b"\n"):
            yield f"{path.name} ends within a line"
    for path in (run.live, run.trace, run.about):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            yield f"{path.name}: {error!r}"
    steps = json.loads(run.result.read_bytes())["steps"]
    if steps != steps_done(run.path):
        yield f"result.json says {steps} steps, metrics.jsonl has {steps_done(run.path)}"
    checkpoints = store.committed(run.checkpoints)
    if not checkpoints or checkpoints[0].name != store.name_of(steps):
        yield f"no checkpoint of the last step: {[path.name for path in checkpoints]}"
    for path in checkpoints:
        try:
            store.verify(path)
        except store.CheckpointError as error:
            yield f"damaged checkpoint: {error}"
    hidden = [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")]
    left = [path.name for path in run.path.iterdir() if path.name.startswith("darts-")]
    if run.address.exists():
        left.append(run.address.name)
    if hidden + left:
        yield f"left behind: {sorted(hidden + left)}"
    if run.in_use:
        yield "the run's lock is held"
