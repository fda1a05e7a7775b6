"""A run's folder -> what the report shows of it.

Files and fields may be missing: the run may still train, or be of an older version. A line that
does not parse is reported and skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from launch.run_files.jsonl import read_lines
from launch.run_files.records import EvalLine, GroupLine, StepLine, TimingLine, learning_curve
from launch.run_files.samples import read_samples
from pipeline.checkpoint.store import MANIFEST
from pipeline.config.yaml_tree import parse, plain
from pipeline.observability.recorder import SampleLine
from pipeline.redaction.passwords import without_passwords
from pipeline.system import untrusted_files
from pipeline.system.run_folder import RunError, RunFolder
from pipeline.system.untrusted_files import UnreadableFile

Ints = npt.NDArray[np.int32]
Say = Callable[[str], None]

_MOST_BYTES = 1 << 30  # of trace.json, the largest document of a run
_ENDED = ("finished", "truncated")
_METRICS = {"step": StepLine, "eval": EvalLine, "timing": TimingLine}


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """Members of the training groups, in the order of the file: groups G, ended members N."""

    step_G: Ints
    candidates_G: Ints  # includes those that did not end
    group_N: Ints  # index of the member's group
    tokens_N: Ints


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run, finished or not."""

    path: Path
    settings: dict[str, Any]  # from config.yaml, nested
    about: dict[str, Any]
    result: dict[str, Any]  # empty: not finished
    steps: list[StepLine]
    curve: list[EvalLine]
    timing: list[TimingLine]
    members: Members
    trace: dict[str, Any]  # empty: none was kept
    samples: dict[int, list[SampleLine]]  # step -> responses of its evaluation
    running: bool  # a process holds the folder
    resumable: bool  # there is a checkpoint

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def seed(self) -> Any:
        return self.settings.get("seed", 0)


def read_run(path: Path, say: Say) -> Run:
    """Reads one folder. Raises RunError if it holds no run, UnreadableFile or OSError.

    Args:
        say: called for each skipped line or file.
    """
    folder = RunFolder(path.absolute())
    if not folder.config.is_file() or not folder.metrics.is_file():
        missing = folder.metrics if folder.config.is_file() else folder.config
        raise RunError(f"{path}: not the folder of a run: {missing.name} is missing")
    found: dict[type, list[Any]] = {type_: [] for type_ in _METRICS.values()}
    for line in read_lines(folder.metrics, _METRICS, say):
        found[type(line)].append(line)
    members = _members(folder.decisions, say)
    result = _json(folder.result, say)
    return Run(
        path=folder.path,
        settings=_settings(folder.config, say),
        about=_json(folder.about, say),
        result=result,
        steps=found[StepLine],
        curve=learning_curve(found[StepLine], found[EvalLine]),
        timing=found[TimingLine],
        members=members,
        trace=_json(folder.trace, say),
        samples=_samples(folder.samples, say),
        running=not result and _in_use(folder, say),
        resumable=any(folder.checkpoints.glob(f"step-*/{MANIFEST}")),
    )


def _in_use(folder: RunFolder, say: Say) -> bool:
    try:
        return folder.in_use
    except OSError as error:  # for example another user's
        say(f"{folder.path}: cannot tell if it still runs: {error}")
        return False


def _members(path: Path, say: Say) -> Members:
    steps: list[int] = []
    candidates: list[int] = []
    groups: list[int] = []
    tokens: list[int] = []
    for line in read_lines(path, {"group": GroupLine}, say) if path.is_file() else ():
        if line.kind != "train":
            continue
        held = [m.tokens for m in line.members if m.state in _ENDED]
        groups += [len(steps)] * len(held)
        tokens += held
        steps.append(line.step)
        candidates.append(len(line.members))
    return Members(
        step_G=np.array(steps, dtype=np.int32),
        candidates_G=np.array(candidates, dtype=np.int32),
        group_N=np.array(groups, dtype=np.int32),
        tokens_N=np.array(tokens, dtype=np.int32),
    )


def _json(path: Path, say: Say) -> dict[str, Any]:
    """Reads a file that may not exist yet."""
    try:
        content = untrusted_files.read_bytes(path, _MOST_BYTES)
        return untrusted_files.decode_json(content, path, dict[str, Any])
    except UnreadableFile as error:
        if not error.missing:
            say(f"{path}: skipped, {error.why}")
        return {}


def _settings(path: Path, say: Say) -> dict[str, Any]:
    problems: list[str] = []
    text = untrusted_files.read_bytes(path).decode(errors="replace")
    text = without_passwords(text)  # of a run from the time when they were not refused
    tree = parse(text, lambda line: f"{path}:{line}", problems)
    for problem in problems:
        say(problem)
    found = None if tree is None else plain(tree)
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _samples(folder: Path, say: Say) -> dict[int, list[SampleLine]]:
    try:
        return read_samples(folder)
    except UnreadableFile as error:
        say(str(error))
        return {}
