"""`make simulate`: writes the simulator's tables into docs/simulated.md.

Each part's JSON is kept in the folder (`runs/simulate`) and not made again. `replay` compares
simulated steps with those of real runs of the quickstart without evaluation; it trains them first,
and measures the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launch.simulate import (
    adaptive_budget,
    methods_at_scale,
    published,
    recipes_at_scale,
    replay,
    scale,
)
from launch.simulate.scenario import Scenario, run_method
from pipeline.hardware.costs import EngineProfile
from scripts.bench.bias_table import BIAS_HEAD, simulated_bias
from scripts.bench.engine_overhead import SHORT

_RUNS = {
    "all": ("selector=all", "budget.redundancy=1"),
    "first_m": ("selector=first_m",),
    "dual_end, group": ("selector.dual_end.long_wait=group",),
    "dual_end, step": ("selector.dual_end.long_wait=step",),
    "top_up": ("selector=first_m", "budget.redundancy=1", "budget.top_up=fewest"),
}
_KNEES = (0, 64, 128, 256)

Say = Callable[[str], None]


def _replays(folder: Path, say: Say) -> list[dict[str, Any]]:
    """Predicts real runs; trains them and profiles the engine unless that has been done."""

    def have(file: Path, *module: str) -> None:
        if not file.exists():
            say(" ".join(module))
            subprocess.run([sys.executable, "-m", *module], check=True, stdout=subprocess.DEVNULL)

    profile, overhead = folder / "profile.json", folder / "overhead.json"
    have(profile, "launch.bench.engine_profile", "--out", str(profile))
    have(overhead, "scripts.bench.engine_overhead", "--out", str(overhead))
    engine = msgspec.json.decode(profile.read_bytes(), type=EngineProfile)
    found: list[dict[str, Any]] = []
    for name, overrides in _RUNS.items():
        run = folder / name.replace(", ", "-")
        train = ("launch.cli", "train", "configs/quickstart.yaml", *SHORT, *overrides)
        have(run / "result.json", *train, "--out", str(run))
        one = replay.replay_run(run, engine, replay.left_by_pipeline(overhead))
        say(f"{name}: measured {one.measured:.3f} s, predicted {one.predicted:.3f} s")
        found.append(msgspec.structs.asdict(one))
    return found


def _knees(say: Say) -> list[dict[str, Any]]:
    """Measures top-up beyond the knee: an engine has four times as many requests as its knee."""
    scenario = Scenario(engines=8, steps=20)
    base, _ = run_method(scenario, methods_at_scale.SYNC)
    rows: list[dict[str, Any]] = []
    for knee in _KNEES:
        own, _ = run_method(scenario, (*methods_at_scale.METHODS["top_up"], f"engine.knee={knee}"))
        row = methods_at_scale.method_row(f"knee {knee}", scenario, base, own)
        say(f"knee {knee}: {row.speed_up:.2f}x")
        rows.append(msgspec.structs.asdict(row))
    return rows


def parts(folder: Path, say: Say) -> dict[str, Callable[[], Any]]:
    """Returns the parts of the page by name."""
    return {
        "paper": lambda: published.reproduce(say),
        "recipes": lambda: msgspec.to_builtins(recipes_at_scale.recipe_table(say)),
        "ours": lambda: [msgspec.structs.asdict(row) for row in methods_at_scale.scale_table(say)],
        "map": lambda: methods_at_scale.heat_map(say),
        "knee": lambda: _knees(say),
        "budget": lambda: [msgspec.to_builtins(row) for row in adaptive_budget.budget_table(say)],
        "bias": lambda: simulated_bias(say),
        "scale": lambda: scale.cost_document(scale.all_sizes(say)),
        "replay": lambda: _replays(folder, say),
    }


_RECIPES = """
## Recipes beside their papers

`darts simulate --preset recipes`: every recipe of [methods.md](methods.md) that changes times or
tokens, laid over synchronous rollout and against it in the same set-up: 7B on 32 H20, 128 prompts
x 8, a limit of 8192, a learner of four GPUs an engine, no learning, or as the row says. Recipes'
numbers of tokens grow with the limit, from the quickstart's 128. A recipe that does not say
otherwise overlaps learning with generation. `x`: steps a second; `x per token`: tokens trained on
a second; `x per signal`: reward variance trained on a second, what a policy gradient can learn
from; `idle`: slots, while a step generates. `published`: the paper's headline, and what it is
held against: `step`, x; `throughput`, tokens sampled a second; `bubble`, the factor by which idle
slots fall; `rollouts`, rollouts for the same signal; `signal`, x per signal, in the place of the
time to an accuracy. Of a range `off` is from the nearer end. Other headlines count what a
simulation of time does not have.
"""


def simulated_page(made: dict[str, Any]) -> str:
    """Returns docs/simulated.md for these parts."""
    recipes = msgspec.convert(made["recipes"], list[recipes_at_scale.Row])
    rows = [methods_at_scale.Row(**row) for row in made["ours"]]
    knees = [methods_at_scale.Row(**row) for row in made["knee"]]
    budgets = [msgspec.convert(row, adaptive_budget.Row) for row in made["budget"]]
    costs = [scale.Cost(**row) for row in made["scale"]["coordinator"]]
    replays = [replay.Replay(**row) for row in made["replay"]]
    fitted = ", ".join(
        f"{source}: {constant} {value:.3g}"
        for source, (constant, value) in made["paper"]["fitted"].items()
    )
    return "\n".join(
        [
            "# Simulated\n",
            "Written by `make simulate` (`scripts/bench/simulated_page.py`). What is modelled, and",
            "what not: [simulation.md](simulation.md).\n",
            "## Published speed-ups against simulated ones\n",
            "Speed-up over synchronous rollout. One constant is fitted on one cell of each",
            f"publication ({fitted}).",
            "`waiting`: dual-end selection word by word, each group waits for its longest.\n",
            published.published_table(made["paper"]),
            _RECIPES,
            recipes_at_scale.recipe_markdown(recipes),
            "\n## Ours at published scale\n",
            "7B on H20, 128 prompts x 8, a learner of four GPUs an engine. `x per token`: times",
            "the tokens trained on, of those of synchronous rollout. `load`: responses an engine",
            "and step. `bound of step`: what all slots full, or the learner, would take, over the",
            "step.\n",
            methods_at_scale.scale_markdown(rows),
            "\n## Top-up beyond the knee, 128 requests an engine\n",
            "`engine.knee=N`; 0 is the measured one.\n",
            methods_at_scale.scale_markdown(knees),
            "\n## Adaptive budgets beside uniform ones\n",
            "`length_variance` with `mean: 0`: as many candidates as its utility asks for, with",
            "this `time_weight`; means over the steps after the first epoch. `published`: dual-end",
            "selection that waits for every candidate and prunes at M_up; `barrier`: it goes on to",
            "the step's barrier. `x`: seconds of a step with the uniform budget that samples as",
            "many tokens, over the adaptive one's.\n",
            adaptive_budget.budget_markdown(budgets),
            "\n## Which method wins where\n",
            "Speed-up over synchronous rollout; `tail`: deviation of log length within a prompt;",
            "the best on-policy method in bold. 7B on H20, 128 prompts x 8.\n",
            methods_at_scale.map_markdown(made["map"]),
            "## What selection changes\n",
            "The bias account of two audited steps, 7B on 8 H20, 128 prompts x 12, M = 8, without",
            "learning. On verbose prompts a longer response is right less often, on deep ones more",
            "often. `reward`, `tokens`: mean over the chosen minus mean over all. Advantages:",
            "those that members train with, minus those that they would have among all.\n",
            BIAS_HEAD,
            *made["bias"],
            "\n## What the coordinator costs\n",
            "Inside `Coordinator.handle`, one core; 256 slots an engine, all in use, chunks of 32",
            "tokens, responses of 1,800 on average. `decision`: an ended response, with its",
            "reward, the selector and the next request.\n",
            scale.cost_table(costs),
            "\n## Real runs, replayed\n",
            "The quickstart without evaluation, 2 cores; seconds of a step, mean over 60.",
            "Predicted from lengths, the engine's profile and overhead, the learner's pace and the",
            "loads.\n",
            replay.replay_table(replays),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/simulate"), help="folder of the parts"
    )
    parser.add_argument("--only", help="make only this part, and no page")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/simulated.md"), help="page to write"
    )
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {}
    for name, make in parts(options.folder, lambda line: print(f"  {line}", flush=True)).items():
        file = options.folder / f"{name}.json"
        if options.only not in (None, name):
            continue
        if not file.exists():
            begun = time.monotonic()
            print(f"{name} ({os.cpu_count()} cores)", flush=True)
            result = make()
            file.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
        made[name] = json.loads(file.read_text())
    if options.only is None:
        methods_at_scale.map_page(made["map"], options.folder / "map.html")
        options.page.write_text(simulated_page(made))
        print(options.page)


if __name__ == "__main__":
    main()
