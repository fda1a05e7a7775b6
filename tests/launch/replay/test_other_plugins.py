"""Another selector over a recording: what it chooses, what that rests on, figures by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.replay.collect import Collected
from launch.replay.command import recorded_plugins
from launch.replay.exact_replay import fresh_coordinator, replay
from launch.replay.figures import Figures
from launch.replay.other_plugins import RecordedOrder, other_plugins, simulated
from pipeline.config.load import ConfigError
from pipeline.config.setting_types import Plugin
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.hardware.costs import EngineCost, LearnerCost, Machines
from pipeline.plugins.views import PlanView
from pipeline.recording.frames import Header
from pipeline.recording.reader import Recording
from pipeline.recording.writer import RecordingWriter
from pipeline.simulation.loop import Simulation
from pipeline.simulation.recorded_workload import Basis, Recorded, RecordedMember
from pipeline.simulation.workload import Request, Response
from pipeline.stage.build import make_plugins
from tests.pipeline.coordinator.world import settings_of

LENGTHS = ((10, 20, 40), (5, 30, 60))
"""Prompt -> tokens of its three candidates."""
REWARDS = ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0))
PLUGINS = {
    "prompt_order": Plugin(name="sequential"),
    "budget": Plugin(name="uniform", options={"redundancy": 1.5}),
    "selector": Plugin(name="first_m"),
    "batch": Plugin(name="fifo"),
    "advantage": Plugin(name="grpo", options={"drop_equal": False}),
}
SETTINGS = settings_of(
    steps=1, need=2, size=2, max_tokens=64, prompts=2, held_out=0, eval_every=0, checkpoint_every=0
)


class Fixed:
    """The workload of the recorded run: one engine's 0.01 s a token, whatever runs."""

    def response(self, request: Request) -> Response:
        return Response(
            tokens=LENGTHS[request.prompt][request.member],
            reward=REWARDS[request.prompt][request.member],
            confidence=-0.5,
        )


class Recorder:
    def __init__(self, writer: RecordingWriter) -> None:
        self._writer = writer

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        self._writer.record(now, event, commands)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step with `first_m`: the third candidate of each prompt was aborted."""
    file = tmp_path_factory.mktemp("other") / "stage-0001.darts"
    header = Header(
        darts="0", incarnation=1, config={"engine": {"chunk_tokens": 5}}, settings=SETTINGS,
        plugins=PLUGINS, prompt_tokens=[5, 5], tags=[],
    )  # fmt: skip
    writer = RecordingWriter(file, header, pytest.fail)
    machines = Machines(
        engines=1, slots=8, chunk_tokens=5, engine=EngineCost(points=((1, 0.01), (8, 0.01))),
        learner=LearnerCost(train_s=1e-4, step_s=0.01),
    )  # fmt: skip
    coordinator = Coordinator(SETTINGS, make_plugins(PLUGINS, 0), [5, 5])
    simulation = Simulation(coordinator, machines, Fixed(), [5, 5], observers=[Recorder(writer)])
    simulation.begin()
    simulation.run()
    writer.close()
    return file


def darts(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["replay", *arguments])
    return result.exit_code, result.stdout + result.stderr


def known_of(path: Path) -> tuple[Recording, Collected, Figures, Machines]:
    recording = Recording(path)
    known, figures = Collected(), Figures()
    coordinator = fresh_coordinator(recording, recorded_plugins(recording, imports=False))
    assert replay(recording, coordinator, [known, figures]).difference is None
    return recording, known, figures, known.machines(coordinator.core.latency, 1, 5)


def test_a_recording_knows_every_response_as_far_as_it_was_sampled(path: Path):
    _, known, _, machines = known_of(path)
    assert known.prompts() == [0, 1]
    (_, first), (_, second) = known.groups(64)
    whole = [[(m.tokens, m.whole, m.reward) for m in group[:2]] for group in (first, second)]
    assert whole == [[(10, True, 1.0), (20, True, 0.0)], [(5, True, 0.0), (30, True, 1.0)]]
    cut = [group[2] for group in (first, second)]
    assert [(m.whole, m.scored) for m in cut] == [(False, False)] * 2
    assert 20 <= cut[0].tokens < 40
    assert 30 <= cut[1].tokens < 60
    assert np.frombuffer(cut[0].logprobs, "<f4").tolist() == [-0.5] * cut[0].tokens
    assert [seconds for _, seconds in machines.engine.points] == pytest.approx([0.01] * 4, rel=0.05)
    assert (machines.engines, machines.slots) == (1, 8)
    assert machines.learner.train_s == pytest.approx(1e-4)
    assert machines.learner.step_s == pytest.approx(0.01)


def test_the_figures_of_the_recording_are_those_of_its_step(path: Path):
    _, _, figures, _ = known_of(path)
    rows = figures.rows()
    assert rows["tokens trained on, a step"] == "65"  # 10 + 20 + 5 + 30
    assert rows["mean length trained on"] == "16.2"  # 65 / 4 = 16.25
    # 20 over the median of 10 and 20, 30 over that of 5 and 30: (1.333 + 1.714) / 2
    assert rows["depth"] == "1.52"
    assert rows["mean reward trained on"] == "0.500"
    assert rows["groups with unlike rewards"] == "2 of 2"
    assert rows["members that rest on an estimate"] == "0.0%"
    assert float(rows["generation of a step, s"]) == pytest.approx(0.30, abs=0.01)  # 30 tokens


def test_the_recorded_selector_simulated_chooses_what_it_chose(path: Path):
    recording, known, recorded, machines = known_of(path)
    rows = simulated(recording, known, machines, PLUGINS).rows()
    before = recorded.rows()
    for name in set(rows) - {"generation of a step, s"}:
        assert rows[name] == before[name], name
    assert float(rows["generation of a step, s"]) == pytest.approx(0.30, abs=0.01)


def test_a_selector_that_wants_what_was_cut_short_says_so(path: Path):
    recording, known, _, machines = known_of(path)
    named = other_plugins(PLUGINS, ["selector=all"], SETTINGS.size)
    figures = simulated(recording, known, machines, named)
    assert figures.rests_on == {Basis.WHOLE: 4, Basis.CUT: 2}
    rows = figures.rows()
    # The first prompt's third is longer than 20, and as long as the only longer response that is
    # known: 30, with its reward 1. That of the second is longer than all: it reaches the limit.
    assert rows["tokens trained on, a step"] == "159"  # 10 + 20 + 30 + 5 + 30 + 64
    assert rows["mean length trained on"] == "26.5"
    assert rows["mean reward trained on"] == "0.500"  # 1 + 0 + 1 + 0 + 1 + 0 of six
    assert rows["members that rest on an estimate"] == "33.3%"
    assert float(rows["generation of a step, s"]) == pytest.approx(0.64, abs=0.02)
    status, text = darts(str(path), "selector=all")
    assert status == 0
    assert "| | recorded | simulated: first_m | simulated: all |" in text
    assert "| tokens trained on, a step | 65 | 65 | 159 |" in text
    assert "simulated: all: 2 of 6 members trained on: cut short in the recording" in text


def test_a_larger_budget_draws_what_was_not_recorded_and_counts_it(path: Path):
    recording, known, _, machines = known_of(path)
    named = other_plugins(PLUGINS, ["selector=all", "budget.redundancy=2"], SETTINGS.size)
    figures = simulated(recording, known, machines, named)
    assert figures.rests_on == {Basis.WHOLE: 4, Basis.CUT: 2, Basis.DRAWN: 2}
    assert named["selector"].name == "all"
    assert named["budget"].options["redundancy"] == 2
    assert named["prompt_order"] == PLUGINS["prompt_order"]


def test_two_replays_are_the_same_figures(path: Path):
    recording, known, _, machines = known_of(path)
    named = other_plugins(PLUGINS, ["selector=all"], SETTINGS.size)
    first, second = (simulated(recording, known, machines, named).rows() for _ in range(2))
    assert first == second


def test_a_recorded_response_keeps_its_logprobs_its_reward_and_what_failed():
    sure = np.array([-1.0, -3.0], "<f4").tobytes()
    members = [
        RecordedMember(tokens=2, whole=True, reward=None, logprobs=sure),
        RecordedMember(tokens=8, whole=True, hit_limit=True, reward=0.25),
        RecordedMember(tokens=4, whole=True, scored=False),
        RecordedMember(tokens=1, whole=False, logprobs=sure[:4]),
    ]
    recorded = Recorded([(3, members)], limit=8)

    def response(member: int) -> Response:
        return recorded.response(
            Request(kind="train", prompt=3, group=0, member=member, seed=1, version=0)
        )

    failed, at_limit, unscored, cut = (response(member) for member in range(4))
    assert (failed.tokens, failed.reward, failed.confidence) == (2, None, -2.0)
    assert failed.logprobs == sure
    assert at_limit.tokens > 8, "the limit cuts it again"
    assert (at_limit.reward_at("length"), failed.reward_at("length")) == (0.25, 0.0)
    assert unscored.tokens == 4
    assert cut.tokens in (2, 9)
    assert cut.logprobs[:4] == sure[:4], "as far as it is known"
    assert [recorded.basis[0, member] for member in range(4)] == [
        Basis.WHOLE, Basis.WHOLE, Basis.UNSCORED, Basis.CUT,
    ]  # fmt: skip


def test_prompts_come_in_the_recorded_order_and_deferred_ones_again():
    order = RecordedOrder([4, 2, 4, 7])

    def plan(want: int, outstanding: set[int], deferred: tuple[int, ...] = ()) -> tuple[int, ...]:
        view = PlanView(step=0, want=want, dataset=9, outstanding=outstanding, deferred=deferred)
        return order.plan(view).prompts

    assert plan(2, set()) == (4, 2)
    assert plan(2, {4, 2}) == (7,), "4 is open: its second opening waits"
    assert plan(2, {7}, deferred=(2,)) == (2, 4)
    assert plan(1, set()) == ()


@pytest.mark.parametrize("override", ["group.size=4", "loss=dapo", "prompt_order=shuffled", "x"])
def test_what_a_recording_fixes_is_no_override(override: str, path: Path):
    with pytest.raises(ConfigError, match="another selector, budget, batch, advantage"):
        other_plugins(PLUGINS, [override], SETTINGS.size)
    status, text = darts(str(path), override)
    assert status == 2
    assert "all else is as it was recorded" in text


def test_an_unknown_selector_names_the_nearest(path: Path):
    status, text = darts(str(path), "selector=firstm")
    assert status == 2
    assert "did you mean first_m?" in text
