"""The section `metrics`: what is measured of a run, and who gets the figures."""

from __future__ import annotations

from pipeline.config import setting_types as allowed
from pipeline.config.setting_types import Section
from pipeline.plugins.ranges import NonNegativeInt


class MetricsConfig(Section, frozen=True, kw_only=True):
    timing: bool = True
    """Measure latency percentiles and the critical path of every step, for `metrics.jsonl`."""
    trace_steps: NonNegativeInt = 5
    """Steps from the start (or resume) whose spans are kept, in the run's `trace.json`, for
    ui.perfetto.dev and the report; 0: none. Needs `timing`. Held in memory until the last of them
    has ended: 1.6 kB for each response of a simulated run."""
    group: allowed.SystemGroup = ""
    """Group of the system (a name or a number, one that you are in) whose members may read what
    shows a run: figures, logs, samples, decisions, TensorBoard's files, and `prometheus_port`. Its
    checkpoints, recordings and keys stay your own. Empty: all of it is readable by you alone."""
    tensorboard: bool = True
    """Write the numbers of steps and evaluations for TensorBoard, beside `metrics.jsonl`."""
    prometheus_port: allowed.Port = 0
    """Port on 127.0.0.1 where Prometheus may read the newest figures and waits, if it runs as you,
    as root or as a member of `group`; 0: none."""
    wandb: allowed.WandbProject = ""
    """Project of Weights & Biases for steps and evaluations (needs `pip install 'darts-rl[wandb]'`;
    WANDB_MODE=offline keeps them here). Empty: none."""
    mlflow: allowed.MlflowExperiment = ""
    """Experiment of MLflow for steps and evaluations (needs `pip install 'darts-rl[mlflow]'`;
    MLFLOW_TRACKING_URI says where it is). Empty: none."""
    trackio: allowed.TrackioProject = ""
    """Project of trackio for steps and evaluations (needs the package trackio, which asks for an
    older pillow than vLLM: an environment of its own; TRACKIO_DIR says where). Empty: none."""
