"""`darts bench compare`: what is run, what is kept, and what the figures say."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch.bench.compare import plots, tables
from launch.bench.compare.cells import Cell, CellError, Metrics
from launch.bench.compare.command import (
    Comparison,
    paced_comparison,
    quick_comparison,
    run_comparison,
)
from launch.bench.compare.methods import (
    BASELINE,
    METHODS,
    QUICK,
    SETS,
    Method,
    methods_named,
    own_methods,
    recipe_methods,
)
from launch.report.bands import band
from launch.run_files.records import EvalLine
from pipeline.config import recipes
from pipeline.config.load import dump, load
from pipeline.config.pace import engine_pace, learner_pace
from pipeline.stage.build import spare_groups
from tests.launch.jobs.jobs import ROOT, SIMULATED, Job

CONFIG = ROOT / "configs" / "bench.yaml"
TINY = [
    "step.count=2",
    "learner.warmup_steps=2",
    "step.prompts=3",
    "group.size=4",
    "sampling.max_tokens=48",
    "data.held_out=4",
    "eval.every=1",
    "checkpoint.every=0",
]


def metrics_of(**changes: Any) -> Metrics:
    base = Metrics(
        step_seconds=4.0,
        seconds_to_target=400.0,
        target_range_s=(300.0, None),
        trained_token_ms=8.0,
        final_accuracy=0.9,
        accuracy_by_kind={"terms=2": 1.0},
        deep_accuracy=0.8,
        mean_tokens=30.0,
        late_share=None,
        late_time=None,
        tail=4.0,
        sampled_per_trained=1.0,
        tokens_trained=1000,
        depth=3.0,
        bubble_engine=0.5,
        bubble_learner=0.5,
    )
    return msgspec.structs.replace(base, **changes)


def curve_of(*points: tuple[int, float, float]) -> list[EvalLine]:
    return [
        EvalLine(step=step, train_s=seconds, accuracy=accuracy, tokens_mean=9, tokens_p95=9)
        for step, seconds, accuracy in points
    ]


def finished_cell(base: Path, lines: list[dict[str, Any]], **changes: Any) -> Cell:
    """A cell with a result and these lines of metrics, as if it had been run."""
    cell = Cell(method=METHODS[BASELINE], seed=0, config=CONFIG, overrides=(), base=base)
    cell = msgspec.structs.replace(cell, **changes)
    cell.run.make_folders()
    cell.run.config.write_text(dump(load(CONFIG, cell.settings)))
    cell.run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cell.run.result.write_text("{}")
    return cell


def step(number: int, seconds: float, **changes: Any) -> dict[str, Any]:
    line = {"what": "step", "step": number, "seconds": seconds, "generation_s": seconds / 2}
    line |= {"tokens_sampled": 30, "tokens_trained": 20, "depth": 2.0}
    return {**line, "bubble_engine": 0.5, "bubble_learner": 0.25, "other": {}, **changes}


def evaluation(number: int, accuracy: float) -> dict[str, Any]:
    tags = {"by_tag": {"terms=2": 1.0, "terms=7": accuracy / 2}}
    found = {"accuracy": accuracy, "tokens_mean": 20.0, "tokens_p95": 60, **tags}
    return {"what": "eval", "step": number, **found}


# --- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_is_a_configuration_of_its_own(method: Method) -> None:
    config = load(CONFIG, method.overrides)
    for kind in ("budget", "selector", "learner.overlap"):
        assert any(o.startswith((f"{kind}=", f"{kind}.", "recipe=")) for o in method.overrides), (
            kind
        )
    others = [load(CONFIG, m.overrides) for m in METHODS.values() if m is not method]
    assert config not in others


def test_sets_stand_for_methods_that_there_are() -> None:
    assert all(name in METHODS for names in SETS.values() for name in names)
    assert tuple(methods_named("ablation,sync", 1)) == SETS["ablation"]
    assert methods_named("all,first_m:5", 3) == dict.fromkeys(METHODS, 3) | {"first_m": 5}
    assert methods_named("sinc", 1) == {"sinc": 1}, "what is unknown is refused with the others"


def test_files_and_recipes_are_methods_of_their_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("# Mine (ours): the first.\nselector: first_m\n")
    text = f"sync,mine={mine}:5"
    assert methods_named(text, 3) == {"sync": 3, "mine": 5}
    own = own_methods(text)
    assert own["mine"].about == "the first."
    assert load(CONFIG, own["mine"].overrides).selector.name == "first_m"
    more, counts = recipe_methods("gfpo:2,all", 3)
    assert counts["gfpo"] == 2
    assert next(iter(counts)) == "gfpo"
    assert set(counts) == set(more) == set(recipes.builtin_names())
    for wrong, says in ((f"sync={mine}", "a method of this name"), ("m=no.yaml", "no such file")):
        with pytest.raises(ValueError, match=says):
            own_methods(wrong)
    with pytest.raises(ValueError, match="darz: no such recipe"):
        recipe_methods("darz", 3)


def test_columns_of_recipes_go_through_the_same_table_and_are_resumed(tmp_path: Path) -> None:
    more, counts = recipe_methods("gfpo", 2)
    wanted = Comparison(
        config=CONFIG, folder=tmp_path, methods={"sync": 1, **counts}, own=more, target=0.5
    )
    cells = wanted.all_cells()
    assert [cell.name for cell in cells] == ["sync-s0", "gfpo-s0", "gfpo-s1"]
    config = load(CONFIG, cells[1].settings)
    assert (config.selector.name, config.recipe) == ("gfpo", str(recipes.recipe_path("gfpo")))
    done = finished_cell(tmp_path, [step(0, 1.0)], method=more["gfpo"])
    assert done.finished


def test_a_method_and_a_recipe_of_one_name_are_not_compared() -> None:
    from typer.testing import CliRunner

    from launch.cli import app

    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["bench", "compare", *arguments])
        assert result.exit_code == 2
        return result.output

    named = ("--methods", "tail_batching", "--recipes", "tail_batching")
    assert "named as a method and as a recipe" in refused(*named)
    assert "no such recipe" in refused("--recipes", "darz")
    assert "expected a number of seeds after a colon" in refused("--methods", "sync:x")
    assert "--quick sets methods" in refused("--quick", "--recipes", "gfpo")


def test_quick_is_one_seed_of_three_methods_and_settings_given_still_win() -> None:
    wanted = Comparison(
        config=CONFIG, folder=Path(), methods=dict.fromkeys(METHODS, 3), target=0.5,
        overrides=("step.count=7",),
    )  # fmt: skip
    cells = quick_comparison(wanted).all_cells()
    assert [(cell.method.name, cell.seed) for cell in cells] == [(name, 0) for name in QUICK]
    assert load(CONFIG, cells[0].settings).step.count == 7


def test_quick_at_a_pace_has_as_few_requests_a_step_as_the_configuration() -> None:
    long = ROOT / "configs" / "long.yaml"
    wanted = Comparison(config=long, folder=Path(), methods={}, target=0.5)
    config = load(long, quick_comparison(wanted, paced=True).all_cells()[0].settings)
    assert config.step.prompts == load(long).step.prompts
    assert config.step.count < load(long).step.count


def test_seeds_are_interleaved() -> None:
    wanted = Comparison(config=CONFIG, folder=Path(), methods={"sync": 2, "first_m": 2}, target=0.5)
    assert [cell.name for cell in wanted.all_cells()] == [
        "sync-s0", "first_m-s0", "sync-s1", "first_m-s1",
    ]  # fmt: skip


def test_a_pace_holds_for_every_method_and_the_learner_takes_its_share_of_it() -> None:
    long = ROOT / "configs" / "long.yaml"
    wanted = Comparison(config=long, folder=Path(), methods={"sync": 1}, target=0.5)
    paced = paced_comparison(wanted, "h20-7b", learner_share=0.3)
    [cell] = paced.all_cells()
    config = load(long, cell.settings)
    engine, learner = engine_pace(config.engine.pace), learner_pace(config.learner.pace)
    assert engine is not None
    assert learner is not None
    requests = config.step.prompts * config.group.size
    assert learner.train_s == pytest.approx(
        0.3 * engine.step_s(requests, 0, 0) / requests, rel=1e-3
    )
    assert learner.backward_s == pytest.approx(2 * learner.forward_s, rel=1e-3)
    given = msgspec.structs.replace(wanted, overrides=("engine.pace=h200-7b",))
    own = paced_comparison(given, "h20-7b", 0.0).all_cells()[0]
    assert load(long, own.settings).engine.pace == "h200-7b", "what is given wins"


def test_tail_batching_is_its_recipe_and_its_reserve_follows_from_the_prompts_of_a_step() -> None:
    own = [*METHODS["tail_batching"].overrides, "step.prompts=48"]
    config = load(CONFIG, own)
    assert (config.recipe, config.selector.name) == ("tail_batching", "first_m")
    assert spare_groups(config.step) == 12


# --- figures of a cell --------------------------------------------------------------------------


def test_figures_are_of_training_alone_and_weighted_by_what_they_are_shares_of(
    tmp_path: Path,
) -> None:
    lines = [
        evaluation(0, 0.2),
        step(0, 2.0, bubble_engine=0.25, depth=1.0),
        step(1, 4.0, bubble_learner=1.0),
        evaluation(2, 0.7),
        step(2, 6.0, tokens_trained=0, depth=None),
        evaluation(3, 0.9),
    ]
    cell = finished_cell(tmp_path, lines)
    assert cell.finished
    found = cell.final_metrics(target=0.7)
    assert found == Metrics(
        step_seconds=4.0,
        trained_token_ms=300.0,
        seconds_to_target=6.0,
        target_range_s=None,
        final_accuracy=0.9,
        accuracy_by_kind={"terms=2": 1.0, "terms=7": 0.45},
        late_share=None,
        late_time=None,
        tail=None,
        deep_accuracy=0.45,
        mean_tokens=20.0,
        sampled_per_trained=90 / 40,
        tokens_trained=40,
        depth=1.5,
        bubble_engine=(0.25 * 1 + 0.5 * 2 + 0.5 * 3) / 6,
        bubble_learner=(0.25 * 2 + 1.0 * 4 + 0.25 * 6) / 12,
    )
    assert cell.final_metrics(target=0.95).seconds_to_target is None
    assert [point.train_s for point in cell.eval_curve()] == [0.0, 6.0, 12.0]


def test_late_steps_of_a_paced_cell_are_counted_and_timed(tmp_path: Path) -> None:
    """Half of the steps, by a twentieth of the time of two engines."""
    lines = [evaluation(0, 0.2), step(0, 4.0), evaluation(1, 0.4)]
    cell = finished_cell(tmp_path, lines, overrides=("engine.count=2",))
    paced = {"name": "h20-7b", "steps": 200, "late": 100, "late_s": 0.4}
    cell.run.result.write_text(json.dumps({"train_seconds": 4.0, "paced": paced}))
    found = cell.final_metrics(target=0.7)
    assert (found.late_share, found.late_time) == (0.5, pytest.approx(0.05))


def test_a_finished_run_of_other_settings_is_neither_used_nor_removed(tmp_path: Path) -> None:
    cell = finished_cell(tmp_path, [])
    other = msgspec.structs.replace(cell, overrides=("learner.lr=0.5",))
    with pytest.raises(CellError, match="with other settings"):
        _ = other.finished
    assert cell.run.result.exists()


# --- tables -------------------------------------------------------------------------------------


def test_ratios_are_paired_by_seed_and_have_an_interval_from_three_seeds_on() -> None:
    sync = [metrics_of(step_seconds=s) for s in (2.0, 4.0, 6.0)]
    own = [metrics_of(step_seconds=s, seconds_to_target=None) for s in (1.0, 2.0, 3.0)]
    found = tables.baseline_ratios(tables.columns({"sync": sync, "first_m": own}))
    assert found["first_m"]["step_seconds"] == [2.0, 2.0, 2.0], "each seed is twice as fast"
    found = tables.baseline_ratios(
        tables.columns({"sync": sync, "first_m": [own[0], None, own[2]]})
    )
    assert found["first_m"]["step_seconds"] == [2.0, None, None]
    assert "seconds_to_target" not in found["first_m"]
    assert tables.baseline_ratios(tables.columns({"first_m": own})) == {}


def test_the_interval_holds_the_ratio_and_is_the_same_every_time() -> None:
    sync = [metrics_of(step_seconds=s) for s in (4.0, 4.2, 3.9, 4.4)]
    own = [metrics_of(step_seconds=s) for s in (2.0, 1.5, 2.5, 2.2)]
    columns = tables.columns({"sync": sync, "first_m": own})
    middle, low, high = tables.baseline_ratios(columns)["first_m"]["step_seconds"]
    assert low is not None
    assert high is not None
    assert 1.5 < low < middle < high < 2.9  # type: ignore[operator]
    assert tables.baseline_ratios(columns)["first_m"]["step_seconds"] == [middle, low, high]


def test_the_table_tells_seeds_that_are_missing_from_targets_that_were_not_reached() -> None:
    cells = {
        "sync": [metrics_of(), metrics_of(seconds_to_target=None), None],
        "first_m": [metrics_of(seconds_to_target=None), None, None],
        "darts_barrier": [None, None, None],
    }
    columns = tables.columns(cells)
    table = tables.comparison_markdown(
        {"methods": columns, "ratios": tables.baseline_ratios(columns)}
    )
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert "| 2 of 3 | 400 in 1 |" in rows["sync"]
    assert "| 1 of 3 | never |" in rows["first_m"]
    assert "4.00 (1.00x)" in rows["first_m"]
    assert "| 0 of 3 | - |" in rows["darts_barrier"]


# --- plots --------------------------------------------------------------------------------------


def test_a_band_over_time_reads_every_seed_at_the_same_second() -> None:
    seeds = [curve_of((0, 0.0, 0.0), (2, 10.0, 1.0)), curve_of((0, 0.0, 0.0), (2, 20.0, 1.0))]
    over_time, over_steps = plots.PLOTS[0], plots.PLOTS[1]
    found = band(plots.plot_points(over_time, seeds))
    assert (found.x[-1], found.low[-1], found.high[-1]) == (10.0, 0.5, 1.0)
    assert math.isclose(found.middle[-1], 0.75)
    assert band(plots.plot_points(over_steps, seeds)).x == [0.0, 2.0]


def test_lines_by_depth_are_of_kinds_that_every_evaluation_names() -> None:
    deep = {"terms=2": 0.9, "terms=7": 0.1}
    [point] = curve_of((0, 0.0, 0.5))
    known = msgspec.structs.replace(point, by_tag=deep, tokens_by_tag={"terms=7": 50.0})
    assert known.deep_accuracy == 0.1
    assert point.deep_accuracy is None
    found = plots.by_depth({"sync": [[known]], "first_m": []})
    assert [(plot.tag, plot.value_of(known)) for plot in found] == [
        ("terms=7", 0.1),
        ("terms=7", 50),
    ]
    assert plots.by_depth({"sync": [[known], [point]]}) == plots.by_depth({}) == []


def test_the_page_of_plots_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    page = tmp_path / "comparison.html"
    plots.draw({"sync": [curve_of((0, 0.0, 0.2), (2, 9.0, 0.8))], "first_m": []}, 0.5, page)
    text = page.read_text()
    assert '"sync"' in text
    assert "<script src" not in text
    assert "<link" not in text


# --- real runs ----------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Comparison(config=CONFIG, folder=tmp_path / "none", methods={"sync": 1}, target=0.5)
    for changes, said in (
        ({"methods": {"sinc": 1}}, "unknown: sinc; methods: sync, "),
        ({"methods": {"sync": 0}}, "sync: 0 seeds"),
        ({"overrides": ("group.size=1",)}, "method sync:"),
        ({"overrides": ("eval.every=0",)}, "eval.every"),
    ):
        assert run_comparison(msgspec.structs.replace(good, **changes)) == 2
        assert said in capsys.readouterr().err
    assert not good.folder.exists()


def test_a_failed_run_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("not json\n")
    wanted = Comparison(
        config=CONFIG,
        folder=tmp_path / "c",
        methods={"sync": 1, "first_m": 1},
        target=0.5,
        overrides=(f"data.train={bad}", f"data.held_out={bad}"),
    )
    out = tmp_path / "not" / "there" / "yet.json"
    assert run_comparison(wanted, out) == 1
    said = capsys.readouterr().err
    assert "bad.jsonl:1: not JSON" in said
    assert "failed: sync-s0, first_m-s0" in said
    written = json.loads(out.read_text())
    assert written["methods"]["first_m"]["depth"] == [None]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupted_comparison_goes_on_without_repeating_what_is_finished(
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "runs", tmp_path / "out.json"
    command = ["bench", "compare", "--methods", "sync,first_m", "--seeds", "2", "--target", "0"]
    command += ["--folder", str(folder), "--out", str(out), *TINY, *SIMULATED]
    first, second = folder / "sync-s0", folder / "first_m-s0"
    for name in ("sync", "first_m"):  # the second seed has been run before
        lines = [evaluation(0, 0.5), step(0, 6.0), evaluation(1, 0.5)]
        own = {"method": METHODS[name], "seed": 1, "overrides": (*TINY, *SIMULATED)}
        finished_cell(folder, lines, **own)
    with Job(command, tmp_path / "interrupted.log") as job:
        job.until(lambda: (second / "logs" / "stage.log").exists())
        job.process.send_signal(signal.SIGINT)
        assert job.wait(30) == 130, job.text
        assert not job.left()
    assert (first / "result.json").exists()
    assert not (second / "result.json").exists()
    before = json.loads(out.read_text())["methods"]
    assert before["first_m"]["step_seconds"] == [None, 6.0]
    (second / "left-over").touch()
    written = (first / "metrics.jsonl").stat().st_mtime_ns
    with Job(command, tmp_path / "resumed.log") as job:
        assert job.wait() == 0, job.text
        assert "3 of 4 runs are done: sync-s0, sync-s1, first_m-s1" in job.text
    assert (first / "metrics.jsonl").stat().st_mtime_ns == written
    assert not (second / "left-over").exists()
    found = json.loads(out.read_text())
    assert set(found["methods"]) == {"sync", "first_m"}
    for metrics in found["methods"].values():
        assert set(metrics) == set(Metrics.__struct_fields__)
        assert metrics.pop("late_share") == [None, None], "not paced"
        assert metrics.pop("late_time") == [None, None], "not paced"
        metrics.pop("tail")  # the line written above has no lengths
        assert all(len(by_seed) == 2 and None not in by_seed for by_seed in metrics.values())
    assert found["methods"]["sync"]["step_seconds"][0] == before["sync"]["step_seconds"][0]
    assert found["methods"]["sync"]["sampled_per_trained"] == [1.0, 1.5]
    assert found["methods"]["first_m"]["sampled_per_trained"][0] > 1
    assert found["methods"]["sync"]["seconds_to_target"] == [0.0, 0.0], "before the first step"
    assert set(found["ratios"]["first_m"]) == {"step_seconds", "trained_token_ms"}
    assert (folder / "comparison.md").read_text().count("2 of 2") == 2
