"""The options of `darts bench compare`; its implementation is imported only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import CONFIG_HELP, Overrides, exit_with_error


def compare_command(
    overrides: Overrides = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="three methods, one seed, few steps: about ten minutes")
    ] = False,
    methods: Annotated[
        str,
        typer.Option(
            help="names or sets (ablation, ends, quick) with commas between; sync:5 is five seeds; "
            "mine=FILE.yaml is one of your own",
            show_default="all, with --recipes sync",
        ),
    ] = "",
    recipe: Annotated[
        str,
        typer.Option("--recipes", help="recipes beside the methods, separated by commas, or all"),
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(help="number of seeds for each method; default: 3")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="the same as step.count=N")] = None,
    target: Annotated[
        float | None,
        typer.Option(help="held-out accuracy to reach; default: 0.75, with --quick 0.5"),
    ] = None,
    pace: Annotated[
        str, typer.Option(help="emulated pace of the engines (engine.pace), such as h20-7b")
    ] = "",
    learner_share: Annotated[
        float,
        typer.Option(
            min=0, help="with --pace: learner's seconds a token, over those of a full engine"
        ),
    ] = 0.0,
    config: Annotated[
        Path | None,
        typer.Option(
            help=CONFIG_HELP, show_default="configs/bench.yaml, with --pace configs/long.yaml"
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(help="folder of the runs and results")] = Path(
        "runs/compare"
    ),
    out: Annotated[Path | None, typer.Option(help="file for the results as JSON")] = None,
    show_methods: Annotated[
        bool, typer.Option("--list", help="list the methods and start nothing")
    ] = False,
) -> None:
    """Train with each method and seed in turn, and compare.

    It compares time, tokens and accuracy. This takes hours. Started again, it runs only what
    is missing.

    darts bench compare --methods sync,first_m --seeds 5 data.train=mixed_sums

    darts bench compare --quick --pace h20-7b

    darts bench compare --recipes dars,gfpo --methods sync,mine=mine.yaml
    """
    from launch.bench.compare.command import (
        QUICK_TARGET,
        TARGET,
        Comparison,
        paced_comparison,
        quick_comparison,
    )
    from launch.bench.compare.command import run_comparison as carry_out
    from launch.bench.compare.methods import (
        BASELINE,
        METHODS,
        SETS,
        methods_named,
        own_methods,
        recipe_methods,
    )
    from pipeline.config.load import ConfigError

    if show_methods:
        for method in METHODS.values():
            typer.echo(f"{method.name}: {method.about}")
            typer.echo(f"    {' '.join(method.overrides)}")
        for name, names in SETS.items():
            typer.echo(f"{name}: {', '.join(names)}")
        return
    if quick and (methods or recipe or seeds is not None):
        exit_with_error(
            "--quick sets methods and seeds: leave out --methods, --recipes and --seeds", 2
        )
    if learner_share and not pace:
        exit_with_error("--learner-share has no effect without --pace", 2)
    try:
        methods = methods or (BASELINE if recipe else "all")
        count = 3 if seeds is None else seeds
        chosen, own = methods_named(methods, count), own_methods(methods)
        more, counts = recipe_methods(recipe, count) if recipe else ({}, {})
        if twice := chosen.keys() & counts.keys():
            raise ValueError(f"{min(twice)}: named as a method and as a recipe; leave one out")
    except ValueError as error:
        why = f"expected a number of seeds after a colon ({error})"
        exit_with_error(
            f"--methods {methods}: {why if 'invalid literal' in str(error) else error}", 2
        )
    wanted = Comparison(
        config=config or Path("configs/long.yaml" if pace else "configs/bench.yaml"),
        folder=folder,
        methods={**chosen, **counts},
        own={**own, **more},
        target=target if target is not None else QUICK_TARGET if quick else TARGET,
        overrides=(*(overrides or ()), *((f"step.count={steps}",) if steps else ())),
    )
    if pace:
        try:
            wanted = paced_comparison(wanted, pace, learner_share)
        except ConfigError as error:
            exit_with_error(error, 2)
    raise typer.Exit(carry_out(quick_comparison(wanted, bool(pace)) if quick else wanted, out))
