"""A run that has ended: its folder, read as Python values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Config
from pipeline.system.untrusted_files import UnreadableFile, decode_json, read_bytes, read_json

_MOST_BYTES = 1 << 30  # of metrics.jsonl


class RunError(Exception):
    """A run could not start, or did not come to its end.

    `reason` says why, `status` is the exit status that `darts train` would have (2: it could not
    start; 5: no whole checkpoint; 1: it failed), `path` is the run's folder, if it has one.
    """

    def __init__(self, reason: str, status: int = 1, path: Path | None = None) -> None:
        where = f"{path}: " if path is not None and str(path) not in reason else ""
        super().__init__(f"{where}{reason}")
        self.reason, self.status, self.path = reason, status, path


class Run:
    """The results in a run's folder; `Run("runs/mine")` opens those of an earlier run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json: accuracy and lengths before and after, steps, tokens."""
        try:
            return read_json(self.path / "result.json", dict[str, Any])
        except UnreadableFile as error:
            raise RunError(f"no result: {error}", path=self.path) from error

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The steps and evaluations so far, one dict each, in order, as in metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        try:
            # what follows the last \n is half a line
            *whole, _ = read_bytes(path, _MOST_BYTES).split(b"\n")
            lines = [
                decode_json(line, f"{path}:{number}", dict[str, Any])
                for number, line in enumerate(whole, start=1)
            ]
        except UnreadableFile as error:
            raise RunError(f"no metrics: {error}", path=self.path) from error
        return [line for line in lines if line.get("what") in ("step", "eval")]

    @property
    def config(self) -> Config:
        """The settings of the run, with every default: `run.config.learner.lr`."""
        try:
            return load(self.path / "config.yaml")
        except ConfigError as error:
            raise RunError(f"no settings: {error}", path=self.path) from error

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps so far, in order: reward, lengths, seconds, tokens (docs/run-folder.md)."""
        return [line for line in self.metrics if line["what"] == "step"]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations so far, in order: accuracy, lengths (docs/evaluation.md)."""
        return [line for line in self.metrics if line["what"] == "eval"]

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The newest evaluation; None if nothing was evaluated."""
        return next(reversed(self.evaluations), None)

    def rollouts(self, step: int | None = None) -> list[dict[str, Any]]:
        """The responses of a step (from 1; the newest one by default), a dict each: prompt, pieces,
        reward, fate and reason (docs/run-folder.md). Empty where none are kept."""
        import msgspec

        from pipeline.observability.rollout_files import file_of, files_in, read_rollouts

        known = files_in(self.path / "rollouts")
        if step is None and not known:
            return []
        path = file_of(self.path / "rollouts", max(known) if step is None else step - 1)
        try:
            return [msgspec.structs.asdict(line) for line in read_rollouts(path)]
        except UnreadableFile as error:
            raise RunError(f"no rollouts: {error}", path=self.path) from error

    def export(self, directory: str | Path, best: bool = False) -> Path:
        """Writes the newest checkpoint as a Hugging Face directory, which must not exist.

        Args:
            best: write the checkpoint of the best step by `eval.best` instead.

        Returns: the directory. Raises: RunError.
        """
        from launch.commands.best_checkpoint import best_checkpoint
        from launch.commands.train import export_run
        from pipeline.checkpoint.store import CheckpointError
        from pipeline.system import run_folder

        try:
            source = best_checkpoint(self.path)[0] if best else self.path
            export_run(source, Path(directory))
        except (
            OSError, ValueError, run_folder.RunError, ConfigError, CheckpointError
        ) as error:  # fmt: skip
            raise RunError(str(error), path=self.path) from error
        return Path(directory)
