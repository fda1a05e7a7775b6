"""Sends the numbers of a run to TensorBoard, Prometheus, W&B and others, beside its own files.

A tracker gets the flattened figures of every step and evaluation, and what the
run does now once a second. `tracker_problems` says before anything is started what a
configuration asks for and this machine cannot do. What is not asked for is not
imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from pipeline.config.schema import Config, MetricsConfig
from pipeline.observability.live_status import RunStatus
from pipeline.observability.prometheus import TrackerError, port_complaint, port_in_use
from pipeline.observability.tracker_ids import read_id
from pipeline.observability.tracker_thread import SlowTracker, TrackerThread
from pipeline.system.python_path import is_users_own
from pipeline.system.run_folder import RunFolder

log = logging.getLogger("stage")
_COLUMNS = {
    name: name
    for name in ("group", "prompt", "id", "reward", "fate", "why", "tokens", "prompt_text")
} | {"response": "pieces", "answer": "answer"}
"""Columns of a table of responses -> fields of `RolloutLine`."""
_CELL = 10_000
"""Characters of a text in a table."""
_NOT_A_TAG = re.compile(r"[^A-Za-z0-9_./-]+")


class Tracker(Protocol):
    """`close` at the end; it may take a moment to send what is left."""

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step or an evaluation (`what`), nested ones as `learner/loss`."""
        ...

    def log_status(self, now: RunStatus) -> None: ...

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Some responses of a step, as in its file of `rollouts/`."""
        ...

    def close(self) -> None: ...


class Trackers:
    """All of a run as one. One that fails is named, and left out from then on: it ends no run."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        self._told: list[str] = []

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log_metrics(what, step, numbers))

    def log_status(self, now: RunStatus) -> None:
        self._each(lambda tracker: tracker.log_status(now))

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._each(lambda tracker: tracker.log_rollouts(step, rows))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._told, self._trackers = self.news(), []

    def news(self) -> list[str]:
        """What is to be told to people since the last call."""
        told, self._told = self._told, []
        for tracker in self._trackers:
            told += tracker.news() if isinstance(tracker, TrackerThread) else []
        return told

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                do(tracker)
            except Exception:  # somebody else's library, disk or network
                name = type(tracker).__name__
                log.exception("%s failed and gets no more figures", name)
                self._told.append(f"{name} failed and gets no more figures; see logs/stage.log")
                self._trackers.remove(tracker)


def flat_metrics(fields: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings.

    >>> flat({"reward": 1, "learner": {"loss": 0.5}, "why": "text"})
    {'reward': 1.0, 'learner/loss': 0.5}
    """
    numbers: dict[str, float] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            numbers |= flat_metrics(value, f"{prefix}{key}/")  # type: ignore[arg-type]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + key] = float(value)
    return numbers


def tracker_problems(section: MetricsConfig) -> Iterator[str]:
    """Lists what the section asks for and cannot have here, one line each."""
    asked = {"wandb": section.wandb, "mlflow": section.mlflow, "trackio": section.trackio}
    for package, project in asked.items():
        if project and not _installed(package):
            yield (
                f"metrics.{package}: found {project!r}, but the package {package} is not "
                f"installed: pip install 'darts-rl[{package}]', or leave metrics.{package} empty"
            )
    if section.prometheus_port and (why := port_in_use(section.prometheus_port)):
        yield port_complaint(section.prometheus_port, why)


def _installed(package: str) -> bool:
    """Whether it can be imported. What the current folder has of that name is no package: a folder
    without code, as W&B leaves one where runs were started, or a script of the user's."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    return not is_users_own(package, spec.origin)


def start_trackers(config: Config, run: RunFolder, resumed_step: int = -1) -> list[Tracker]:
    """Every tracker that is asked for. Raises TrackerError.

    Args:
        resumed_step: of the checkpoint that the run continues from; -1: none.
    """
    section = config.metrics
    found: list[Tracker] = []
    try:
        if section.tensorboard:
            found.append(
                TrackerThread(
                    "metrics.tensorboard", lambda: TensorBoard(run, resumed_step), needed=False
                )
            )
        if section.prometheus_port:
            from pipeline.observability.prometheus import Prometheus

            found.append(Prometheus(section.prometheus_port, section.group))
        for key, make in _remote(section):
            found.append(TrackerThread(key, lambda make=make: make(run, config)))
    except BaseException:
        for tracker in found:
            tracker.close()
        raise
    return found


def _remote(
    section: MetricsConfig,
) -> Iterator[tuple[str, Callable[[RunFolder, Config], SlowTracker]]]:
    """Setting -> how to connect, of those that talk to a server."""
    if section.wandb:
        yield "metrics.wandb", lambda run, config: WeightsAndBiases(section.wandb, run, config)
    if section.mlflow:
        from pipeline.observability.mlflow import Mlflow

        yield "metrics.mlflow", lambda run, config: Mlflow(section.mlflow, run, config)
    if section.trackio:
        yield "metrics.trackio", lambda run, config: Trackio(section.trackio, run, config)


def _cell(row: Mapping[str, Any], column: str) -> Any:
    value = row[_COLUMNS[column]]
    if column == "response":
        value = "".join(text for text, _ in value)
    return value[:_CELL] if isinstance(value, str) else value


class TensorBoard:
    """Event files in the run's folder. They are written by a thread of tensorboardX, whose short
    queue is taken in no more once that thread has died, as of a disk that is full."""

    def __init__(self, run: RunFolder, resumed_step: int) -> None:
        self._board = _summary_writer()(
            str(run.tensorboard),
            flush_secs=10,
            purge_step=resumed_step if resumed_step >= 0 else None,  # what follows is done again
        )

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._board.add_scalar(_NOT_A_TAG.sub("_", f"{what}/{name}"), value, step)

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it has no tables of text."""

    def close(self) -> None:
        self._board.close()


def _summary_writer() -> Any:
    """tensorboardX loads torch where it finds it, which costs the stage seconds and 200 MB."""
    before = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if before is None:
            del sys.modules["torch"]
        else:
            sys.modules["torch"] = before
    return SummaryWriter


class WeightsAndBiases:
    """A run of W&B, named as the run's folder; a resume continues it.

    Whether it sends or keeps what it gets is W&B's own setting (WANDB_MODE). Curves
    are drawn over `step`, which may go back: steps that are done again after a resume
    are there twice.
    """

    def __init__(self, project: str, run: RunFolder, config: Config) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")  # an extra
        except ImportError as error:
            raise TrackerError("; ".join(tracker_problems(config.metrics)) or str(error)) from error
        try:
            self._run: Any = wandb.init(
                project=project,
                name=run.path.name,
                id=self._id(run),
                resume="allow",
                dir=str(run.path),
                config=msgspec.to_builtins(config),
            )
        except wandb.Error as error:
            raise TrackerError(
                f"metrics.wandb: {error}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._wandb = wandb

    @staticmethod
    def _id(run: RunFolder) -> str:
        """Made once for each run's folder."""
        if not run.wandb_id.exists():
            run.wandb_id.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
        return read_id(run.wandb_id, "wandb")

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        named = {f"{what}/{name}": value for name, value in numbers.items() if name != "step"}
        self._run.log({"step": step, **named})

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        cells = [[_cell(row, name) for name in _COLUMNS] for row in rows]
        self._run.log(
            {"step": step, "rollouts": self._wandb.Table(columns=[*_COLUMNS], data=cells)}
        )

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, named as the run's folder; a resume continues it."""

    def __init__(self, project: str, run: RunFolder, config: Config) -> None:
        try:
            trackio: Any = importlib.import_module("trackio")  # an extra
        except ImportError as error:
            raise TrackerError("; ".join(tracker_problems(config.metrics)) or str(error)) from error
        self._trackio = trackio
        try:
            trackio.init(
                project=project,
                name=run.path.name,
                resume="allow",
                config=msgspec.to_builtins(config),
            )
        except Exception as error:  # it has no class of its own for them
            raise TrackerError(
                f"metrics.trackio: {type(error).__name__}: {error}; or leave it empty"
            ) from error

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        named = {f"{what}/{name}": value for name, value in numbers.items() if name != "step"}
        self._trackio.log(named, step=step)

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it has no tables of text."""

    def close(self) -> None:
        self._trackio.finish()
