"""Continues runs from their newest checkpoint, with settings that may change in between.

The settings are those of the run's config.yaml and of the command line; what a checkpoint cannot
be continued with is refused by name (`pipeline.checkpoint.fingerprint`). A run that has finished
continues once `step.count` is above the steps that it has done.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launch.commands.train import carry_out, rewrite_config, say
from launch.preflight.settings import settings_problems
from learner.deepspeed.lr_schedule import scheduled_lr
from pipeline.checkpoint import fingerprint, store
from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Config
from pipeline.data.files import DataError
from pipeline.system.durable_files import write_file
from pipeline.system.micro_batch_limit import read_limit
from pipeline.system.run_folder import RunError, RunFolder
from pipeline.system.temp_dirs import remove_orphans
from pipeline.system.terminal_text import without_passwords
from pipeline.system.untrusted_files import UnreadableFile, read_json

RESUME_ERRORS = (RunError, ConfigError, DataError, store.CheckpointError, UnreadableFile, OSError)
"""What `open_run` raises."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A run whose lock is held, and the checkpoint that it continues from."""

    config: Config
    run: RunFolder
    checkpoint: Path
    step: int
    notes: list[str]  # damaged checkpoints, and what has changed, a line each


class _Result(msgspec.Struct, frozen=True):
    """What is used of result.json."""

    steps: int


def resume_status(error: Exception) -> int:
    """Returns the exit status for one of RESUME_ERRORS: 5 if there is no checkpoint, else 2."""
    none = isinstance(error, store.CheckpointError) and not isinstance(error, store.Refused)
    return 5 if none else 2


def open_run(path: Path, overrides: Sequence[str] = ()) -> Resumed:
    """Reads a run and its newest whole checkpoint, checks that they fit each other, and keeps
    changed settings in the run's config.yaml.

    Args:
        overrides: settings as `key=value`, over those of the run.

    Raises: one of RESUME_ERRORS; nothing has changed then.
    """
    run = RunFolder(path)
    before = load(run.config)
    config = load(run.config, overrides) if overrides else before
    if problems := settings_problems(config):
        raise RunError("\n".join(problems))
    run.hold_lock()
    try:
        refuse_finished(run, config)
        read_limit(run, config.learner.tokens_per_micro_batch)
        directory, manifest, damaged = store.newest(run.checkpoints)
        command = " or the settings of this command" if overrides else ""
        check_fits(directory, manifest, config, f"{run.config}{command}")
        notes = [f"skipped a damaged checkpoint: {line}" for line in damaged]
        if overrides:
            notes += keep_changes(run, before, config, manifest)
    except BaseException:
        run.release_lock()
        raise
    return Resumed(config, run, directory, manifest["step"], notes)


def resume_run(path: Path, overrides: Sequence[str] = ()) -> int:
    """Continues a run from its newest whole checkpoint. Returns the exit status."""
    try:
        found = open_run(path, overrides)
    except RESUME_ERRORS as error:
        remove_orphans()  # of the killed run: nothing is started that would do so
        say(error)
        return resume_status(error)
    for line in found.notes:
        say(line)
    say(f"resuming {found.run.path} at step {found.step}")
    return carry_out(found.config, found.run, found.checkpoint)


def refuse_finished(run: RunFolder, config: Config) -> None:
    """Raises RunError if the run has done all of `step.count` and written its result, or if it has
    left no checkpoint to continue from."""
    if not run.result.exists():
        return
    done = read_json(run.result, _Result).steps
    path = shlex.quote(str(run.path))
    if done >= config.step.count:
        raise RunError(
            f"{run.path}: this run has finished its {done} steps; raise step.count, as in darts "
            f"train --resume {path} step.count={2 * done or 1}, or choose another --out"
        )
    if not any(run.checkpoints.glob("*step-*")):
        raise RunError(
            f"{run.path}: this run has finished without a checkpoint (checkpoint.every: "
            f"{config.checkpoint.every}), and cannot be continued; start another one"
        )


def check_fits(
    directory: Path, manifest: dict[str, Any], config: Config, settings: Path | str
) -> None:
    """Raises Refused, naming each difference, if a checkpoint is for other settings, model,
    tokenizer or data, or of a later step than `step.count`. `settings` says where the current
    settings are from.
    """
    now = fingerprint.fingerprint_of(config)
    if found := fingerprint.differences(manifest.get("made_for", {}), now, str(settings)):
        raise store.Refused("\n".join([f"{directory} was written for another run:", *found]))
    if config.step.count < (done := manifest["step"]):
        raise store.Refused(
            f"{directory}: {done} steps are done, and step.count is {config.step.count}: set it to "
            f"at least {done} in {settings}"
        )


def keep_changes(
    run: RunFolder, before: Config | None, config: Config, manifest: dict[str, Any]
) -> list[str]:
    """Writes changed settings into the run's folder; returns a line about each, and what it means
    for the learning rate. Only free settings may differ.

    Args:
        before: the run's settings so far; None: they cannot be read.
    """
    if before is None:
        rewrite_config(run, config)
        return [f"{run.config}: replaced by the settings of this command"]
    changes = fingerprint.changes(before, config)
    if not changes:
        return []
    rewrite_config(run, config)
    _note_in_about(run, manifest["step"], changes)
    return [f"changed: {line}" for line in changes] + list(_learning_rate(before, config, manifest))


def _note_in_about(run: RunFolder, step: int, changes: list[str]) -> None:
    """Adds to about.json from which step on which settings hold."""
    try:
        about = read_json(run.about, dict[str, Any])
    except UnreadableFile:  # it says how the run began, and is needed for nothing
        about = {}
    entry = {
        "command": without_passwords(shlex.join(sys.argv)),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "step": step,
        "changed": changes,
    }
    about["continued"] = [*about.get("continued", ()), entry]
    write_file(run.about, json.dumps(about, indent=1) + "\n")


def _learning_rate(before: Config, config: Config, manifest: dict[str, Any]) -> Iterator[str]:
    """Yields a line if the next step's learning rate is another one than without the change."""
    updates = manifest["version"]
    old = scheduled_lr(before.learner, updates, before.step.count)
    new = scheduled_lr(config.learner, updates, config.step.count)
    if old != new:
        yield (
            f"learning rate: {new:.3g} at step {manifest['step'] + 1} of {config.step.count} "
            f"(learner.schedule {config.learner.schedule}), and it would have been {old:.3g}"
        )
