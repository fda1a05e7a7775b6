"""The checks of a disturbed run see what they are for: each kind of damage to a good folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import store
from pipeline.system.durable_files import SYSTEM, write_durably
from pipeline.system.run_folder import RunFolder
from scripts.faults.records import final_problems, open_problems
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

PROMPTS = 4
STEPS = 2


def step_line(step: int) -> dict[str, Any]:
    ledger = {"sampled": 10 * (step + 1), "trained": 8 * (step + 1), "aborted": 2 * (step + 1)}
    return {"what": "step", "step": step, "ledger": ledger}


def group_line(prompt: int, fate: str = "trained") -> dict[str, Any]:
    return {"what": "group", "step": prompt // 2, "prompt": prompt, "fate": fate, "why": "by hand"}


@pytest.fixture(scope="module")
def state() -> store.Snapshot:
    world = World(3, settings_of(), plugins_of("first_m"))
    world.start()
    world.run()
    return next(cut for cut in world.cuts if cut.step == STEPS)


@pytest.fixture
def run(tmp_path: Path, state: store.Snapshot) -> RunFolder:
    """A run that is done: two prompts in each of two steps."""
    folder = RunFolder(tmp_path / "run")
    folder.make_folders()
    draft = store.begin_draft(folder.checkpoints, state.step)
    write_durably(SYSTEM, draft / "optimizer-rank0.pt", b"momentum")
    store.commit(draft, state, {})
    write_lines(folder.metrics, [step_line(step) for step in range(STEPS)])
    write_lines(folder.decisions, [group_line(prompt) for prompt in range(PROMPTS)])
    tokens = {"trained": 16, "aborted": 4}
    result = {"steps": STEPS, "tokens": tokens, "tokens_reported_by_engines": 20}
    folder.result.write_text(json.dumps(result))
    for path in (folder.live, folder.trace, folder.about):
        path.write_text("{}")
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def add_line(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(f"{json.dumps(line)}\n")


def test_a_good_run_has_no_problem(run: RunFolder) -> None:
    assert final_problems(run.path, PROMPTS) == []


def trained_twice(run: RunFolder) -> None:
    add_line(run.decisions, group_line(1))


def unknown_prompt(run: RunFolder) -> None:
    add_line(run.decisions, group_line(PROMPTS))


def torn_line(run: RunFolder) -> None:
    run.metrics.write_text(run.metrics.read_text().replace('"what"', '"wha', 1))


def step_twice(run: RunFolder) -> None:
    add_line(run.metrics, step_line(1))


def tokens_in_no_account(run: RunFolder) -> None:
    line = step_line(STEPS)
    line["ledger"]["sampled"] += 1
    add_line(run.metrics, line)


def ledger_warning(run: RunFolder) -> None:
    add_line(run.metrics, {"what": "warning", "text": "the ledger is off by 3 tokens: a bug"})


@pytest.mark.parametrize(
    "damage, said",
    [
        (trained_twice, "trained on more than once: prompts [1]"),
        (unknown_prompt, "not in the data: prompts [4]"),
        (torn_line, "damaged: "),
        (step_twice, "steps on file: [0, 1, 1]"),
        (tokens_in_no_account, "step 2: 31 tokens sampled, 30 in accounts"),
        (ledger_warning, "the ledger is off by 3 tokens"),
    ],
)
def test_damage_is_seen_in_a_run_that_goes_on(
    run: RunFolder, damage: Callable[[RunFolder], None], said: str
) -> None:
    damage(run)
    [problem] = open_problems(run.path, PROMPTS)
    assert said in problem
    assert said in final_problems(run.path, PROMPTS)[0]


def never_trained(run: RunFolder) -> None:
    write_lines(run.decisions, [group_line(p, "trained" if p else "dropped") for p in range(4)])


def other_count_of_the_engines(run: RunFolder) -> None:
    run.result.write_text(run.result.read_text().replace("20", "21"))


def no_result(run: RunFolder) -> None:
    run.result.unlink()


def other_steps(run: RunFolder) -> None:
    run.result.write_text(run.result.read_text().replace('"steps": 2', '"steps": 3'))


def half_a_line(run: RunFolder) -> None:
    with run.decisions.open("a") as file:
        file.write('{"what":')


def damaged_checkpoint(run: RunFolder) -> None:
    (store.committed(run.checkpoints)[0] / "optimizer-rank0.pt").write_bytes(b"momentun")


def draft_of_a_checkpoint(run: RunFolder) -> None:
    store.begin_draft(run.checkpoints, 1)


def weights_in_the_folder(run: RunFolder) -> None:
    (run.path / "darts-0-1-ab-run").mkdir()


def address_left(run: RunFolder) -> None:
    run.address.write_text("/tmp/x")


def lock_held(run: RunFolder) -> None:
    run.hold_lock()


@pytest.mark.parametrize(
    "damage, said",
    [
        (never_trained, "never trained on: prompts [0] (dropped: by hand)"),
        (other_count_of_the_engines, "the accounts have 20 tokens, the engines reported 21"),
        (no_result, "result.json: FileNotFoundError"),
        (other_steps, "result.json says 3 steps, metrics.jsonl has 2"),
        (half_a_line, "decisions.jsonl ends within a line"),
        (damaged_checkpoint, "damaged checkpoint: "),
        (draft_of_a_checkpoint, "left behind: ['.tmp-"),
        (weights_in_the_folder, "left behind: ['darts-0-1-ab-run']"),
        (address_left, "left behind: ['address']"),
        (lock_held, "the run's lock is held"),
    ],
)
def test_damage_is_seen_in_a_run_that_is_done(
    run: RunFolder, damage: Callable[[RunFolder], None], said: str
) -> None:
    damage(run)
    found = final_problems(run.path, PROMPTS)
    run.release_lock()
    assert any(said in problem for problem in found), found
    assert open_problems(run.path, PROMPTS) == []
