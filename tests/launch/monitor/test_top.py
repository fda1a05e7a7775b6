"""`darts top`: one frame, by what lies in the run's folder."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from launch.cli import app
from launch.monitor.panel import History, render_panel, sparkline
from launch.monitor.top import OLD_S
from pipeline.observability.live_status import EngineStatus, PeerStatus, RunStatus, WaitStatus
from pipeline.system.run_folder import RunFolder
from tests.paths import MODEL

WHOM = "trajectory 90, queued for a slot"
NOW = RunStatus(
    phase="training",
    step=3,
    steps=60,
    running=70,
    sampled=12_345,
    queued=9,
    ledger={"trained": 750, "aborted": 250},
    engines=(
        EngineStatus(name="e0", running=64, slots=64, version=3),
        EngineStatus(name="e1", running=6, slots=64, version=2, loading=3),
    ),
    groups={"open": 2, "enough": 0, "taken": 5},
    at_rank={"0": 4},
    rewards_queued=2,
    rewards_running=1,
    waits=(
        WaitStatus(seconds=4.25, what="step 4 waits for train group 8, which waits for " + WHOM),
    ),
    peers=(
        PeerStatus(name="e0", role="engine", activity="sampling", heard_s=0.1, still_s=0.1),
        PeerStatus(name="l0", role="learner", activity="backward", heard_s=7.0, still_s=9.0),
    ),
)
STEPS: list[dict[str, Any]] = [
    {
        "what": "step",
        "step": number,
        "seconds": 2.0,
        "reward": number / 4,
        "tokens_mean": 30.0,
        "tokens_p95": 60,
        "ledger": {"sampled": 100, "trained": 60, "aborted": 40},
    }
    for number in range(3)
]


def text_of(now: RunStatus, history: History | None = None, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_panel("r", now, history or History(), width=width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_frame_says_who_does_what_and_who_waits_for_whom() -> None:
    text = text_of(NOW)
    assert "r · training · step 4 of 60" in text
    for part in (
        "64/64   version 3, sampling",
        "6/64    loading version 3",
        "backward, silent for 7 s; 4 groups to train on",
        "9 queued for a slot; rewards: 1 running, 2 queued; groups: 2 open, 5 taken",
        "12.3k tokens  trained 75%  aborted 25%",
        "waiting 4.2 s for group 8 (trajectory 90, queued for a slot)",
    ):
        assert part in text
    bars = [line.count("█") for line in text.splitlines() if "64 " in line]
    assert bars[0] > 5 * bars[1] > 0


def test_curves_and_the_time_left_come_from_the_steps() -> None:
    history = History()
    for line in STEPS:
        history.add_line("step", line)
    text = text_of(NOW, history)
    assert "0.500" in text and "▁▄█" in text
    assert "step 4 of 60 · about 1:54 left" in text
    assert "metrics of step 3 " in text, "counted from 1, as the step under way"
    history.add_line("eval", {"step": 2, "accuracy": 0.5})
    assert "metrics of step 3, accuracy of the evaluation at step 2" in text_of(NOW, history)
    assert text_of(NOW).count("▁") == 0, "nothing is drawn of what is not known"


def test_the_time_left_counts_evaluations_and_the_last_checkpoint() -> None:
    history = History()
    for number in range(30):  # every tenth step has a checkpoint beside it
        seconds = 7.0 if number % 10 == 9 else 2.0
        history.add_line("step", {**STEPS[0], "step": number, "seconds": seconds})
    now = msgspec.structs.replace(NOW, steps=60, checkpoint_every=0)
    assert history.left_s(now) == pytest.approx(30 * 2.5)
    history.add_line("eval", {"step": 20, "accuracy": 0.5, "seconds": 20.0})
    found = msgspec.structs.replace(now, evaluations_left=3, checkpoint_every=20, checkpoint_s=5.0)
    assert history.left_s(found) == pytest.approx(30 * 2.5 + 3 * 20 + 5)
    assert History().left_s(now) is None


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_frame_fits_the_terminal(width: int) -> None:
    assert {len(line) for line in text_of(NOW, width=width).splitlines()} == {width}


def test_a_thousand_engines_take_few_lines_and_the_emptiest_are_shown() -> None:
    engines = tuple(EngineStatus(name=f"e{n}", running=n % 64, slots=64) for n in range(1024))
    text = text_of(msgspec.structs.replace(NOW, engines=engines, running=32_000))
    assert len(text.splitlines()) < 24
    assert "32000/65536" in text
    assert " 0/64" in text and "63/64" not in text


@pytest.mark.parametrize(
    "values,width,line", [([], 5, ""), ([1, 1], 5, "▁▁"), ([0, 7, 3.5], 5, "▁█▄"), ([1], 0, "")]
)
def test_a_sparkline_spans_from_the_lowest_to_the_highest(
    values: list[float], width: int, line: str
) -> None:
    assert sparkline(values, width) == line


# --- the folder -------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "r")
    run.make_folders()
    run.config.write_text("model: m\n")
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in STEPS) + '{"what": "ste')
    return run


def shown(run: RunFolder | Path, **changes: Any) -> str:
    """What `darts top --once` prints; `changes` of the live state, none: there is no file."""
    if isinstance(run, RunFolder) and changes:
        now = msgspec.structs.replace(NOW, **changes)
        run.live.write_bytes(msgspec.json.encode(now))
    path = run.path if isinstance(run, RunFolder) else run
    result = CliRunner().invoke(app, ["top", str(path), "--once"])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_that_goes_on_shows_the_age_of_its_data(run: RunFolder) -> None:
    text = shown(run, time=time.time())
    assert re.search(r"data \d s old", text)
    assert "▁▄█" in text


def test_a_run_that_is_silent_but_has_its_folder_says_no_news(run: RunFolder) -> None:
    run.hold_lock()
    assert "starting: no report yet" in shown(run)
    assert re.search(
        r"SILENT: the last report is \d+ s old", shown(run, time=time.time() - OLD_S - 4)
    )
    run.release_lock()


def test_a_run_that_has_ended_says_so_and_how(run: RunFolder) -> None:
    text = shown(run, time=time.time() - 60)
    assert re.search(r"ENDED without a result; last report 6\d s old", text)
    for line in ("queues", "waiting", "silent", "of training left"):
        assert line not in text, "nobody in it waits any more"
    run.result.write_text("{}")
    assert "ENDED: the run is done" in shown(run, time=time.time() - 1, phase="over")


def test_an_old_run_without_a_live_state_shows_its_steps(run: RunFolder) -> None:
    text = shown(run)
    assert "3 of 3 steps done" in text, "its configuration cannot be read"
    assert "ENDED without a result" in text


def test_a_run_that_has_said_nothing_yet_shows_the_steps_of_its_configuration(
    run: RunFolder,
) -> None:
    run.config.write_text(f"model: {MODEL}\nstep:\n  count: 17\n")
    run.hold_lock()
    assert "3 of 17 steps done" in shown(run)
    run.release_lock()


def test_a_stopped_run_names_its_checkpoint_and_how_to_go_on_if_there_is_one(
    run: RunFolder,
) -> None:
    text = shown(run, time=time.time() - 60, phase="over")
    assert "r · stopped · 3 of 60 steps done" in text
    assert "ENDED: stopped; last report" in text
    assert "continue with" not in text
    (run.checkpoints / ".tmp-step-000004-1").mkdir()
    for step in (2, 3):
        (run.checkpoints / f"step-00000{step}").mkdir()
    text = shown(run, time=time.time() - 60, phase="over")
    assert "ENDED: stopped, checkpoint at step 3; last report" in text
    folded = re.sub(r"[│\s]+", "", text)
    assert f"continuewith:dartstrain--resume{run.path}" in folded


@pytest.mark.parametrize("columns,width", [("", 100), ("70", 70)])
def test_without_a_terminal_columns_are_heeded(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert {len(line) for line in shown(run).splitlines()} == {width}


def test_a_terminal_without_unicode_gets_ascii_bars(run: RunFolder) -> None:
    run.live.write_bytes(msgspec.json.encode(NOW))
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "COLUMNS": "90"}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-m", "launch.cli", "top", str(run.path)]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    assert "+- r | ended | 3 of 60 steps done" in text
    assert "_-#" in text
    assert {len(line) for line in text.splitlines()} == {90}


def test_ascii_is_as_wide_as_what_it_stands_for() -> None:
    bytes_ = io.BytesIO()
    console = Console(file=io.TextIOWrapper(bytes_, "ascii", write_through=True), width=100)
    wait = WaitStatus(seconds=1.0, what="learner rank 0 to publish " + "x" * 100)
    console.print(
        render_panel("r", msgspec.structs.replace(NOW, waits=(wait,)), History(), width=100)
    )
    text = bytes_.getvalue().decode()
    assert f"e0  {32 * '#'} 64/64" in text
    assert f"e1  {3 * '#'}{29 * '.'} 6/64" in text
    assert "x~" in text
    assert {len(line) for line in text.splitlines()} == {100}


def rank(activity: str, groups: int, heard_s: float = 0.1) -> str:
    peer = PeerStatus(name="l0", role="learner", activity=activity, heard_s=heard_s, still_s=0.0)
    text = text_of(msgspec.structs.replace(NOW, peers=(peer,), at_rank={"0": groups}))
    [line] = [line for line in text.splitlines() if line.startswith("│ l0")]
    return line.strip("│ ").removeprefix("l0").strip()


@pytest.mark.parametrize(
    "activity,groups,said",
    [
        ("idle", 10, "10 groups to train on"),
        ("idle", 0, "idle"),
        ("backward", 1, "backward; 1 group to train on"),
        ("welcomed", 0, "has joined, no report of its work yet"),
    ],
)
def test_a_rank_is_not_idle_with_groups_to_train_on(activity: str, groups: int, said: str) -> None:
    assert rank(activity, groups) == said


@pytest.mark.parametrize(
    "what,said",
    [
        ("step 4 waits for eval group 8, which waits for x", "held-out group 8 (x)"),
        ("step 4: the optimizer step", "step 4: the optimizer step"),
        ("an engine to join", "an engine to join"),
    ],
)
def test_a_wait_is_told_short(what: str, said: str) -> None:
    waits = (WaitStatus(seconds=1.0, what=what),)
    assert f"1.0 s for {said} " in text_of(msgspec.structs.replace(NOW, waits=waits))


@pytest.mark.parametrize(
    "name,said", [("nowhere", "no such folder"), ("empty", "not the folder of a run: it has")]
)
def test_what_is_no_run_exits_2_with_a_sentence(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["top", str(tmp_path / name), "--once"])
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_damaged_live_state_is_named(run: RunFolder) -> None:
    run.live.write_text("{")
    result = CliRunner().invoke(app, ["top", str(run.path), "--once"])
    assert result.exit_code == 1
    assert "live.json" in result.stderr
