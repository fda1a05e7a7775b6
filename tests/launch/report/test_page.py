"""`darts report`: the page that is written, and what the command says."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from launch.report.build import build_page
from launch.report.sections.latency import MEANINGS
from launch.report.sections.rollouts import SHOWN
from pipeline.observability.rollout_files import RolloutFiles, RolloutLine
from pipeline.system.run_folder import RunFolder
from tests.launch.jobs.jobs import ROOT
from tests.launch.report.folders import Made

MEGABYTE = 1e6
SECTIONS = [
    "runs", "curves", "learner", "lengths", "gantt", "seconds", "latency", "waste", "budgets",
    "bias", "rollouts", "samples", "comparison",
]  # fmt: skip


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_folder_that_cannot_be_written_is_told_of_before_the_page_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)  # root may all
    told = report(tmp_path)
    assert told.exit_code == 2
    assert "name another file with --out" in told.output


def missing(page: str) -> dict[str, str]:
    """Section -> why it is empty."""
    found = re.findall(
        r'<section id="(\w+)">(?:(?!</section>).)*?<p class="missing">(.*?)</p>', page, re.DOTALL
    )
    return dict(found)


def test_one_run_becomes_a_page_in_its_own_folder(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=4).write()
    result = report(path)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"{path}/report\.html: \d\.\d MB, in \d+\.\d s\n", result.output)
    page = (path / "report.html").read_text()
    assert re.findall(r'<section id="(\w+)">', page) == SECTIONS
    assert set(missing(page)) == {"comparison"}
    for fetched in ("<script src", '<link rel="stylesheet', "@import"):
        assert fetched not in page


def test_several_runs_become_one_page_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [Made(path=tmp_path / f"a-s{i}", steps=2, seed=i).write() for i in range(2)]
    assert report(*runs).exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert missing(page) == {}
    assert "(1.00x)" in page


def test_what_selection_changes_is_pooled_over_the_audited_steps(tmp_path: Path) -> None:
    page = build_page([Made(path=tmp_path / "a", steps=4).write()], print)
    [row] = re.findall(r'<section id="bias">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == [
        "a", "2", "+0.0625", "-12.5", "0.125",
        "-0.125 (of 80)", "-0.25 (of 12)", "+0.5 (of 20)", "–",
    ]  # fmt: skip


def test_a_section_without_data_names_what_would_bring_it(tmp_path: Path) -> None:
    path = Made(
        path=tmp_path / "a", steps=2, traced=0, timing=False, audited=False, finished=False
    ).write()
    for kept in (*(path / "samples").iterdir(), *(path / "rollouts").iterdir()):
        kept.unlink()
    found = missing(build_page([path], print))
    assert set(found) == {
        *("gantt", "seconds", "latency", "bias", "rollouts", "samples", "comparison")
    }
    assert "rollouts.every=1" in found["rollouts"]
    assert "audit.every=50" in found["bias"]
    assert "eval.every=20" in found["samples"]


@pytest.mark.parametrize(
    "settings, gantt, others",
    [
        ((), "an older version of darts wrote none", "an older version of darts wrote it"),
        (
            ("metrics.trace_steps=0",),
            "set metrics.trace_steps=5",
            "an older version of darts wrote it",
        ),
        (("metrics.timing=false",), "set metrics.timing=true", "set metrics.timing=true"),
    ],
)
def test_an_empty_section_names_the_setting_that_the_run_has(
    tmp_path: Path, settings: tuple[str, ...], gantt: str, others: str
) -> None:
    path = Made(path=tmp_path / "a", steps=2, traced=0, timing=False, settings=settings).write()
    found = missing(build_page([path], print))
    assert gantt in found["gantt"]
    assert others in found["seconds"] and others in found["latency"]


def test_runs_that_lack_data_for_different_reasons_are_named(tmp_path: Path) -> None:
    made = [
        Made(path=tmp_path / name, steps=2, traced=0, timing=False, settings=settings).write()
        for name, settings in (("old", ()), ("untimed", ("metrics.timing=false",)))
    ]
    said = missing(build_page(made, print))["latency"]
    assert "old: metrics.jsonl has no lines" in said
    assert "untimed: The run was not timed: set metrics.timing=true" in said


def test_a_run_that_was_stopped_says_where_and_how_it_goes_on(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=4, finished=False).write()
    whole = path / "checkpoints" / "step-000004"
    whole.mkdir(parents=True)
    resume = "stopped (Ctrl-C?) at step 4; resume with darts train --resume"
    assert resume not in build_page([path], print), "a checkpoint without its manifest is none"
    (whole / "MANIFEST.json").write_text("{}")
    assert resume in build_page([path], print)
    folder = RunFolder(path)
    folder.hold_lock()
    page = build_page([path], print)
    folder.release_lock()
    assert resume not in page
    assert ">running</td>" in page


def test_every_latency_is_explained_on_the_page_as_in_the_manual(tmp_path: Path) -> None:
    manual = (ROOT / "docs" / "latency.md").read_text()
    table = manual.split("| percentile | of |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+_s)`", table)) == set(MEANINGS)
    page = build_page([Made(path=tmp_path / "a", steps=2).write()], print)
    assert MEANINGS["inter_token_s"] in page


def test_a_run_without_a_single_step_has_a_page(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=1, traced=0, finished=False).write()
    (path / "metrics.jsonl").write_text("")
    (path / "decisions.jsonl").write_text("")
    page = build_page([path], print)
    assert "unfinished" in page
    assert {"curves", "lengths", "waste", "budgets"} <= set(missing(page))


def test_what_cannot_be_read_is_said_by_the_command_and_on_the_page(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=2).write()
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"what": "step", "<b>"\n')
    result = report(path)
    assert result.exit_code == 0
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert f"warning: {path}/metrics.jsonl:{len(lines)}: skipped" in result.output
    page = (path / "report.html").read_text()
    assert "1 warning while reading" in page


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_that_is_no_run_exits_2_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = report(folder)
    assert result.exit_code == 2
    assert "not the folder of a run" in result.output
    assert list(tmp_path.iterdir()) == []


def test_texts_of_samples_are_shown_and_not_carried_out(tmp_path: Path) -> None:
    path = Made(path=tmp_path / "a", steps=1).write()
    hostile = "<script>alert({})</script>"
    sample = {"prompt": "1+9=", "response": hostile.format(1), "answer": "", "reward": 1.0}
    (path / "samples" / "step-000000.jsonl").write_text(json.dumps(sample) + "\n")
    line = RolloutLine(step=0, group=0, prompt=0, id=0, fate="trained", why=hostile.format(2),
                       reward=-9.0, pieces=((hostile.format(3), True),))  # fmt: skip
    RolloutFiles(path / "rollouts", 1 << 30).append(0, msgspec.json.encode(line) + b"\n")
    page = build_page([path], print)
    assert "<script>alert(" not in page
    for number in (1, 2, 3):
        assert f"&lt;script&gt;alert({number})" in page


def test_the_report_shows_the_worst_and_the_best_responses_of_the_newest_step(
    tmp_path: Path,
) -> None:
    page = build_page([Made(path=tmp_path / "a", steps=2).write()], print)
    [section] = re.findall(r'<section id="rollouts">(.*?)</section>', page, re.DOTALL)
    assert "lowest rewards at step 2" in section
    assert "highest rewards at step 2" in section
    assert section.count('<tr class="sample">') == 2 * SHOWN
    assert "what became of it" in section


def test_the_learner_s_figures_are_drawn_as_far_as_they_are_known(tmp_path: Path) -> None:
    page = build_page([Made(path=tmp_path / "a", steps=2).write()], print)
    for title in ("Entropy of the policy", "Gradient norm", "Learning rate", "Mismatch of learner"):
        assert title in page
    assert "Divergence from the reference" not in page


def test_without_bokeh_the_command_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    result = report(Made(path=tmp_path / "a", steps=1).write())
    assert result.exit_code == 2
    assert "pip install 'darts-rl[report]'" in result.output


@pytest.mark.long
@pytest.mark.slow
def test_ten_runs_of_200_steps_stay_below_15_megabytes(tmp_path: Path) -> None:
    for number in range(10):
        Made(
            path=tmp_path / f"m{number // 2}-s{number % 2}", steps=200, groups=48, slots=128,
            traced=5, seed=number % 2, settings=(f"learner.lr={1e-4 * (1 + number // 2)}",),
        ).write()  # fmt: skip
    result = report(*sorted(tmp_path.iterdir()), "--out", tmp_path / "page.html")
    print(result.output)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page.html").stat().st_size < 15 * MEGABYTE
