"""Tracker MLflow: a run of an experiment, named as the run's folder; a resume continues it.

Where it is, is MLflow's own setting (MLFLOW_TRACKING_URI). Every call may wait for a server:
`pipeline.observability.tracker_thread` makes all of them in a thread.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.config.schema import Config
from pipeline.observability.prometheus import TrackerError
from pipeline.observability.tracker_ids import read_id
from pipeline.system.run_folder import RunFolder

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_./ -]+")
# MLflow's own limits: of a batch, and of a parameter's value.
_METRICS, _PARAMETERS, _CHARACTERS = 1000, 100, 6000


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
        now_ms = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(_name(f"{what}/{name}"), value, now_ms, step)
            for name, value in numbers.items()
            if name != "step"
        ]
        for part in _parts(metrics, _METRICS):
            self._client.log_batch(self._id, metrics=part)

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it has no tables of text."""

    def close(self) -> None:
        self._client.set_terminated(self._id)


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
