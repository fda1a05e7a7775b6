"""The `darts` command. Heavy imports wait until a command needs them, so `--help` is quick."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from launch.bench.compare.cli import compare_command
from launch.commands.completion import answer_the_shell, completion_command
from launch.commands.config import config as config_commands
from launch.commands.data import data_app
from launch.commands.plugins import plugins_command
from launch.commands.profile import profile_command
from launch.commands.reward import reward_app
from launch.explain.command import explain_command
from launch.help_sections import SectionedGroup
from launch.monitor.status import status_command
from launch.monitor.top import top_command
from launch.options import (
    CONFIG_HELP,
    Overrides,
    exit_at_once,
    exit_with_error,
    load_config,
    user_path,
)
from launch.process_setup import prepare_process
from launch.replay.cli import replay_command
from launch.report.cli import report_command
from launch.show.command import show_command
from launch.simulate.cli import simulate_command

app = typer.Typer(
    name="darts",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    cls=SectionedGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench = typer.Typer(help="Compare methods.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")
bench.command("compare")(compare_command)
app.add_typer(config_commands, name="config")
app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")


def print_version(wanted: bool) -> None:
    """Prints the version and ends, if that is asked for."""
    if wanted:
        from pipeline.system.version import darts_version

        typer.echo(f"darts {darts_version()}")
        raise typer.Exit


def _check(config: Any, ask: bool = False) -> list[str]:
    """Checks what a run would read; returns a line about each part, or ends the command."""
    from launch.preflight.everything import PreflightError, check_everything
    from pipeline.system.terminal_text import printable

    try:
        return [printable(line) for line in check_everything(config, ask=ask)]
    except (PreflightError, OSError) as error:  # OSError: of a disk, or of a process's start
        exit_with_error(error, 2)


@app.command("train")
def train_command(
    config: Annotated[Path | None, typer.Argument(help=CONFIG_HELP)] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=user_path, help="folder of the run; default: a new one below runs/"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=user_path, help="folder of a run to continue from its newest checkpoint"
        ),
    ] = None,
    stage_only: Annotated[
        bool,
        typer.Option(
            "--stage-only",
            help="start only the stage; start engines and learner ranks by hand with "
            "darts engine --join and darts learner --join",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check all settings, model and data; start nothing")
    ] = False,
) -> None:
    """Train a model on this machine.

    darts train configs/quickstart.yaml step.prompts=32 seed=1

    darts train --resume runs/quickstart step.count=120
    """
    from launch.monitor.bounded_output import bounded_output

    with bounded_output():  # what shows a run never ends it
        _train(config, overrides, out, resume, stage_only, dry_run)


def _train(
    config: Path | None,
    overrides: list[str] | None,
    out: Path | None,
    resume: Path | None,
    stage_only: bool,
    dry_run: bool,
) -> None:
    from launch.commands.train import start_run

    if resume is not None:
        from launch.commands.resume import resume_run

        # the first setting stands where a configuration would
        settings = [str(config)] if config is not None and "=" in str(config) else []
        if out is not None or (config is not None and not settings) or dry_run or stage_only:
            what = "other settings as key=value (docs/run-folder.md: which may change)"
            own = f": leave out {config}, the run has its own" if config and not settings else ""
            exit_with_error(f"--resume takes the run's folder, and {what}; nothing else{own}", 2)
        raise typer.Exit(resume_run(resume, [*settings, *(overrides or [])]))
    if config is None:
        exit_with_error("a configuration is missing: darts train configs/quickstart.yaml", 2)
    loaded = load_config(config, overrides)
    lines = _check(loaded, ask=dry_run)
    if dry_run:
        from pipeline.config.load import dump
        from pipeline.redaction.passwords import without_passwords

        typer.echo(without_passwords("\n".join([dump(loaded), *lines, "nothing was started"])))
        return
    typer.echo("\n".join(lines))
    path = out or Path("runs") / config.stem
    raise typer.Exit(start_run(loaded, path, fresh=out is None, stage_only=stage_only))


@app.command("eval")
def eval_command(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=user_path, help="folder of the run; default: a new one below runs/"),
    ] = None,
) -> None:
    """Evaluate a model on the held-out prompts.

    It prints accuracy and response lengths.

    darts eval configs/quickstart.yaml model=exported eval.samples=8
    """
    from launch.commands.train import start_run
    from launch.monitor.bounded_output import bounded_output
    from pipeline.data.eval_sets import nothing_held_out

    with bounded_output():
        loaded = load_config(config, [*(overrides or []), "step.count=0"])
        if not loaded.eval.every:  # of training alone
            loaded = load_config(config, [*(overrides or []), "step.count=0", "eval.every=1"])
        if why := nothing_held_out(loaded):
            exit_with_error(why, 2)
        _check(loaded)
        path = out or Path("runs") / f"{config.stem}-eval"
        raise typer.Exit(start_run(loaded, path, out is None))


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="folder of a run, or one of its checkpoints")],
    directory: Annotated[Path, typer.Argument(help="folder to write; must not exist yet")],
    best: Annotated[
        bool, typer.Option("--best", help="the checkpoint of the best step (setting eval.best)")
    ] = False,
) -> None:
    """Write the newest checkpoint as a Hugging Face directory.

    transformers and vLLM load it.

    darts export runs/quickstart exported
    """
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
        exit_with_error(error)


def _part(module: str, arguments: list[str]) -> NoReturn:
    import os

    from pipeline.system.descriptors import raise_limit
    from pipeline.system.private_dirs import UMASK
    from pipeline.system.python_path import SAFE

    os.umask(UMASK)
    raise_limit()
    os.execv(sys.executable, [sys.executable, SAFE, "-m", module, *arguments])  # noqa: S606


def _joined(join: Path) -> list[str]:
    """Returns the arguments that name the sockets and the configuration of a running job."""
    from pipeline.system.private_dirs import is_ours
    from pipeline.system.untrusted_files import UnreadableFile, read_text

    try:
        sockets = read_text(join / "address", 4096).strip()
    except UnreadableFile as error:
        exit_with_error(f"{error}; --join takes the folder of a running job", 2)
    if not Path(sockets).is_dir():
        exit_with_error(f"{join}: this job is not running any more", 2)
    if not is_ours(Path(sockets)):
        exit_with_error(
            f"{sockets}: belongs to another user or is a symbolic link; refused to join", 2
        )
    return ["--stage", sockets, "--config", str(join / "config.yaml")]


@app.command("engine")
def engine_command(
    join: Annotated[
        Path,
        typer.Option(parser=user_path, help="folder of the running job, or a copy of its join.key"),
    ],
    name: Annotated[str, typer.Option(help="name of the engine, unique in the job")],
) -> None:
    """Add a rollout engine to a running job.

    It may run on another machine.

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
        exit_with_error(error, 2)
    _part("launch.torchrun.engine_supervisor", arguments)


@app.command("learner")
def learner_command(
    join: Annotated[Path, typer.Option(parser=user_path, help="folder of the running job")],
    rank: Annotated[
        int, typer.Option(help="number of this rank, from 0; the job needs learner.ranks of them")
    ] = 0,
    port: Annotated[
        int, typer.Option(help="a number, the same for all ranks, that no other run here has")
    ] = 29400,
) -> None:
    """Start a learner rank of a job with --stage-only.

    darts learner --join runs/quickstart --rank 0
    """
    import os

    from launch.launcher.local import RANKS_STORE
    from launch.launcher.processes import learner_arguments, learner_environment
    from pipeline.system.micro_batch_limit import read_limit
    from pipeline.system.run_folder import RunError, RunFolder

    arguments = _joined(join)
    section = load_config(join / "config.yaml", None).learner
    try:
        tokens = read_limit(RunFolder(join), section.tokens_per_micro_batch)
    except RunError as error:
        exit_with_error(error, 2)
    store = str(Path(arguments[1]) / RANKS_STORE)
    os.environ |= learner_environment(rank, section.ranks, port, store=store)
    arguments += learner_arguments(rank, section.ranks, "", tokens)
    _part("learner.learner_rank", arguments)


@app.callback()
def every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Asynchronous streaming RL post-training of language models: rollout engines push token
    streams to a selector stage, which feeds a learner while they still generate."""


app.command("plugins")(plugins_command)
app.command("completion")(completion_command)
app.command("top")(top_command)
app.command("status")(status_command)
app.command("show")(show_command)
app.command("explain")(explain_command)
app.command("simulate")(simulate_command)
app.command("replay")(replay_command)
app.command("profile")(profile_command)
app.command("report")(report_command)


@app.command("doctor")
def doctor_command(
    overrides: Overrides = None,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", help="check all machines of a job with this configuration"),
    ] = None,
    head: Annotated[
        str, typer.Option("--head", help="without torchrun: HOST:PORT of the first machine")
    ] = "",
    nodes: Annotated[int, typer.Option("--nodes", help="number of machines", min=1)] = 1,
    node: Annotated[int, typer.Option("--node", help="number of this machine, from 0", min=0)] = 0,
    secret: Annotated[
        Path | None,
        typer.Option(
            "--secret", parser=user_path, help="file with a secret, the same on every machine"
        ),
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", help="seconds to wait for the other machines", min=1)
    ] = 60.0,
) -> None:
    """Check this machine and its installation.

    It prints how to fix what is wrong.

    With --cluster CONFIG, started on every machine or under torchrun, it also checks which
    machines reach each other and what differs between them. The exit status is 0 if a run would
    start (docs/nodes.md).

    darts doctor

    darts doctor --cluster configs/mine.yaml --head HOST:29500 --nodes 2 --node 0
    """
    if cluster is None:
        from launch.doctor.machine import examine

        raise typer.Exit(examine())
    from launch.doctor.cluster_probe import ProbeError, run_probe
    from launch.torchrun.rendezvous import RendezvousError
    from pipeline.system.untrusted_files import UnreadableFile
    from pipeline.wire.keys import TransportError

    config = load_config(cluster, overrides)
    try:
        raise typer.Exit(run_probe(config, head, nodes, node, secret, wait_s))
    except (ProbeError, RendezvousError, TransportError, UnreadableFile, OSError) as error:
        exit_with_error(error)


def main() -> None:
    prepare_process()
    answer_the_shell()
    try:
        app(prog_name="darts")
    except OSError as error:  # of a disk or a device, which no traceback explains
        exit_at_once(error)
    finally:
        # The status is decided: one more signal, while Python takes itself down, changes nothing.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
