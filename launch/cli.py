"""The `darts` command. Heavy imports wait until a command needs them: `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from launch.commands.config import config as config_commands
from launch.commands.data import data
from launch.commands.profile import profile
from launch.commands.reward import reward
from launch.explain.command import explain
from launch.monitor.status import status
from launch.monitor.top import top
from launch.options import CONFIG_HELP, Overrides, fail, load_config
from launch.report.cli import report
from launch.simulate.cli import simulate

app = typer.Typer(
    name="darts",
    help="Asynchronous streaming RL post-training of language models: rollout engines push "
    "token streams to a selector stage, which feeds a learner while they still generate.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

bench = typer.Typer(help="Measurements.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")
app.add_typer(config_commands, name="config")
app.add_typer(data, name="data")
app.add_typer(reward, name="reward")


def _check(config: Any) -> list[str]:
    """What a run would read, a line each; ends the command if something does not fit."""
    from launch.preflight.everything import PreflightError, check_everything

    try:
        return check_everything(config)
    except PreflightError as error:
        fail(error, 2)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help=CONFIG_HELP)] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; a new one below runs/ by default")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="go on with this run from its newest checkpoint")
    ] = None,
    stage_only: Annotated[
        bool,
        typer.Option(
            "--stage-only",
            help="start the stage alone; engines and learner ranks are started by hand with "
            "darts engine --join and darts learner --join",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="resolve and check everything, start nothing")
    ] = False,
) -> None:
    """Train a model on this machine: stage, engines and learner ranks.

    darts train configs/quickstart.yaml step.prompts=32 seed=1
    darts train --resume runs/quickstart
    """
    from launch.commands.train import resume_run, start_run

    if resume is not None:
        if out is not None or overrides or config is not None or dry_run or stage_only:
            what = "what may change (docs/run-folder.md) is changed in its config.yaml"
            fail(f"--resume takes the run's folder and nothing else; {what}", 2)
        raise typer.Exit(resume_run(resume))
    if config is None:
        fail("a configuration is missing: darts train configs/quickstart.yaml", 2)
    loaded = load_config(config, overrides)
    lines = _check(loaded)
    if dry_run:
        from pipeline.config.load import dump

        typer.echo(dump(loaded) + "\n" + "\n".join(lines) + "\nnothing was started")
        return
    typer.echo("\n".join(lines))
    path = out or Path("runs") / config.stem
    raise typer.Exit(start_run(loaded, path, fresh=out is None, stage_only=stage_only))


@app.command("eval")
def evaluate(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder for the result")] = None,
) -> None:
    """Sample the held-out prompts and print accuracy and lengths.

    darts eval configs/quickstart.yaml model=exported eval.samples=8
    """
    from launch.commands.train import start_run

    loaded = load_config(config, [*(overrides or []), "step.count=0"])
    if not loaded.eval.every:
        fail("eval.every is 0: nothing would be evaluated", 2)
    _check(loaded)
    raise typer.Exit(start_run(loaded, out or Path("runs") / f"{config.stem}-eval", out is None))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run's folder, or one checkpoint of it")],
    directory: Annotated[Path, typer.Argument(help="where to write; must not exist")],
    best: Annotated[
        bool, typer.Option("--best", help="that of the run's best step, by eval.best")
    ] = False,
) -> None:
    """Write the newest checkpoint as a Hugging Face directory (transformers and vLLM load it)."""
    from launch.commands.best_checkpoint import best_checkpoint
    from launch.commands.train import export_run
    from pipeline.checkpoint.store import CheckpointError
    from pipeline.config.load import ConfigError
    from pipeline.system.run_folder import RunError

    try:
        if best:
            run, why = best_checkpoint(run)
            typer.echo(why)
        typer.echo(export_run(run, directory))
    except (OSError, ValueError, RunError, ConfigError, CheckpointError) as error:
        fail(error)


def _part(module: str, arguments: list[str]) -> NoReturn:
    import os

    from pipeline.system.private_dirs import UMASK

    os.umask(UMASK)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606


def _joined(join: Path) -> list[str]:
    """Sockets and configuration of a running job, from its folder."""
    from pipeline.system.private_dirs import is_ours

    address = join / "address"
    if not address.is_file():
        fail(f"{address}: no such file; ADDRESS is the folder of a running job", 2)
    sockets = address.read_text().strip()
    if not Path(sockets).is_dir():
        fail(f"{join}: this job does not run any more", 2)
    if not is_ours(Path(sockets)):
        fail(f"{sockets}: another user's, or a link; it is not joined", 2)
    return ["--stage", sockets, "--config", str(join / "config.yaml")]


@app.command()
def engine(
    join: Annotated[
        Path,
        typer.Option(help="folder of the running job to work for, or its join.key, copied here"),
    ],
    name: Annotated[str, typer.Option(help="a name that no other engine of the job has")],
) -> None:
    """One more rollout engine for a running job, of this machine or of another.

    darts engine --join join.key --name extra
    """
    import os

    from launch.launcher.processes import engine_environment

    key = join if join.is_file() else join / "join.key"
    if not key.is_file():
        arguments = _joined(join)
        os.environ |= engine_environment(Path(arguments[1]))
        _part("engines.worker", [*arguments, "--name", name])
    from launch.torchrun.engine_supervisor import guest_arguments
    from pipeline.wire.keys import TransportError

    try:
        arguments = guest_arguments(key, name)
    except TransportError as error:
        fail(error, 2)
    _part("launch.torchrun.engine_supervisor", arguments)


@app.command()
def learner(
    join: Annotated[Path, typer.Option(help="folder of the running job to work for")],
    rank: Annotated[int, typer.Option(help="this rank; all of learner.ranks are needed")] = 0,
    port: Annotated[int, typer.Option(help="loopback port where the ranks meet")] = 29400,
) -> None:
    """One learner rank for a job that was started with --stage-only."""
    import os

    from launch.launcher.processes import learner_arguments, learner_environment

    arguments = _joined(join)
    ranks = load_config(join / "config.yaml", None).learner.ranks
    os.environ |= learner_environment(rank, ranks, port)
    _part("learner.learner_rank", [*arguments, *learner_arguments(rank, ranks, "")])


@app.command()
def plugins() -> None:
    """What can be plugged in at each seam, with its options."""
    from launch.commands.plugins import plugin_lines

    typer.echo("\n".join(plugin_lines()))


app.command()(top)
app.command()(status)
app.command()(explain)
app.command()(simulate)
app.command()(profile)
app.command()(report)


@app.command()
def doctor(
    overrides: Overrides = None,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", help="look at all machines of a job with this configuration"),
    ] = None,
    head: Annotated[
        str, typer.Option("--head", help="without torchrun: HOST:PORT of the first machine")
    ] = "",
    nodes: Annotated[int, typer.Option("--nodes", help="how many machines", min=1)] = 1,
    node: Annotated[int, typer.Option("--node", help="which one this is, from 0", min=0)] = 0,
    secret: Annotated[
        Path | None, typer.Option("--secret", help="a file, the same on every machine")
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", help="seconds that machines may take to come", min=1)
    ] = 60.0,
) -> None:
    """Look at this machine and installation: what is missing, and the command that mends it.

    With --cluster CONFIG, under torchrun or started on every machine: who reaches whom, and what
    differs; the exit status says whether a run would start (docs/nodes.md).
    """
    if cluster is None:
        from launch.doctor.machine import examine

        raise typer.Exit(examine())
    from launch.doctor.cluster_probe import SurveyError, take_part
    from pipeline.wire.keys import TransportError

    config = load_config(cluster, overrides)
    try:
        raise typer.Exit(take_part(config, head, nodes, node, secret, wait_s))
    except (SurveyError, TransportError, OSError) as error:
        fail(error)


@bench.command()
def compare(
    overrides: Overrides = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="one seed of three methods, a few steps: ten minutes")
    ] = False,
    methods: Annotated[
        str, typer.Option(help="names or sets (ablation, ends, quick), with commas")
    ] = "all",
    seeds: Annotated[
        int | None, typer.Option(help="seeds of each method: 0, 1, ...; 3 by default")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="short for step.count=N")] = None,
    target: Annotated[
        float | None, typer.Option(help="held-out accuracy to be reached; 0.75, with --quick 0.5")
    ] = None,
    config: Annotated[Path, typer.Option(help=CONFIG_HELP)] = Path("configs/bench.yaml"),
    folder: Annotated[Path, typer.Option(help="of the runs and results")] = Path("runs/compare"),
    out: Annotated[Path | None, typer.Option(help="also write the JSON here")] = None,
    show_methods: Annotated[
        bool, typer.Option("--list", help="what can be compared; start nothing")
    ] = False,
) -> None:
    """Train with every method and seed in turn, and compare time, tokens and accuracy.

    Takes hours; started again it goes on with what is missing.

    darts bench compare --methods sync,first_m --seeds 5 data.train=mixed_sums
    """
    from launch.bench.compare.command import QUICK_TARGET, TARGET, Comparison, quick_comparison
    from launch.bench.compare.command import compare as carry_out
    from launch.bench.compare.methods import METHODS, SETS, named

    if show_methods:
        for method in METHODS.values():
            typer.echo(f"{method.name}: {method.about}\n    {' '.join(method.overrides)}")
        for name, names in SETS.items():
            typer.echo(f"{name}: {', '.join(names)}")
        return
    if quick and (methods != "all" or seeds is not None):
        fail("--quick is one seed of three methods: leave out --methods and --seeds", 2)
    wanted = Comparison(
        config=config,
        folder=folder,
        methods=named(methods),
        seeds=3 if seeds is None else seeds,
        target=target if target is not None else QUICK_TARGET if quick else TARGET,
        overrides=(*(overrides or ()), *((f"step.count={steps}",) if steps else ())),
    )
    raise typer.Exit(carry_out(quick_comparison(wanted) if quick else wanted, out))


def main() -> None:
    app()


if __name__ == "__main__":
    main()
