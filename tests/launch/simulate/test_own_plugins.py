"""`darts simulate` with plug-ins of the user's: faults, a resume, tracebacks, and a folder."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from launch.cli import app

SMALL = ("step.count=2", "step.prompts=4", "engine.count=2", "sampling.max_tokens=512")
PLUGINS = """\
    from darts.plugins import Finalize, Stateless, Wants
    from pipeline.plugins.selectors.first_m import FirstM


    class Raises(FirstM):
        def decide(self, group, event):
            return [1 / 0 for member in group.ended]


    class Silent(Stateless):
        wants = Wants()

        def decide(self, group, event):
            return ()


    class Forgets(FirstM):
        \"\"\"Depends on what it has seen, and says nothing of it.\"\"\"

        def __init__(self, options=None):
            super().__init__(options)
            self.seen = 0

        def decide(self, group, event):
            for action in super().decide(group, event):
                self.seen += 1
                if isinstance(action, Finalize):
                    action = Finalize(ids=action.ids, why=f"the {self.seen}th decision")
                yield action
"""


def darts(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(PLUGINS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_what_a_plugin_raises_is_shown_with_its_file_and_line(module: str):
    result = darts("simulate", *SMALL, f"selector={module}:Raises")
    assert result.exit_code == 1
    assert "Raises raised ZeroDivisionError: division by zero" in result.output
    assert f'{module}.py", line 7, in decide' in result.output
    assert "return [1 / 0 for member in group.ended]" in result.output
    assert "pipeline/coordinator" not in result.output


def test_a_run_that_trains_on_nothing_says_how_its_groups_ended(module: str, tmp_path: Path):
    result = darts("simulate", *SMALL, f"selector={module}:Silent", "--out", "run")
    assert result.exit_code == 1
    assert "nothing was trained on in 2 step(s): " in result.output
    assert "dropped" in result.output
    assert "the selector left it open" in result.output
    explained = darts("explain", "run", "--worst", "1")
    assert explained.exit_code == 0, explained.output
    assert "the selector left it open" in explained.output


def test_a_simulated_run_leaves_behind_what_a_real_one_does(tmp_path: Path, module: str):
    result = darts("simulate", *SMALL, "selector=first_m", "--median", "100", "--out", "run")
    assert result.exit_code == 0, result.output
    assert "run: run (darts explain, darts report)" in result.output
    lines = [json.loads(line) for line in Path("run/decisions.jsonl").read_text().splitlines()]
    assert {"group", "decision", "budget"} <= {line["what"] for line in lines}
    group = next(line["group"] for line in lines if line["what"] == "group")
    explained = darts("explain", "run", str(group))
    assert explained.exit_code == 0, explained.output
    assert explained.output.startswith("simulated: qwen2.5-7b on h20, in virtual time")
    assert "Finalize, choose" in explained.output
    assert json.loads(Path("run/result.json").read_text())["simulated"] is True
    again = darts("simulate", *SMALL, "--out", "run")
    assert again.exit_code == 2
    assert "already holds a run" in again.output


def test_the_report_of_a_simulated_run_says_that_it_is_one(module: str):
    pytest.importorskip("bokeh")
    from launch.report.build import build_page

    assert darts("simulate", *SMALL, "--median", "100", "--out", "run").exit_code == 0
    said: list[str] = []
    page = build_page([Path("run")], said.append)
    assert said == []
    assert "simulated: qwen2.5-7b on h20, in virtual time (run): times, lengths" in page


def test_exploration_of_ones_own_plugin_names_it_and_says_how_to_run_it_again(module: str):
    own = (*SMALL, f"selector={module}:Raises")
    result = darts("simulate", "--explore", "4", *own)
    assert result.exit_code == 1
    assert f'{module}.py", line 7, in decide' in result.output
    assert "selector Raises" in result.output
    again = next(n for n in result.output.splitlines() if n.startswith("again: darts "))
    assert f"selector={module}:Raises --seed" in again


def test_exploration_compares_a_resumed_run_with_the_one_that_never_stopped(module: str):
    result = darts("simulate", "--explore", "2", *SMALL, f"selector={module}:Forgets")
    assert result.exit_code == 1
    assert "stopped after step 1 and resumed, decision of group" in result.output
    assert "why is" in result.output
    assert "selector Forgets" in result.output


def test_exploration_of_a_plugin_that_holds_is_quiet(module: str):
    result = darts("simulate", "--explore", "4", "--out", "found.json", "selector=first_m")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("found.json").read_text())["resume"] == []
    one = darts("simulate", "selector=first_m", "--seed", "3", "--mode", "heal")
    assert one.exit_code == 0
    assert "seed 3, heal: all held" in one.output


def test_what_does_not_load_is_refused_before_anything_is_tried(module: str):
    result = darts("simulate", "--explore", "4", "selector=first_n")
    assert result.exit_code == 2
    assert "first_n" in result.output


def test_a_dry_run_asks_the_plugins_that_decide(module: str, tmp_path: Path):
    from tests.paths import ROOT

    model = f"model={ROOT / 'models' / 'chain-sums'}"
    config = ROOT / "configs" / "quickstart.yaml"
    result = darts("train", str(config), model, f"selector={module}:Raises", "--dry-run")
    assert result.exit_code == 2
    assert f"selector '{module}:Raises': Raises raised ZeroDivisionError" in result.output
