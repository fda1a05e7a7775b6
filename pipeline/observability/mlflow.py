"""Tracker MLflow: a run of an experiment, named as the run's folder; a resume continues it.

Where it is, is MLflow's own setting (MLFLOW_TRACKING_URI). Every call may wait for a server,
so all of them are made by one thread: the stage waits for none.
"""

from __future__ import annotations

import importlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from pipeline.config.schema import Config
from pipeline.observability.live_status import RunStatus
from pipeline.observability.prometheus import TrackerError
from pipeline.observability.tracker_ids import read_id
from pipeline.system.run_folder import RunFolder

log = logging.getLogger("stage")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_./ -]+")
# MLflow's own limits: of a batch, and of a parameter's value.
_METRICS, _PARAMETERS, _CHARACTERS = 1000, 100, 6000
_CLOSE_S = 10.0
"""How long the end of a run waits for what is still to be sent."""


class Mlflow:
    def __init__(self, experiment: str, run: RunFolder, config: Config) -> None:
        """Raises TrackerError if MLflow is not there, or refuses."""
        try:
            self._mlflow: Any = importlib.import_module("mlflow")  # an extra
            self._entities: Any = importlib.import_module("mlflow.entities")
        except ImportError as error:
            raise TrackerError(
                f"metrics.mlflow: found {experiment!r}, but {error}: "
                "pip install 'darts-rl[mlflow]', or leave metrics.mlflow empty"
            ) from error
        try:
            self._client: Any = self._mlflow.MlflowClient()
            self._id = self._begun(experiment, run, config)
        except TrackerError:
            raise
        except Exception as error:  # its own, of requests, of the disk
            first = str(error).strip().split("\n")[0]
            raise TrackerError(
                f"metrics.mlflow: {type(error).__name__}: {first:.500}; set MLFLOW_TRACKING_URI to "
                "a server (http://host:port), or leave metrics.mlflow empty"
            ) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._newest: Future[Any] | None = None

    def _begun(self, experiment: str, run: RunFolder, config: Config) -> str:
        """Id of the run there: that of the file in the run's folder, or a new one."""
        if run.mlflow_id.exists():
            known = read_id(run.mlflow_id, "mlflow")
            self._client.update_run(known, status="RUNNING")
            return known
        found = self._client.get_experiment_by_name(experiment)
        at = found.experiment_id if found else self._client.create_experiment(experiment)
        new: str = self._client.create_run(at, run_name=run.path.name).info.run_id
        parameters = [
            self._entities.Param(_name(key), str(value)[:_CHARACTERS])
            for key, value in _settings(msgspec.to_builtins(config))
        ]
        for part in _parts(parameters, _PARAMETERS):
            self._client.log_batch(new, params=part)
        run.mlflow_id.write_text(new + "\n", encoding="utf-8")
        return new

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        """Raises what the call before raised, if it has ended."""
        if self._newest is not None and self._newest.done():
            self._newest.result()
        now_ms = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(_name(f"{what}/{name}"), value, now_ms, step)
            for name, value in numbers.items()
            if name != "step"
        ]
        for part in _parts(metrics, _METRICS):
            self._call(lambda part=part: self._client.log_batch(self._id, metrics=part))

    def _call(self, do: Callable[[], Any]) -> None:
        """Makes a call after those before it; when one has failed, no other is made."""
        before = self._newest

        def after() -> None:
            if before is not None:
                before.result()
            do()

        self._newest = self._thread.submit(after)

    def log_status(self, now: RunStatus) -> None:
        """Nothing: its curves are over steps."""

    def close(self) -> None:
        self._call(lambda: self._client.set_terminated(self._id))
        try:
            assert self._newest is not None
            self._newest.result(_CLOSE_S)
        except TimeoutError:
            log.warning("MLflow has not taken everything within %g s", _CLOSE_S)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)


def _name(text: str) -> str:
    """Replaces what MLflow refuses in a name.

    >>> _name("eval/pass@4")
    'eval/pass_4'
    """
    return _NOT_IN_A_NAME.sub("_", text)


def _parts(whole: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (whole[start : start + most] for start in range(0, len(whole), most))


def _settings(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            yield prefix + key, value
