"""The modes of `darts simulate`: one run, a preset's tables, seeds with faults, replays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launch.simulate.fuzz import Found, explore, outcome_text
from launch.simulate.own_plugins import Own, subject_of
from launch.simulate.run_folder import SimulatedFolder
from launch.simulate.scenario import (
    PROMPT_TOKENS,
    PROMPTS,
    Metrics,
    NothingTrained,
    Scenario,
    begin_simulation,
    run_metrics,
    teacher,
    worth,
)
from pipeline.config.pace import engine_pace, learner_pace
from pipeline.config.schema import Config
from pipeline.coordinator.events import AnyCommand, AnyEvent, Report
from pipeline.coordinator.state import PluginFault
from pipeline.hardware.costs import EngineProfile, LearnerCost
from pipeline.observability.chrome_trace import Tracer
from pipeline.simulation.fuzz import MODES, Mode, play, shrink, world
from pipeline.simulation.loop import Observer, Simulation, StandsStill
from pipeline.simulation.policy import Policy
from pipeline.simulation.resume import case_of, differences
from pipeline.simulation.tracebacks import plugin_traceback
from pipeline.simulation.workload import Parametric
from pipeline.system import untrusted_files
from pipeline.system.run_folder import RunError
from pipeline.system.terminal_text import counted


class RunStopped(Exception):
    """A simulated run did not come to its end."""


PRESETS = ("paper", "recipes", "ours", "map", "budgets", "scale")


def _bar(what: str) -> Progress:
    return Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip


def _say(line: str) -> None:
    Console(stderr=True, highlight=False).print(line, style="dim")


def _write(document: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


class _Steps:
    """Moves a progress bar as steps end."""

    def __init__(self, bar: Progress, steps: int) -> None:
        self._bar, self._task = bar, bar.add_task("", total=steps)

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        del now, event
        for command in commands:
            if isinstance(command, Report) and command.what == "step":
                self._bar.advance(self._task)


def play_one(
    config: Config, scenario: Scenario, observers: Sequence[Observer]
) -> tuple[Metrics, Simulation]:
    """Plays one run in virtual time; sizes and paces of the configuration replace those of the
    scenario.

    Raises: RunStopped if the run does not come to its end.
    """
    tokens = learner_pace(config.learner.pace)
    learner = tokens and LearnerCost(train_s=tokens.train_s, forward_s=tokens.logprob_s)
    scenario = msgspec.structs.replace(
        scenario,
        engine=engine_pace(config.engine.pace) or scenario.engine,
        learner=learner or scenario.learner,
        engines=config.engine.count,
        slots=config.engine.slots,
        limit=config.sampling.max_tokens,
        prompts=config.step.prompts,
        size=config.group.size,
        steps=config.step.count,
        seed=config.seed,
        ranks=config.learner.ranks,
    )
    workload = Parametric(scenario.lengths, Policy(scenario.rate), seed=config.seed)
    before = worth(workload, scenario.limit, 0)
    machines = msgspec.structs.replace(scenario.machines(), chunk_tokens=config.engine.chunk_tokens)
    simulation = begin_simulation(
        config, machines, workload, learn=teacher(workload), observers=observers,
        prompt_tokens=(PROMPT_TOKENS,) * PROMPTS,
    )  # fmt: skip
    try:
        simulation.run()
    except (StandsStill, PluginFault) as error:
        where = plugin_traceback(error)
        text = f"the run stopped at {simulation.now:.1f} s: {error}"
        raise RunStopped(f"{text}\n{where}" if where else text) from error
    if simulation.over is not None and simulation.over.error:
        raise RunStopped(f"the run stopped: {simulation.over.error}")
    after = worth(workload, scenario.limit, simulation.version)
    try:
        return run_metrics(simulation, scenario, before, after), simulation
    except NothingTrained as error:
        raise RunStopped(str(error)) from error


_UNSEEN = (
    "the model's weights, data and reward: lengths, times and learning are modelled; "
    "darts train CONFIG --dry-run checks those"
)


def simulate_one(config: Config, scenario: Scenario, out: Path | None, trace: Path | None) -> int:
    """One run; a table of its steps, its figures, and a trace if asked for.

    Args:
        out: FILE.json for the figures, or a folder for all that a run leaves behind.
    """
    spans = Tracer()
    folder = None
    if out is not None and out.suffix != ".json":
        modelled = f"{scenario.shape} on {scenario.device}, in virtual time"
        try:
            folder = SimulatedFolder(out, config, modelled)
        except (RunError, OSError) as error:
            print(error)
            return 2
    with _bar("steps") as bar:
        observers: list[Observer] = [_Steps(bar, config.step.count)]
        observers += [spans] if trace is not None else []
        observers += [folder] if folder is not None else []
        try:
            found, simulation = play_one(config, scenario, observers)
            if folder is not None:
                folder.result(simulation.coordinator, simulation.now)
        except RunStopped as error:
            print(error)
            return 1
        finally:
            if folder is not None:
                folder.close()
    print(steps_table(simulation.of("step")))
    print()
    print(
        "\n".join(
            f"{name:22}{value:12.3f}" for name, value in msgspec.structs.asdict(found).items()
        )
    )
    print(f"\nnot looked at: {_UNSEEN}")
    if trace is not None:
        trace.write_text(json.dumps(spans.trace_document()), encoding="utf-8")
        print(f"\ntrace: {trace} (open it in https://ui.perfetto.dev)")
    if folder is not None:
        print(f"\nrun: {out} (darts explain, darts report)")
    else:
        _write(run_document(found, simulation), out)
    return 0


def run_document(found: Metrics, simulation: Simulation) -> dict[str, Any]:
    """The figures of one run and of its steps, as JSON can hold them."""
    return {"metrics": msgspec.structs.asdict(found), "steps": simulation.of("step")}


_COLUMNS = (
    "seconds", "generation_s", "sampled_per_trained", "depth", "bubble_engine", "bubble_learner"
)  # fmt: skip


def steps_table(steps: Sequence[dict[str, Any]]) -> str:
    titles = (
        "step | seconds | generation | sampled per trained | depth | engine idle | learner idle"
    )
    lines = [f"| {titles} |", "|---" * 7 + "|"]
    for step in steps:
        values = [step.get(name) for name in _COLUMNS]
        shown = ["-" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {step['step'] + 1} | {' | '.join(shown)} |")
    return "\n".join(lines)


def print_preset(name: str, out: Path | None) -> int:
    """Prints the tables of one preset and writes its JSON."""
    from launch.simulate import (
        adaptive_budget,
        methods_at_scale,
        published,
        recipes_at_scale,
        scale,
    )

    if name == "paper":
        document = published.reproduce(_say)
        print(published.published_table(document))
    elif name == "recipes":
        found = recipes_at_scale.recipe_table(_say)
        print(recipes_at_scale.recipe_markdown(found))
        document = {"rows": msgspec.to_builtins(found)}
    elif name == "ours":
        rows = methods_at_scale.scale_table(_say)
        print(methods_at_scale.scale_markdown(rows))
        document = {"rows": [msgspec.structs.asdict(row) for row in rows]}
    elif name == "map":
        cells = methods_at_scale.heat_map(_say)
        print(methods_at_scale.map_markdown(cells))
        document = {"cells": cells}
        if out is not None:
            methods_at_scale.map_page(cells, out.with_suffix(".html"))
    elif name == "budgets":
        budgets = adaptive_budget.budget_table(_say)
        print(adaptive_budget.budget_markdown(budgets))
        document = {"rows": msgspec.to_builtins(budgets)}
    else:
        costs = scale.all_sizes(_say)
        print(scale.cost_table(costs))
        document = scale.cost_document(costs)
    _write(document, out)
    return 0


def explore_seeds(
    count: int, start: int, modes: Sequence[Mode], out: Path | None, own: Own | None = None
) -> int:
    """Runs `count` seeds with faults, of the user's plug-ins also a stop and a resume after each
    step. Returns 1 if something that must hold does not."""
    unlike = [] if own is None else resume_problems(own)
    for line in unlike:
        print(line)
    with _bar("seeds") as bar:
        task = bar.add_task("", total=count)
        found = explore(range(start, start + count), modes or MODES,
                        lambda done: bar.update(task, completed=done), own=own)  # fmt: skip
    for outcome in found.shown:
        print(outcome_text(outcome, own))
    modes_ = ", ".join(f"{name} {number}" for name, number in found.by_mode.items())
    print(
        f"{counted(found.seeds, 'seed')} ({modes_}), {counted(found.events, 'event')}, "
        f"{counted(found.violations, 'violation')}"
    )
    _write({**_found(found), "resume": unlike}, out)
    return 1 if found.violations or unlike else 0


def resume_problems(own: Own) -> list[str]:
    """What these plug-ins decide otherwise when a run is stopped and resumed, a line each."""
    subject = subject_of(own)
    try:
        found = list(differences(case_of(subject.on_policy())))
    except (StandsStill, PluginFault) as error:
        found = [f"{type(error).__name__}: {error}", *plugin_traceback(error).splitlines()]
    return [*found, f"plug-ins: {subject.plugins()}"] if found else []


def _found(found: Found) -> dict[str, Any]:
    names = ("seed", "mode", "faults", "violation")
    shown = [{name: getattr(outcome, name) for name in names} for outcome in found.shown]
    return {**msgspec.structs.asdict(found), "shown": shown}


def replay_seed(seed: int, mode: Mode, faults: str | None, own: Own | None = None) -> int:
    """Runs one seed and prints its log if it fails. Without `faults` it is shrunk first.

    Raises: ValueError if `faults` are not numbers of the seed's plan.
    """
    chosen = None if faults is None else [int(n) for n in faults.split(",") if n.strip()]
    subject = None if own is None else subject_of(own)
    count = len(world(seed, mode, subject).faults)
    if any(not 0 <= number < count for number in chosen or ()):
        raise ValueError(f"the plan of seed {seed} has {count}, from 0 to {count - 1}")
    outcome = play(seed, mode, chosen, subject)
    if outcome.violation and chosen is None:
        outcome = shrink(outcome, subject=subject)
    print(outcome_text(outcome, own))
    return 1 if outcome.violation else 0


def replay_runs(
    runs: Sequence[Path], profile: Path | None, overhead: Path | None, out: Path | None
) -> int:
    """Predicts the steps of real runs. Raises OSError, ValueError (ReplayError).

    Args:
        profile: of their engine; not needed for paced runs.
    """
    from launch.simulate import replay

    engine = untrusted_files.read_json(profile, EngineProfile) if profile else None
    left = replay.left_by_pipeline(overhead) if overhead else 1.0
    found = [replay.replay_run(run, engine, left) for run in runs]
    print(replay.replay_table(found))
    _write({"replays": [{**msgspec.structs.asdict(r), "error": r.error} for r in found]}, out)
    return 0
