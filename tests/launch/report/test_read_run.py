"""What is read of a run's folder, and what the runs are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launch.report.bands import band
from launch.report.read_run import read_run
from launch.report.run_names import run_lines
from launch.report.sections.curves import score_of
from launch.report.sections.length_distribution import medians
from launch.report.sections.waste import tokens_by_fate
from launch.run_files.records import StepLine
from pipeline.system.run_folder import RunError
from tests.launch.report.folders import Made


def silent(line: str) -> None:
    raise AssertionError(line)


def test_a_whole_run_is_read_without_a_warning(tmp_path: Path) -> None:
    run = read_run(Made(path=tmp_path / "a", steps=6, groups=3, members=9).write(), silent)
    assert [step.step for step in run.steps] == list(range(6))
    assert [found.step for found in run.curve] == [0, 2, 4, 6]
    assert run.curve[1].train_s == run.steps[0].seconds + run.steps[1].seconds
    assert run.members.candidates_G.tolist() == [9] * 18
    assert len(run.timing) == 6 and run.timing[0].critical_path[1].what == "decoding"


def test_lines_that_do_not_parse_are_named_with_file_and_line_and_skipped(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=3).write()
    metrics = path / "metrics.jsonl"
    whole = metrics.read_bytes().splitlines(keepends=True)
    bad = [b'{"what": "step", "step": 0}\n', b"\xff\xfe\n", b'{"what": "news", "of": 1}\n']
    metrics.write_bytes(b"".join([*bad, *whole, b'{"what":"step","st']))
    said: list[str] = []
    run = read_run(path, said.append)
    assert len(run.steps) == 3
    places = [line.split(": ")[0] for line in said]
    assert places == [f"{metrics}:1", f"{metrics}:2"], "the last one is still being written"


@pytest.mark.parametrize("lacking", ["config.yaml", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_refused_with_what_is_missing(
    tmp_path: Path, lacking: str
) -> None:
    path = Made(path=tmp_path / "a", steps=1).write()
    (path / lacking).unlink()
    with pytest.raises(RunError, match=f"not the folder of a run: {lacking} is missing"):
        read_run(path, silent)


def test_a_run_that_has_hardly_begun_is_read(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=1, traced=0, finished=False).write()
    for name in ("decisions.jsonl", "about.json"):
        (path / name).unlink()
    (path / "metrics.jsonl").write_text("")
    run = read_run(path, silent)
    assert (run.steps, run.curve, run.result, run.trace) == ([], [], {}, {})


def test_finished_runs_that_differ_in_the_seed_alone_are_one_line(tmp_path: Path) -> None:
    runs = [
        read_run(made.write(), silent)
        for made in (
            Made(path=tmp_path / "plain-s0", steps=1),
            Made(path=tmp_path / "plain-s1", steps=1, seed=1),
            Made(path=tmp_path / "plain-s2", steps=1, seed=2, finished=False),
            Made(path=tmp_path / "short", steps=1, settings=("selector=shortest",)),
        )
    ]
    assert [line.label for line in run_lines(runs)] == [
        "plain, seeds 0, 1 · selector=dual_end",
        "plain-s2 (unfinished) · selector=dual_end",
        "short · selector=shortest",
    ]


def test_a_band_reaches_from_the_last_begin_to_the_first_end() -> None:
    found = band([[(0, 0.0), (10, 1.0)], [(0, 0.0), (20, 1.0)]])
    assert found.x == [0.0, 10.0]
    assert (found.low[-1], found.middle[-1], found.high[-1]) == (0.5, 0.75, 1.0)
    assert band([[(2, 5.0)]]).middle == [5.0]


def test_medians_are_those_of_each_group(tmp_path: Path) -> None:
    members = read_run(Made(path=tmp_path / "a", steps=2, groups=4).write(), silent).members
    expected = [
        np.median(members.tokens_N[members.group_N == group])
        for group in range(len(members.step_G))
    ]
    assert medians(members).tolist() == expected


def test_tokens_of_a_step_are_what_the_accounts_grew_by() -> None:
    def step(number: int, **ledger: int) -> StepLine:
        return StepLine(step=number, seconds=1, tokens_sampled=9, tokens_trained=5,
                        generation_s=1, ledger=ledger)  # fmt: skip

    first, second = step(0, trained=5, eval=7), step(1, trained=8, aborted=2, eval=9)
    assert tokens_by_fate(None, first)["trained"] == 5
    found = tokens_by_fate(first, second)
    assert (found["trained"], found["aborted"], found["redundant"]) == (3, 2, 0)


def test_an_evaluation_of_other_rewards_than_0_and_1_has_no_accuracy(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=1).write()
    metrics = path / "metrics.jsonl"
    whole = metrics.read_text().replace('"accuracy":', '"accuracy":0.0,"was":')
    metrics.write_text(whole)
    run = read_run(path, silent)
    assert score_of([run]) == "reward"
    assert [e.mean_reward > 0 for e in run.curve] == [True, True]


def test_samples_that_cannot_be_read_are_named_and_left_out(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=1).write()
    (path / "samples" / "step-000000.jsonl").write_text("no JSON\n")
    said: list[str] = []
    assert read_run(path, said.append).samples == {}
    assert "step-000000.jsonl: not the samples of an evaluation" in said[0]
