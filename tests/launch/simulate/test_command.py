"""`darts simulate`: what it prints and writes, and what it refuses; its tables at a small size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from launch.simulate import (
    CONFIG,
    adaptive_budget,
    methods_at_scale,
    published,
    replay,
    scale,
)
from launch.simulate.scenario import Scenario
from pipeline.config.load import dump, load
from pipeline.hardware.costs import EngineProfile
from pipeline.simulation.workload import Lengths
from scripts.bench import simulated_page

SMALL = ("step.count=2", "step.prompts=4", "engine.count=2", "sampling.max_tokens=512")


def darts(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_run_prints_its_steps_and_writes_figures_and_a_trace(tmp_path: Path):
    out, trace = tmp_path / "out.json", tmp_path / "trace.json"
    result = darts(*SMALL, "--median", "100", "--trace", str(trace), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "| 2 | " in result.output and "ui.perfetto.dev" in result.output
    written = json.loads(out.read_text())
    assert len(written["steps"]) == 2
    assert written["metrics"]["step_s"] > written["metrics"]["generation_s"] > 0
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize(
    "arguments,says",
    [
        (
            ("--preset", "papers"),
            "--preset is 'papers', expected one of paper, recipes, ours, map, budgets, scale",
        ),
        (("--mode", "calm"), "--mode is 'calm', expected one of chaos, heal, dead"),
        (("--device", "h1"), "--device is 'h1', expected one of h20, h800, h200"),
        (("--mode", "chaos", "--faults", "x"), "--faults is 'x': invalid literal"),
        (("--mode", "heal", "--faults", "99"), "--faults is '99': the plan of seed 0 has"),
        (("--mode", "heal", "--faults", "-1"), "--faults is '-1': the plan of seed 0 has"),
        (("--seed", "3"), "--seed has no effect on a single run"),
        (("--explore", "3", "--trace", "t.json"), "--trace has no effect with --explore"),
        (("--preset", "paper", "--model", "qwen2.5-3b"), "--model has no effect with --preset"),
        (("--replay", "run"), "only a finished run can be replayed"),
        (("--out", "nowhere/x.json"), "no such folder"),
        (("--median", "0"), "--median"),
        (("nosuch.yaml",), "nosuch.yaml: cannot be read"),
        (("step.prompt=3",), "step.prompt"),
        (("selector=first_n",), "first_n"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments: tuple[str, ...], says: str):
    result = darts(*arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_exploration_counts_seeds_and_a_seed_is_played_again(tmp_path: Path):
    out = tmp_path / "explored.json"
    result = darts("--explore", "30", "--seed", "100", "--out", str(out))
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert (written["seeds"], written["violations"]) == (30, 0)
    again = darts("--seed", "100", "--mode", "heal", "--faults", "0")
    assert again.exit_code == 0 and "seed 100, heal: all held" in again.output


# --- tables --------------------------------------------------------------------------------------

QUICK = Scenario(
    engines=2,
    slots=32,
    lengths=Lengths(median=60, between=0.4, within=0.8),
    limit=400,
    prompts=8,
    steps=3,
    dataset=64,
)


def test_cells_of_the_paper_have_both_columns_and_their_error():
    cells = [
        msgspec.structs.replace(
            cell, scenario=msgspec.structs.replace(QUICK, streamed=cell.scenario.streamed)
        )
        for cell in published.published_cells()
        if cell.name.startswith("ablation") or cell.by_tokens
    ]
    said: list[str] = []
    document = published.reproduce(said.append, cells, constants={"DARTS": 0.5, "APRIL": 60.0})
    assert len(said) == len(document["cells"]) == 5
    for row, cell in zip(document["cells"], cells, strict=True):
        assert row["name"] == cell.name and row["published"] == cell.published
        assert row["simulated"] > 0 and row["simulated_without_shaping"] > 0
        assert row["error"] == pytest.approx(row["simulated"] / row["published"] - 1)
    assert [row["fitted"] for row in document["cells"]].count(True) == 2
    lines = published.published_table(document).splitlines()
    assert len(lines) == 2 + 5 and "(fitted)" in lines[3]


def test_every_published_figure_is_a_cell():
    by_name = {cell.name: cell.published for cell in published.published_cells()}
    assert len(by_name) == 20
    ablation = ("streaming", "plus sampling", "plus allocation")
    assert [by_name[f"ablation 14B: {name}"] for name in ablation] == [1.09, 1.40, 1.63]
    assert [by_name[f"K:L of {kl}, 7B"] for kl in ("7:1", "6:2", "4:4")] == [1.45, 1.43, 1.25]
    assert {n for n in by_name if n.startswith(("RollPacker", "APRIL"))} == {
        "RollPacker, low end", "RollPacker, high end", "APRIL, average", "APRIL, most"
    }  # fmt: skip


def test_the_fit_goes_where_the_cell_is_as_published(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(published, "speed_up", lambda cell, reading, rate, x: 1.1 + x)
    assert published.fit_constant("DARTS", lambda line: None) == pytest.approx(0.3, abs=0.01)
    monkeypatch.setattr(published, "speed_up", lambda cell, reading, rate, x: 1.0)
    assert published.fit_constant("DARTS", lambda line: None) == pytest.approx(0.45, abs=0.01), (
        "the nearest"
    )
    monkeypatch.setattr(published, "speed_up", lambda cell, reading, rate, x: 1.0 + 1000 / x)
    assert published.fit_constant("APRIL", lambda line: None) == pytest.approx(4444, rel=0.05), (
        "falls with x"
    )


def test_an_adaptive_budget_is_held_against_the_uniform_one_that_samples_as_much(
    monkeypatch: pytest.MonkeyPatch,
):
    def point(seconds: float, sampled: float) -> adaptive_budget.Point:
        return adaptive_budget.Point(
            seconds=seconds, sampled=sampled, trained=1, depth=1, candidates=8, pruned=0, expected=1
        )

    few, many = point(10.0, 100.0), point(20.0, 200.0)
    assert adaptive_budget.seconds_at([many, few], 150.0) == 15.0
    assert adaptive_budget.seconds_at([few, many], 900.0) == 20.0, "the nearest"
    monkeypatch.setattr(adaptive_budget, "BUDGETS", {"lambda 2": ("time_weight=2",)})
    scenario = msgspec.structs.replace(QUICK, size=8, steps=12, dataset=24)
    rows = adaptive_budget.compare_budgets(scenario, lambda line: None)
    assert [row.selector for row in rows] == ["published", "barrier"]
    for row in rows:
        assert 8 <= row.adaptive.candidates <= 16 and row.adaptive.expected > 0
        assert row.uniform_s > 0 and row.adaptive.sampled > row.adaptive.trained
    assert len(adaptive_budget.budget_markdown(rows).splitlines()) == 4


def test_methods_are_held_against_synchronous_rollout_with_what_they_train_on():
    rows = methods_at_scale.compare_methods(
        QUICK, ["first_m", "top_up_deferred"], lambda line: None
    )
    sync, first, _ = rows
    assert (sync.method, sync.speed_up, sync.trained) == ("sync", 1.0, 1.0)
    assert first.trained < 1.0 and first.per_token == pytest.approx(first.speed_up * first.trained)
    assert all(0 < row.bound < 1 for row in rows)
    assert len(methods_at_scale.scale_markdown(rows).splitlines()) == 2 + 3


def test_the_heat_map_is_a_table_and_a_page(tmp_path: Path):
    cells = [
        {"method": m, "tail": t, "engines": e, "learner": r, "speed_up": 1.0 + t / e}
        for m in methods_at_scale.MAP
        for t in methods_at_scale.TAILS
        for e in methods_at_scale.ENGINES
        for r in methods_at_scale.LEARNERS
    ]
    text = methods_at_scale.map_markdown(cells)
    assert text.count("| 0.3 | 4 |") == len(methods_at_scale.LEARNERS)
    methods_at_scale.map_page(cells, tmp_path / "map.html")
    page = (tmp_path / "map.html").read_text()
    assert page.count("learner x 0.25") >= len(methods_at_scale.MAP)
    assert "<script src=" not in page and "<link " not in page, "it needs no network"


def test_the_coordinators_cost_is_measured_with_every_slot_in_use():
    cost = scale.measure_cost(engines=2, chunks=3000)
    assert cost.chunks >= 3000 and cost.groups > 2 * scale.SLOTS // 8
    assert 0 < cost.microseconds_per_chunk < 1e4 and 0 < cost.microseconds_per_decision < 1e6
    assert set(scale.cost_document([cost])["coordinator"][0]) >= {
        "engines", "chunks_per_second", "microseconds_per_decision"
    }  # fmt: skip


def test_a_replay_predicts_a_step_from_lengths_and_pace(tmp_path: Path):
    """One engine, a token 10 ms whatever the load; eight responses, the longest of 50 tokens."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = ("selector=all", "budget.redundancy=1", "step.prompts=1", "step.count=2",
                "learner.overlap=off")  # fmt: skip
    (folder / "config.yaml").write_text(dump(load(CONFIG, settings)))
    lengths = [10, 20, 30, 40, 50, 15, 25, 35]
    groups = [
        {"what": "group", "kind": "train", "group": number, "prompt": number, "members":
         [[i, "finished", n, -0.1, float(i % 2), True, [0]] for i, n in enumerate(lengths)]}
        for number in (0, 1)
    ]  # fmt: skip
    (folder / "decisions.jsonl").write_text("".join(json.dumps(g) + "\n" for g in groups))
    learner = {"backward_s": 0.225, "optimizer_s": 0.01, "publish_s": 0.02}
    lines: list[dict[str, Any]] = []
    for number in (0, 1):
        lines.append({"what": "step", "version": number, "time": 10.0 * number, "seconds": 0.8,
                      "generation_s": 0.5, "tokens_trained": 225, "learner": learner})  # fmt: skip
        lines.append({"what": "served", "version": number + 1, "time": 10.0 * number + 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(replay.ReplayError, match="only a finished run"):
        replay.replay_run(folder, PROFILE, 1.0)
    profile = tmp_path / "profile.json"
    profile.write_bytes(msgspec.json.encode(PROFILE))
    refused = darts("--replay", str(folder), "--profile", str(profile))
    assert refused.exit_code == 2 and "only a finished run" in refused.output
    (folder / "result.json").write_text("{}")
    refused = darts("--replay", str(folder))
    assert refused.exit_code == 2
    assert "not a paced run: --replay needs --profile FILE" in refused.output
    found = replay.replay_run(folder, PROFILE, left=0.5)
    # 50 tokens of 20 ms, messages aside; the second step opens with a load of .1 s
    assert found.generation_predicted == pytest.approx(1.0, abs=0.05)
    assert found.predicted == pytest.approx(1.0 + 0.05 + 0.225 + 0.03, abs=0.1)
    assert found.measured == pytest.approx(0.8)
    assert f"{found.error:+.1%}" in replay.replay_table([found])
    assert darts("--replay", str(folder), "--profile", str(profile)).exit_code == 0


PROFILE = EngineProfile(latency=((1, 0.01), (64, 0.01)), request_s=0.0, beside=1.0)


def test_the_page_is_made_of_every_part():
    row = methods_at_scale.compare_methods(QUICK, [], lambda line: None)[0]
    cell = {"name": "a", "published": 1.0, "simulated": 1.1, "error": 0.1, "fitted": True,
            "simulated_without_shaping": 1.0}  # fmt: skip
    cost = scale.Cost(engines=8, method="first_m", groups=9, chunks=10, chunks_per_second=1e5,
                      microseconds_per_chunk=2.0, microseconds_per_decision=30.0,
                      boundary_share=0.1)  # fmt: skip
    point = adaptive_budget.Point(
        seconds=2.0, sampled=9, trained=8, depth=1, candidates=11.5, pruned=0.25, expected=1
    )
    adaptive = adaptive_budget.Row(
        engines=8, selector="published", budget="lambda 2", adaptive=point, uniform_s=3.0
    )
    made = {
        "paper": {"fitted": {"DARTS": ["within", 0.5]}, "cells": [cell]},
        "recipes": [{"recipe": "april", "setup": "", "speed_up": 1.5, "per_token": 1.2,
                     "per_signal": 1.3, "sampled_per_trained": 1.1, "depth": 3.0, "idle": 0.4,
                     "simulated": 1.2}],
        "ours": [msgspec.structs.asdict(row)],
        "knee": [msgspec.structs.asdict(row)],
        "bias": ["| verbose prompts: first_m | 2 |"],
        "budget": [msgspec.to_builtins(adaptive)],
        "map": [{"method": m, "tail": 0.3, "engines": 4, "learner": 1.0, "speed_up": 1.5}
                for m in methods_at_scale.MAP],
        "scale": scale.cost_document([cost]),
        "replay": [{"run": "r", "measured": 1.0, "predicted": 1.1, "generation_measured": 0.5,
                    "generation_predicted": 0.6}],
    }  # fmt: skip
    text = simulated_page.simulated_page(made)
    for part in (
        "a (fitted)",
        "| `april` | 1.50 |",
        "| lambda 2 | 11.5 | 25% |",
        "**1.50**",
        "verbose prompts: first_m",
        "100,000",
        "+10.0%",
    ):
        assert part in text
