"""kill -9 of everything, then resume: nothing is lost, skipped or done twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.config.load import load
from pipeline.system.run_folder import RunFolder
from pipeline.system.temp_dirs import remove_orphans
from tests.launch.jobs.jobs import Job, lines, trained_prompts
from tests.launch.jobs.kill_often import Killer, differences, table, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SEED = 782
"""Its kills: in the start, while a checkpoint is written, and in training."""


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Killer:
    folder = tmp_path_factory.mktemp("killed")
    return Killer(folder, undisturbed(folder), times=3, seed=SEED)


@pytest.mark.fault("everything is killed, three times, at random", part="checkpoints", by="process")
def test_a_run_killed_three_times_ends_with_the_same_prompts_responses_and_weights(
    killer: Killer,
) -> None:
    """`python -m tests.launch.jobs.kill_often` does it as often as one likes.

    Promise: resumed each time, the run ends with the prompts, responses and weights of one that was
    never killed; with nothing to go on from, it says so with status 5; what they have left in
    memory and in the temporary directory is gone.
    Bound: each run ends within 300 s.
    """
    killer.go()
    print(table(killer))
    assert len(killer.kills) == 3
    assert killer.ends
    assert not any(killer.ends), killer.ends
    remove_orphans()  # as a start does; after the last kill there was none
    assert killer.left
    assert [path for path in killer.left if path.exists()] == []
    # and a difference would be seen
    others = {name: weight + 1e-6 for name, weight in killer.truth.weights.items()}
    truth = replace(killer.truth, weights=others, groups=killer.truth.groups[1:])
    found = differences(killer.folder / "undisturbed", truth)
    assert [text.split(" ")[0] for text in found] == ["prompts", "weights,"]


@pytest.mark.long
def test_at_zero_0_a_run_goes_on_with_another_number_of_learner_ranks(killer: Killer) -> None:
    """Above ZeRO 0 it is refused by name: `test_resume`."""
    run = RunFolder(killer.folder / "undisturbed")
    before = trained_prompts(run.path)
    config = load(run.config)
    assert (config.learner.ranks, config.learner.zero, config.step.count) == (1, 0, 6)
    text = run.config.read_text()
    run.config.write_text(text.replace("ranks: 1", "ranks: 2").replace("count: 6", "count: 7"))
    with Job(["train", "--resume", str(run.path)], killer.folder / "two-ranks.log") as job:
        assert job.wait() == 0, job.text
    assert json.loads(run.result.read_text())["steps"] == 7
    after = trained_prompts(run.path)
    assert after[: len(before)] == before
    assert len({prompt for _, prompt in after}) == len(after) > len(before)
    assert {step["step"] for step in lines(run.metrics, "step")} == set(range(7))
