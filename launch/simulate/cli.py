"""The options of `darts simulate`; its implementation is imported only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import CONFIG_HELP, Overrides, exit_with_error, load_config
from launch.simulate import CONFIG

_RUN = "config overrides shape device tensor_parallel learner_gpus median between within rate"
_USED = {  # mode of `darts simulate` -> the options it takes
    "preset": {"out"},
    "explore": {"config", "overrides", "mode", "seed", "out"},
    "replay": {"profile", "overhead", "out"},
    "mode": {"config", "overrides", "seed", "faults"},
    "": {*_RUN.split(), "trace", "out"},
}


def _way(context: typer.Context) -> str:
    """Returns the mode that was asked for; refuses options that it does not take."""
    given = [
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    way = next((way for way in _USED if way in given), "")
    for name in given:
        if name != way and name not in _USED[way]:
            shown = "--model" if name == "shape" else f"--{name.replace('_', '-')}"
            shown = name if name in ("config", "overrides") else shown
            hint = "; the seed of a run is a setting: seed=1" if (way, name) == ("", "seed") else ""
            exit_with_error(
                f"{shown} has no effect {f'with --{way}' if way else 'on a single run'}{hint}", 2
            )
    return way


def simulate_command(
    context: typer.Context,
    config: Annotated[
        Path, typer.Argument(help=CONFIG_HELP, show_default="configs/simulate.yaml")
    ] = CONFIG,
    overrides: Overrides = None,
    preset: Annotated[
        str,
        typer.Option(
            help="print tables instead of one run: paper (published speed-ups), recipes (each "
            "beside its paper's headline), ours (our methods at published scale), map (best method "
            "by workload), budgets (adaptive beside uniform), scale (cost of the coordinator)"
        ),
    ] = "",
    shape: Annotated[
        str, typer.Option("--model", help="qwen2.5-3b, -7b, -14b, -32b, or qwen3-30b-a3b")
    ] = "qwen2.5-7b",
    device: Annotated[str, typer.Option(help="GPU: h20, h800 or h200")] = "h20",
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs of each engine")] = 1,
    learner_gpus: Annotated[int, typer.Option(min=1, help="GPUs of the learner")] = 32,
    median: Annotated[float, typer.Option(min=1, help="median response length, tokens")] = 1200.0,
    between: Annotated[
        float, typer.Option(min=0, help="deviation of the log length between prompts")
    ] = 0.45,
    within: Annotated[
        float, typer.Option(min=0.01, help="the same within a prompt: the tail")
    ] = 0.8,
    rate: Annotated[
        float, typer.Option(min=0, help="learning rate of the policy; 0: it does not change")
    ] = 0.0,
    explore: Annotated[
        int,
        typer.Option(
            min=0,
            help="check this many small runs with faults instead: of the plug-ins named, or of "
            "those of the house",
        ),
    ] = 0,
    mode: Annotated[str, typer.Option(help="kind of runs with faults: chaos, heal or dead")] = "",
    seed: Annotated[
        int,
        typer.Option(min=0, help="seed of the first run with faults, or of the one with --mode"),
    ] = 0,
    faults: Annotated[
        str | None, typer.Option(help="with --mode: only these faults of the seed's plan, as 0,3")
    ] = None,
    replay: Annotated[
        list[Path] | None, typer.Option(help="predict the steps of this finished run instead")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="with --replay: output of launch.bench.engine_profile; not for paced runs"
        ),
    ] = None,
    overhead: Annotated[
        Path | None,
        typer.Option(help="with --replay: output of scripts.bench.engine_overhead"),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="file for a trace of the run, for ui.perfetto.dev")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder for what a run leaves behind (darts explain, darts report), or "
            "FILE.json for the metrics alone"
        ),
    ] = None,
) -> None:
    """Simulate runs on modelled machines, in virtual time.

    The coordinator is the real one, engines and learner are models.

    darts simulate engine.count=64 selector=first_m --within 1.0 --trace trace.json

    darts simulate --preset paper --out paper.json

    darts simulate --explore 1000 selector=my_selectors:Mine
    """
    from launch.simulate import command
    from launch.simulate.own_plugins import Own
    from launch.simulate.scenario import Scenario
    from pipeline.hardware.costs import DEVICES, SHAPES
    from pipeline.simulation.fuzz import MODES, Mode
    from pipeline.simulation.workload import Lengths

    for name, value, known in (
        ("--preset", preset, ("", *command.PRESETS)),
        ("--mode", mode, ("", *MODES)),
        ("--model", shape, tuple(SHAPES)),
        ("--device", device, tuple(DEVICES)),
    ):
        if value not in known:
            exit_with_error(
                f"{name} is {value!r}, expected one of {', '.join(filter(None, known))}", 2
            )
    for name, path in (("--out", out), ("--trace", trace)):
        if path is not None and not path.absolute().parent.is_dir():
            exit_with_error(f"{name} {path}: no such folder: {path.absolute().parent}", 2)
    modes = [Mode(mode)] if mode else []
    if "=" in str(config):  # an override in the place of the file
        config, overrides = CONFIG, [str(config), *(overrides or [])]
    own = None
    if config != CONFIG or overrides:
        own = Own(config=config, overrides=tuple(overrides or ()))
    match _way(context):
        case "preset":
            status = command.print_preset(preset, out)
        case "explore":
            if own is not None:
                load_config(config, overrides, weights=False)  # complains before anything is tried
            status = command.explore_seeds(explore, seed, modes, out, own)
        case "replay":
            try:
                status = command.replay_runs(replay or [], profile, overhead, out)
            except (OSError, ValueError) as error:
                exit_with_error(error, 2)
        case "mode":
            try:
                if own is not None:
                    load_config(config, overrides, weights=False)
                status = command.replay_seed(seed, modes[0], faults, own)
            except ValueError as error:
                exit_with_error(f"--faults is {faults!r}: {error}", 2)
        case _:
            scenario = Scenario(
                shape=shape,
                device=device,
                gpus_of_engine=tensor_parallel,
                learner_gpus=learner_gpus,
                lengths=Lengths(median=median, between=between, within=within),
                rate=rate,
            )
            status = command.simulate_one(
                load_config(config, overrides, weights=False), scenario, out, trace
            )
    raise typer.Exit(status)
