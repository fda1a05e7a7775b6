"""The options of `darts simulate`. Light: what it does is imported when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import CONFIG_HELP, Overrides, exit_with_error, load_config
from launch.simulate import CONFIG

_RUN = "config overrides shape device tensor_parallel learner_gpus median between within rate"
_USED = {  # way of `darts simulate` -> what it takes
    "preset": {"out"},
    "explore": {"mode", "seed", "out"},
    "replay": {"profile", "overhead", "out"},
    "mode": {"seed", "faults"},
    "": {*_RUN.split(), "trace", "out"},
}


def _way(context: typer.Context) -> str:
    """Which of the ways was asked for; anything given that it does not take is refused."""
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
                f"{shown} is of no use {f'with --{way}' if way else 'to a single run'}{hint}", 2
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
            help="tables instead of one run: paper (published speed-ups), ours (at published "
            "scale), map (which method wins where), scale (what the coordinator costs)"
        ),
    ] = "",
    shape: Annotated[
        str, typer.Option("--model", help="qwen2.5-3b, -7b, -14b, -32b, or qwen3-30b-a3b")
    ] = "qwen2.5-7b",
    device: Annotated[str, typer.Option(help="h20, h800 or h200")] = "h20",
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs of an engine")] = 1,
    learner_gpus: Annotated[int, typer.Option(min=1, help="GPUs of the learner")] = 32,
    median: Annotated[float, typer.Option(min=1, help="of response lengths, tokens")] = 1200.0,
    between: Annotated[
        float, typer.Option(min=0, help="deviation of log length between prompts")
    ] = 0.45,
    within: Annotated[float, typer.Option(min=0.01, help="and within a prompt: the tail")] = 0.8,
    rate: Annotated[
        float, typer.Option(min=0, help="of learning; 0: the policy stays as it is (no shaping)")
    ] = 0.0,
    explore: Annotated[
        int, typer.Option(min=0, help="instead: so many small runs with faults, checked")
    ] = 0,
    mode: Annotated[str, typer.Option(help="of runs with faults: chaos, heal or dead")] = "",
    seed: Annotated[
        int, typer.Option(min=0, help="of runs with faults: the first, or the one with --mode")
    ] = 0,
    faults: Annotated[
        str | None, typer.Option(help="with --mode: only these of the seed's plan, as 0,3")
    ] = None,
    replay: Annotated[
        list[Path] | None, typer.Option(help="instead: predict the steps of this finished run")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="with --replay: of launch.bench.engine_profile")
    ] = None,
    overhead: Annotated[
        Path | None, typer.Option(help="with --replay: of launch.bench.developer.engine_overhead")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="write a trace of the run, for ui.perfetto.dev")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Run the coordinator in virtual time, with modelled engines, learner and faults.

    darts simulate engine.count=64 selector=first_m --within 1.0 --trace trace.json

    darts simulate --preset paper --out paper.json

    darts simulate --explore 1000
    """
    from launch.simulate import command
    from launch.simulate.scenario import Scenario
    from pipeline.simulation.fuzz import MODES, Mode
    from pipeline.simulation.hardware import DEVICES, SHAPES
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
            exit_with_error(f"{name} {path}: there is no folder {path.absolute().parent}", 2)
    modes = [Mode(mode)] if mode else []
    match _way(context):
        case "preset":
            status = command.print_preset(preset, out)
        case "explore":
            status = command.explore_seeds(explore, seed, modes, out)
        case "replay":
            if profile is None:
                exit_with_error(
                    "--replay needs --profile FILE, of python -m launch.bench.engine_profile", 2
                )
            try:
                status = command.replay_runs(replay or [], profile, overhead, out)
            except (OSError, ValueError) as error:
                exit_with_error(error, 2)
        case "mode":
            try:
                status = command.replay_seed(seed, modes[0], faults)
            except ValueError as error:
                exit_with_error(f"--faults is {faults!r}: {error}", 2)
        case _:
            if "=" in str(config):  # an override in the place of the file
                config, overrides = CONFIG, [str(config), *(overrides or [])]
            scenario = Scenario(
                shape=shape,
                device=device,
                gpus_of_engine=tensor_parallel,
                learner_gpus=learner_gpus,
                lengths=Lengths(median=median, between=between, within=within),
                rate=rate,
            )
            status = command.simulate_one(load_config(config, overrides), scenario, out, trace)
    raise typer.Exit(status)
