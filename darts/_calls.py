"""The functions of `darts`: each does what the command of its name does, and returns its figures.

What only a run needs is imported when one is asked for.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from darts import _settings
from darts._rewards import Reward, reward_overrides
from darts._run import Run, RunError
from darts._settings import Rows, Settings
from pipeline.config.load import ConfigError
from pipeline.config.schema import Config, LearnerConfig

if TYPE_CHECKING:
    from pipeline.system.run_folder import RunFolder

_T = TypeVar("_T")
Callback = Callable[[dict[str, Any]], object]
"""Is given a step or an evaluation, as `Run.steps` and `Run.evaluations` have it."""
_OnLine = Callable[[dict[str, Any]], None]
_preparing: contextvars.ContextVar[bool] = contextvars.ContextVar("preparing", default=False)


def load_config(config: Settings, **overrides: Any) -> Config:
    """Reads and checks a configuration.

    Args:
        config: a YAML file, or its settings as a dict.
        overrides: settings by key: `seed=1`, `step={"count": 10}`, `**{"step.count": 10}`.

    Raises: ConfigError, with all problems.
    """
    return _settings.loaded(config, _settings.as_overrides(overrides))


def train(
    config: Settings = None,
    *,
    model: str | Path | None = None,
    data: Rows | None = None,
    held_out: Rows | int | None = None,
    reward: Reward | None = None,
    steps: int | None = None,
    engine: str | dict[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    on_step: Callback | None = None,
    on_eval: Callback | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Trains a model on this machine; returns when the run has ended.

    Works in any thread. Ctrl-C (in the main thread) writes a checkpoint, stops the run and raises
    KeyboardInterrupt.

    Args:
        config: a YAML file, or its settings as a dict; without it every setting has its default.
        model: directory of a Hugging Face causal LM.
        data: prompts to train on: rows (dicts; a list, a `datasets.Dataset`, a DataFrame), which
            are kept in the run's folder, or a path.
        held_out: prompts to evaluate on, likewise, or how many of a task. With `data` and without
            `config` and `held_out` nothing is evaluated.
        reward: a function (docs/python.md), `file.py:function`, several in a list, or a reward
            plug-in's name.
        steps: training steps, `step.count`. Without `config`, the warm-up is no longer than these.
        engine: `vllm`, `transformers` or `simulated`.
        out: the run's folder; a new one below runs/ by default.
        resume: folder of a run to continue from its newest checkpoint. With it only `steps`,
            `engine` and other settings may be given that a resume may change (docs/run-folder.md);
            a run that has finished needs more `steps`.
        on_step: called after each step, in this thread, while the run goes on. If it raises, the
            run writes a checkpoint, stops, and this raises the same.
        on_eval: called after each evaluation, likewise.
        quiet: print nothing.
        overrides: other settings by key: `seed=1`, `**{"group.size": 4}`.

    Raises: ConfigError if settings do not fit; RunError if the run cannot start, or fails.
    """
    settings = [] if steps is None else [f"step.count={steps}"]
    settings += _engine(engine)
    on_line = _on_line(on_step, on_eval)
    if resume is not None:
        given = {"model": model, "data": data, "held_out": held_out, "reward": reward,
                 "out": out, "config": config}  # fmt: skip
        if more := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"resume takes the run's folder and settings that a resume may change, found "
                f"{', '.join(more)} (docs/run-folder.md)"
            )
        settings += _settings.as_overrides(overrides)
        return _resume(Path(resume), settings, quiet, on_line)
    if config is None:
        if data is not None and held_out is None:
            settings = ["data.held_out=0", "eval.every=0", *settings]
        if steps:
            warmup_steps = min(steps, LearnerConfig().warmup_steps)
            settings = [f"learner.warmup_steps={warmup_steps}", *settings]
    settings = [*([] if model is None else [f"model={model}"]), *settings]
    settings += _settings.as_overrides(overrides)
    base = Path("runs") / _run_name(config, model)
    parts: dict[str, Rows | int | None] = {"train": data, "held_out": held_out}
    return _start(config, settings, parts, reward, out, base, quiet, on_line=on_line)


def evaluate(
    config: Settings = None,
    *,
    model: str | Path | None = None,
    data: Rows | None = None,
    reward: Reward | None = None,
    engine: str | dict[str, Any] | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Samples the held-out prompts; returns accuracy and lengths, as an `eval` line of
    metrics.jsonl (docs/evaluation.md).

    Args:
        data: the prompts, rows or a path; without it those of `config`.
        The others are those of `train`.

    Raises: ConfigError, RunError.
    """
    settings = [] if model is None else [f"model={model}"]
    settings += [*_engine(engine), *_settings.as_overrides(overrides), "step.count=0"]
    # without a configuration nothing else is there to train on, and nothing is trained
    rows = _settings.rows_of(data)
    prompts = data if rows is None else list(rows)
    parts: dict[str, Rows | int | None] = {"held_out": prompts}
    if config is None:
        parts["train"] = prompts
    base = Path("runs") / f"{_run_name(config, model)}-eval"
    run = _start(config, settings, parts, reward, out, base, quiet, _refuse_no_evaluation)
    if run.evaluation is None:
        raise RunError("the run ended without an evaluation", path=run.path)
    return run.evaluation


def simulate(
    config: Settings = None,
    *,
    shape: str = "qwen2.5-7b",
    device: str = "h20",
    tensor_parallel: int = 1,
    learner_gpus: int = 32,
    median: float = 1200.0,
    between: float = 0.45,
    within: float = 0.8,
    rate: float = 0.0,
    **overrides: Any,
) -> dict[str, Any]:
    """Runs the coordinator in virtual time with modelled engines and learner.

    Args:
        config: a YAML file or its settings; without it that of `darts simulate`.
        shape: the model, by the names of `darts simulate --model`.
        device: the GPU: h20, h800 or h200.
        tensor_parallel: GPUs of an engine.
        learner_gpus: GPUs of the learner.
        median: of response lengths, tokens.
        between: deviation of log length between prompts.
        within: deviation of log length within a prompt.
        rate: of learning; 0: the policy stays as it is.
        overrides: settings by key, as for `train`.

    Returns: `metrics`, means over the steps by name, and `steps`, a dict for each.
    Raises: ConfigError; RunError if the run stops; ValueError for an unknown shape or device.
    """
    from launch.simulate import CONFIG
    from launch.simulate.command import RunStopped, play_one, run_document
    from launch.simulate.scenario import Scenario
    from pipeline.hardware.costs import DEVICES, SHAPES
    from pipeline.simulation.workload import Lengths

    for name, value, known in (("shape", shape, SHAPES), ("device", device, DEVICES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    loaded = load_config(CONFIG if config is None else config, **overrides)
    scenario = Scenario(
        shape=shape,
        device=device,
        gpus_of_engine=tensor_parallel,
        learner_gpus=learner_gpus,
        lengths=Lengths(median=median, between=between, within=within),
        rate=rate,
    )
    try:
        return run_document(*play_one(loaded, scenario, ()))
    except RunStopped as error:
        raise RunError(str(error)) from error


# --- what they share --------------------------------------------------------------------------


def _engine(engine: str | dict[str, Any] | None) -> list[str]:
    if engine is None:
        return []
    return _settings.as_overrides(
        {"engine.kind": engine} if isinstance(engine, str) else {"engine": engine}
    )


def _run_name(config: Settings, model: str | Path | None) -> str:
    """A name for the run's folder, from the file or the model."""
    given = config if isinstance(config, str | Path) else model
    if given is None and isinstance(config, Config):
        given = config.model
    elif given is None and config is not None and not isinstance(config, str | Path | Config):
        given = config.get("model")
    path = Path(given) if given is not None else Path("run")
    name = path.stem if given is config else path.absolute().name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:48].strip(".") or "run"


def _refuse_no_evaluation(config: Config) -> None:
    from pipeline.data.eval_sets import nothing_held_out

    if not config.eval.every:
        raise ConfigError(["eval.every: 0: nothing would be evaluated"])
    if why := nothing_held_out(config):
        raise ConfigError([why])


def _start(
    config: Settings,
    settings: list[str],
    data: dict[str, Rows | int | None],
    reward: Reward | None,
    out: str | Path | None,
    base: Path,
    quiet: bool,
    check: Callable[[Config], None] = lambda _: None,
    on_line: _OnLine | None = None,
) -> Run:
    """Makes the folder, writes rows and functions into it, checks everything, and runs."""
    from launch.commands.train import create_run, identify, run_job
    from pipeline.system import run_folder

    path = Path(out) if out is not None else base
    before = path.exists()
    with _at_most_one_at_a_time():
        try:
            run = create_run(path, fresh=out is None)
        except (run_folder.RunError, OSError) as error:
            raise RunError(str(error), 2) from error
        try:
            chosen = [] if reward is None else reward_overrides(reward, run.path)
            settings = [*chosen, *settings, *_data_settings(data, run.path)]
            loaded = _settings.loaded(config, settings)
            check(loaded)
            for line in _preflight(loaded, run.path):
                if not quiet:
                    print(line)
            identify(run, loaded)
        except BaseException:
            run.release_lock()
            if not before or out is None:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
    return _ended(run, lambda: run_job(loaded, run, quiet=quiet, on_line=on_line))


def _on_line(on_step: Callback | None, on_eval: Callback | None) -> _OnLine | None:
    """Calls back with the stage's lines about steps and evaluations."""
    calls = {what: call for what, call in (("step", on_step), ("eval", on_eval)) if call}

    def on_line(line: dict[str, Any]) -> None:
        for what, call in calls.items():
            if what in line:
                call({"what": what, **line[what]})

    return on_line if calls else None


def _data_settings(data: dict[str, Rows | int | None], folder: Path) -> Iterator[str]:
    for name, given in data.items():
        if isinstance(given, str | Path | int):
            yield f"data.{name}={given}"
        elif (rows := _settings.rows_of(given)) is not None:
            yield f"data.{name}={_settings.write_rows(rows, folder / f'{name}.jsonl')}"
        elif given is not None:
            yield from _settings.as_overrides({"data": given})


def _resume(path: Path, settings: list[str], quiet: bool, on_line: _OnLine | None) -> Run:
    from launch.commands.resume import RESUME_ERRORS, open_run, resume_status
    from launch.commands.train import run_job

    try:
        found = open_run(path, settings)
    except RESUME_ERRORS as error:
        raise RunError(str(error), resume_status(error), path.absolute()) from error
    if not quiet:
        print("\n".join([*found.notes, f"resuming {found.run.path} at step {found.step}"]))
    config, run, checkpoint = found.config, found.run, found.checkpoint
    return _ended(run, lambda: run_job(config, run, checkpoint, quiet=quiet, on_line=on_line))


def _ended(run: RunFolder, job: Callable[[], tuple[int, str]]) -> Run:
    """Runs a job; returns its results, or raises how it ended: what a callback raised, too."""
    from launch.commands.train import can_resume

    def cure() -> str:
        return f"continue with darts.train(resume={str(run.path)!r})" if can_resume(run) else ""

    try:
        status, error = job()
    except BaseException as raised:
        raised.add_note(f"{run.path}: stopped; {cure() or 'there is no checkpoint yet'}")
        raise
    if status == 130:
        raise KeyboardInterrupt(f"{run.path}: stopped; {cure() or 'there is no checkpoint yet'}")
    if status:
        reason = error or "the run failed"
        raise RunError(f"{reason}\n{cure()}".rstrip(), status, run.path)
    return Run(run.path)


@contextmanager
def _at_most_one_at_a_time() -> Iterator[None]:
    """Refuses a run that is asked for by a module which the checks of a run import: it would be
    asked for again by every process that imports it."""
    if _preparing.get():
        raise RunError(
            "this file starts a run when it is imported, and the run imports it for its reward; "
            'put the call under `if __name__ == "__main__":`',
            2,
        )
    token = _preparing.set(True)
    try:
        yield
    finally:
        _preparing.reset(token)


def _preflight(config: Config, path: Path) -> Iterable[str]:
    from launch.preflight.everything import PreflightError, check_everything

    try:
        return _outside_a_loop(lambda: check_everything(config))
    except PreflightError as error:
        raise RunError(str(error), 2, path) from error


def _outside_a_loop(call: Callable[[], _T]) -> _T:
    """Calls in another thread if this one has a running event loop, as a notebook's has."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, call).result()
