"""Where numbers go beside the run's files: what is sent, and what is said when it cannot be.

wandb and trackio are not installed here: their adapters are tested with stand-in modules that
record the calls. MLflow writes into a real store of files. Prometheus is read over HTTP.
"""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.config.schema import Config, MetricsConfig
from pipeline.coordinator.token_ledger import ACCOUNTS
from pipeline.observability import timing, trackers
from pipeline.observability.live_status import EngineStatus, PeerStatus, RunStatus, WaitStatus
from pipeline.observability.recorder import Records
from pipeline.observability.rollout_files import RolloutLine
from pipeline.observability.spans import StepRecord
from pipeline.system.python_path import user_folder_last
from pipeline.system.run_folder import RunFolder

STEP: dict[str, Any] = {
    "step": 3,
    "version": 3,
    "reward": 0.5,
    "seconds": 2.0,
    "tokens_mean": 30.5,
    "depth": None,
    "groups": {"trained": 15, "dropped: every reward is 1": 1},
    "ledger": {"sampled": 100},
    "learner": {"loss": -0.1, "backward_s": 0.75},
    "audit": {
        "reward_shift": 0.125,
        "advantage_moved": 0.25,
        "advantage_shift_by_kind": {"right_long": -0.25},
        "members_by_kind": {"right_long": 3},
    },
}
NOW = RunStatus(
    time=1000.0,
    phase="training",
    step=4,
    steps=60,
    queued=7,
    ledger={**dict.fromkeys(ACCOUNTS, 0), "trained": 250, "open": 12},
    engines=(EngineStatus(name="e0", running=3, slots=64, version=4),),
    groups={"open": 2, "taken": 5},
    at_rank={"0": 5},
    rewards_queued=2,
    rewards_running=1,
    peers=(PeerStatus(name="e0", role="engine", activity="sampling", heard_s=0.5, still_s=0.1),),
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "r")
    run.make_folders()
    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def config_of(**metrics: Any) -> Config:
    section: dict[str, Any] = {"tensorboard": False, **metrics}
    return Config(model="models/chain-sums", metrics=MetricsConfig(**section))


def test_nothing_is_started_and_nothing_imported_that_is_not_asked_for(run: RunFolder) -> None:
    assert trackers.start_trackers(config_of(), run) == []
    assert list(trackers.tracker_problems(MetricsConfig())) == []


# --- TensorBoard ------------------------------------------------------------------------


def test_tensorboard_has_the_numbers_of_a_step(run: RunFolder) -> None:
    records = Records(run, trackers=trackers.start_trackers(config_of(tensorboard=True), run))
    records.write("step", STEP)
    records.write_live(NOW)
    records.close()
    [file] = run.tensorboard.iterdir()
    content = file.read_bytes()
    for tag in (b"step/reward", b"step/learner/loss", b"step/groups/dropped_every_reward_is_1"):
        assert tag in content


# --- Prometheus -------------------------------------------------------------------------


def read(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, values of the labels) -> value, as Prometheus' own parser reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.documentation
    }


def documentation(port: int) -> dict[str, str]:
    """Name of a metric -> its help."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {f.name: f.documentation for f in text_string_to_metric_families(text)}


@pytest.fixture
def served(run: RunFolder) -> Iterator[tuple[int, Records]]:
    port = free_port()
    records = Records(run, trackers=trackers.start_trackers(config_of(prometheus_port=port), run))
    yield port, records
    records.close()


def test_prometheus_reads_the_newest_step_with_units_in_the_names(
    served: tuple[int, Records],
) -> None:
    port, records = served
    assert read(port) == {}
    records.write("step", {**STEP, "reward": 0.25})
    records.write("step", STEP)
    records.write("eval", {"step": 0, "accuracy": 0.75, "by_tag": {"terms=2": 0.5}})
    latency = {
        "time_to_first_token_s": {"count": 2, "p50": 0.1, "p95": 0.25, "p99": 0.3, "max": 0.5}
    }
    engines = {"e0": {"inter_token_s": 0.01}}
    records.write(
        "timing", {"step": 3, "percentiles": latency, "engines": engines, "bubble_reward": 0.9}
    )
    found = read(port)
    first = {key: value for key, value in found.items() if "first_token" in key[0]}
    assert first == {
        ("darts_latency_time_to_first_token_seconds", ("0.5",)): 0.1,
        ("darts_latency_time_to_first_token_seconds", ("0.95",)): 0.25,
        ("darts_latency_time_to_first_token_seconds", ("0.99",)): 0.3,
        ("darts_latency_time_to_first_token_max_seconds", ()): 0.5,
        ("darts_latency_time_to_first_token_count", ()): 2,
    }
    assert found["darts_step_bubble_reward_ratio", ()] == 0.9
    assert found["darts_engine_step_inter_token_seconds", ("e0",)] == 0.01
    assert found["darts_step_mean_reward", ()] == 0.5
    assert found["darts_step_duration_seconds", ()] == 2.0
    assert found["darts_step_response_mean_tokens", ()] == 30.5
    assert found["darts_step_learner_backward_seconds", ()] == 0.75
    assert found["darts_step_groups", ("dropped: every reward is 1",)] == 1.0
    assert found["darts_step_audit_advantage_moved", ()] == 0.25
    assert found["darts_step_audit_advantage_shift", ("right_long",)] == -0.25
    assert found["darts_step_audit_members", ("right_long",)] == 3
    assert "among all candidates" in documentation(port)["darts_step_audit_advantage_shift"]
    assert "absolute" in documentation(port)["darts_step_audit_advantage_moved"]
    assert found["darts_eval_accuracy_ratio", ()] == 0.75
    assert found["darts_eval_tag_mean_reward", ("terms=2",)] == 0.5
    assert all(name.startswith("darts_") for name, _ in found)


def test_prometheus_reads_what_the_run_does_now(served: tuple[int, Records]) -> None:
    port, records = served
    records.write_live(NOW)
    found = read(port)
    assert found["darts_response_tokens_total", ("trained",)] == 250
    assert found["darts_held_tokens", ("open",)] == 12
    assert found["darts_phase", ("training",)] == 1
    assert found["darts_phase", ("evaluating",)] == 0
    assert found["darts_engine_running_sequences", ("e0",)] == 3
    assert found["darts_engine_loading", ("e0",)] == 0
    assert found["darts_queued_trajectories", ()] == 7
    assert found["darts_live_groups", ("taken",)] == 5
    assert found["darts_learner_groups", ("0",)] == 5
    assert found["darts_peer_silence_seconds", ("e0",)] == 0.5
    assert found["darts_longest_wait_seconds", ()] == 0.0
    waits = tuple(WaitStatus(seconds=seconds, what="w") for seconds in (4.5, 2.0))
    records.write_live(msgspec.structs.replace(NOW, waits=waits))
    assert read(port)["darts_longest_wait_seconds", ()] == 4.5


def test_every_latency_that_is_measured_has_a_help_of_its_own(served: tuple[int, Records]) -> None:
    port, records = served
    step = StepRecord(step=0, since=0.0)
    names = timing.samples(step, [])
    latency = {name: {"count": 1, "p50": 0.1, "max": 0.2} for name in names}
    records.write("timing", {"step": 0, "percentiles": latency})
    helps = documentation(port)
    assert len(helps) == 3 * len(names)
    for name, text in helps.items():
        assert text.count(" ") > 4 and "_" not in text, (name, text)


def test_metrics_of_the_loss_say_what_they_are(served: tuple[int, Records]) -> None:
    port, records = served
    learner = {"ratio": 1.0, "clipped": 0.0, "mismatch": 1e-6, "mismatch_max": 1e-5, "own": 2.0}
    records.write("step", {"step": 0, "learner": learner})
    helps = documentation(port)
    assert helps["darts_step_learner_ratio"].startswith("new over old probability of a token")
    assert helps["darts_step_learner_clipped"].startswith("share of tokens whose ratio")
    assert "the engine's own" in helps["darts_step_learner_mismatch"]
    assert helps["darts_step_learner_own"].startswith("learner: own as in metrics.jsonl")


def test_a_port_in_use_is_complained_of_before_anything_starts_and_at_the_start(
    served: tuple[int, Records], run: RunFolder
) -> None:
    port, _ = served
    [complaint] = trackers.tracker_problems(MetricsConfig(prometheus_port=port))
    assert complaint.startswith("metrics.prometheus_port: cannot listen on 127.0.0.1:")
    assert "in use" in complaint
    with pytest.raises(trackers.TrackerError, match=r"metrics\.prometheus_port: .* in use"):
        trackers.start_trackers(config_of(prometheus_port=port, tensorboard=True), run)


def test_the_port_is_free_again_after_the_end(run: RunFolder) -> None:
    port = free_port()
    for _ in range(2):
        [tracker] = trackers.start_trackers(config_of(prometheus_port=port), run)
        tracker.close()
    assert list(trackers.tracker_problems(MetricsConfig(prometheus_port=port))) == []


# --- W&B --------------------------------------------------------------------------------


class StandIn(ModuleType):
    """`wandb` as far as the adapter uses it; keeps what it was asked."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[Mapping[str, Any]] = []
        self.defined: list[tuple[Any, ...]] = []
        self.finished = 0
        self.refuses = ""

    def init(self, **given: Any) -> StandIn:
        if self.refuses:
            raise self.Error(self.refuses)
        self.inits.append(given)
        return self

    def define_metric(self, *given: Any, step_metric: str) -> None:
        self.defined.append((*given, step_metric))

    def log(self, numbers: Mapping[str, Any]) -> None:
        self.logged.append(numbers)

    @staticmethod
    def Table(columns: list[str], data: list[list[Any]]) -> list[dict[str, Any]]:
        return [dict(zip(columns, row, strict=True)) for row in data]

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_runs_name_its_configuration_and_figures_over_steps(
    run: RunFolder, wandb: StandIn
) -> None:
    config = config_of(wandb="sums")
    records = Records(run, trackers=trackers.start_trackers(config, run))
    records.write("step", STEP)
    records.write_live(NOW)
    records.close()
    [init] = wandb.inits
    assert (init["project"], init["name"], init["resume"]) == ("sums", "r", "allow")
    assert init["config"] == msgspec.to_builtins(config)
    assert init["dir"] == str(run.path)
    assert "mode" not in init, "WANDB_MODE decides"
    assert wandb.defined == [("*", "step")]
    [logged] = wandb.logged
    assert (logged["step"], logged["step/reward"], logged["step/learner/loss"]) == (3, 0.5, -0.1)
    assert "step/step" not in logged
    assert wandb.finished == 1


def test_wandb_gets_responses_as_a_table(run: RunFolder, wandb: StandIn) -> None:
    records = Records(run, trackers=trackers.start_trackers(config_of(wandb="sums"), run))
    line = RolloutLine(step=3, group=7, prompt=1, id=30, fate="trained", reward=0.5, answer="5",
                       prompt_text="2+3=", pieces=(("#", True), ("5" * 20_000, True)))  # fmt: skip
    records.trackers.log_rollouts(3, [msgspec.structs.asdict(line)])
    records.close()
    [logged] = wandb.logged
    [row] = logged["rollouts"]
    assert logged["step"] == 3
    assert (row["group"], row["id"], row["fate"], row["reward"]) == (7, 30, "trained", 0.5)
    assert (row["prompt_text"], row["answer"], row["response"][:2]) == ("2+3=", "5", "#5")
    assert len(row["response"]) == 10_000


def test_wandb_goes_on_with_the_same_run_after_a_resume(run: RunFolder, wandb: StandIn) -> None:
    for resumed_step in (-1, 2):
        trackers.start_trackers(config_of(wandb="sums"), run, resumed_step)
    first, second = (init["id"] for init in wandb.inits)
    assert first == second == run.wandb_id.read_text().strip()


def test_what_wandb_refuses_is_an_error_that_names_key_and_cure(
    run: RunFolder, wandb: StandIn
) -> None:
    wandb.refuses = "api_key not configured"
    with pytest.raises(trackers.TrackerError) as caught:
        trackers.start_trackers(config_of(wandb="sums"), run)
    for part in ("metrics.wandb: api_key not configured", "wandb login", "WANDB_MODE=offline"):
        assert part in str(caught.value)


def test_without_the_package_the_key_and_the_extra_are_named(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [complaint] = trackers.tracker_problems(MetricsConfig(wandb="sums"))
    assert complaint.startswith("metrics.wandb: found 'sums'")
    assert "pip install 'darts-rl[wandb]'" in complaint
    with pytest.raises(trackers.TrackerError, match="pip install"):
        trackers.start_trackers(config_of(wandb="sums"), run)


@pytest.mark.parametrize(
    "name", ["no_such_tracker.py", "no_such_tracker/__init__.py", "no_such_tracker/run-1"]
)
def test_what_the_current_folder_has_of_its_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    user_folder_last()
    assert not trackers._installed("no_such_tracker")
    if name.endswith(".py"):
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # PYTHONPATH: it is meant
        assert trackers._installed("no_such_tracker")


# --- MLflow -----------------------------------------------------------------------------


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of a store of files, which mlflow-skinny can write; servers are the usual way."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"file://{tmp_path}/store")


def test_mlflow_has_the_settings_and_the_figures_over_steps_and_a_resume_goes_on(
    run: RunFolder, mlflow: Any
) -> None:
    config = config_of(mlflow="sums")
    for resumed_step, step in ((-1, 3), (3, 4)):
        records = Records(run, trackers=trackers.start_trackers(config, run, resumed_step))
        records.write("step", {**STEP, "step": step})
        records.write("eval", {"step": step, "accuracy": 0.5, "pass@4": 0.75})
        records.write_live(NOW)
        records.close()
    [experiment] = [e for e in mlflow.search_experiments() if e.name == "sums"]
    [found] = mlflow.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("r", "FINISHED")
    assert found.data.params["step.prompts"] == "16"
    assert found.data.metrics["step/learner/loss"] == -0.1
    assert found.data.metrics["eval/pass_4"] == 0.75
    history = mlflow.get_metric_history(found.info.run_id, "step/reward")
    assert [(m.step, m.value) for m in history] == [(3, 0.5), (4, 0.5)]


def test_mlflow_that_fails_in_a_run_is_left_out_and_ends_nothing(
    run: RunFolder, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = trackers.start_trackers(config_of(mlflow="sums"), run)

    def refuse(*given: Any, **named: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mlflow.MlflowClient.log_batch", refuse)
    every = trackers.Trackers(started)
    for step in range(3):
        every.log_metrics("step", step, {"reward": 0.5})
    every.close()
    [told] = every.news()
    assert told.startswith("metrics.mlflow: failed and gets no more figures: OSError: no space")


def test_what_mlflow_refuses_is_an_error_that_names_key_and_cure(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(trackers.TrackerError) as caught:
        trackers.start_trackers(config_of(mlflow="sums"), run)
    assert str(caught.value).startswith("metrics.mlflow: ")
    assert "set MLFLOW_TRACKING_URI to a server" in str(caught.value)


# --- trackio ----------------------------------------------------------------------------


class TrackioStandIn(ModuleType):
    """`trackio` as far as the adapter uses it; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, Mapping[str, Any]]] = []
        self.finished = 0

    def init(self, **given: Any) -> None:
        self.inits.append(given)

    def log(self, numbers: Mapping[str, Any], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


def test_trackio_gets_the_runs_name_and_figures_over_steps(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = TrackioStandIn()
    monkeypatch.setitem(sys.modules, "trackio", module)
    records = Records(run, trackers=trackers.start_trackers(config_of(trackio="sums"), run))
    records.write("step", STEP)
    records.write_live(NOW)
    records.close()
    [init] = module.inits
    assert (init["project"], init["name"], init["resume"]) == ("sums", "r", "allow")
    [(step, numbers)] = module.logged
    assert (step, numbers["step/reward"], numbers["step/learner/loss"]) == (3, 0.5, -0.1)
    assert module.finished == 1


@pytest.mark.parametrize("package", ["mlflow", "trackio"])
def test_a_tracker_without_its_package_is_told_of_before_anything_starts(
    run: RunFolder, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [complaint] = trackers.tracker_problems(config_of(**{package: "sums"}).metrics)
    assert complaint.startswith(f"metrics.{package}: found 'sums'")
    assert f"pip install 'darts-rl[{package}]'" in complaint
    with pytest.raises(trackers.TrackerError, match="pip install"):
        trackers.start_trackers(config_of(**{package: "sums"}), run)
