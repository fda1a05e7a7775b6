"""`darts show`: reads `rollouts/` and `samples/` of a run's folder; changes nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import RUN_HELP, as_json, exit_with_error, run_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from launch.show.choose import Asked, Pair
    from pipeline.observability.recorder import SampleLine
    from pipeline.observability.rollout_files import RolloutLine
    from pipeline.system.run_folder import RunFolder

MOST_PAIRS = 8
"""Pairs that are shown where no number is asked for."""
_AS_A_START = 3  # of the worst, without any option


def show_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    step: Annotated[
        int | None, typer.Argument(help="step, from 1; default: the newest one", min=0)
    ] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, help="so many of the lowest reward, each beside its best")
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(min=1, help="so many of the highest reward, each beside its worst"),
    ] = None,
    search: Annotated[
        str, typer.Option(help="a text in prompt, response or reason; without STEP in all steps")
    ] = "",
    prompt: Annotated[int | None, typer.Option(min=0, help="number of a prompt")] = None,
    group: Annotated[int | None, typer.Option(min=0, help="number of a group")] = None,
    evaluation: Annotated[
        bool,
        typer.Option("--eval", help="held-out prompts: the first evaluation beside a later one"),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="show long texts whole")] = False,
    json_wanted: Annotated[
        bool, typer.Option("--json", help="print JSON; its steps are counted from 0")
    ] = False,
) -> None:
    """Show prompts and responses of a run side by side.

    Each has its reward, its fate and the reason.

    darts show runs/quickstart

    darts show runs/quickstart 12 --worst 5

    darts show runs/quickstart --search "therefore"

    darts show runs/quickstart --eval
    """
    from launch.show.choose import Asked
    from pipeline.system.untrusted_files import UnreadableFile

    folder = run_folder(run)
    asked = Asked(worst=worst or 0, best=best or 0, search=search, prompt=prompt, group=group)
    try:
        if evaluation:
            if asked != Asked(search=search):
                exit_with_error("--eval takes a STEP and --search, no other option", 2)
            _show_evaluations(folder, step, asked, full=full, json_wanted=json_wanted)
        else:
            _show_rollouts(folder, run, step, asked, full=full, json_wanted=json_wanted)
    except (UnreadableFile, OSError) as error:
        exit_with_error(error, 2)


def _show_rollouts(
    run: RunFolder, typed: Path, step: int | None, asked: Asked, *, full: bool, json_wanted: bool
) -> None:
    import msgspec

    from launch.show.choose import pairs, summary
    from launch.show.layout import rollout_block
    from pipeline.system.terminal_text import printable

    steps = _steps(run, step, asked)
    if not asked.everywhere and not (asked.worst or asked.best):
        asked = msgspec.structs.replace(asked, worst=_AS_A_START)
    lines = list(_matching(run, steps, asked))
    found = list(pairs(lines, asked))
    if not found:
        exit_with_error(f"{run.path}: {_nothing(steps, lines)}", 2)
    if json_wanted:
        typer.echo(as_json([line for pair in found for line in pair if line is not None]))
        return
    shown = found if asked.worst or asked.best else found[:MOST_PAIRS]
    width = _width()
    blocks = [block for pair in shown for block in rollout_block(pair, width, full=full)]
    if len(steps) == 1:
        blocks.insert(0, _plain(summary(steps[0], lines)))
    _print([*blocks, *_more(found, shown)])
    # on one line, however wide it is: a command is there to be copied
    why = f"why a group ended as it did: darts explain {shlex.quote(str(typed))}"
    typer.echo(printable(f"{why} {found[0][0].group}"))


def _steps(run: RunFolder, step: int | None, asked: Asked) -> list[int]:
    """Steps, from 0, that are to be read; ends with a message if there is none."""
    from pipeline.observability.rollout_files import files_in

    known = list(files_in(run.rollouts))
    if not known:
        exit_with_error(f"{run.path}: {_why_none(run)}", 2)
    if step is None:
        return known if asked.everywhere else known[-1:]
    if step - 1 not in known:
        there = f"{known[0] + 1} to {known[-1] + 1}" if len(known) > 1 else str(known[0] + 1)
        exit_with_error(f"{run.path}: no responses of step {step} are kept: there are {there}", 2)
    return [step - 1]


def _why_none(run: RunFolder) -> str:
    from launch.run_files.simulated import simulated_text
    from pipeline.config.load import ConfigError, load

    if simulated_text(run):
        return "it was simulated: nothing was written by a model"
    try:
        if not load(run.config).rollouts.every:
            return "rollouts.every is 0: no responses are kept; set it to 1"
    except ConfigError:
        pass  # of another version
    return "no responses are kept yet (rollouts/ is empty); --eval shows evaluations"


def _matching(run: RunFolder, steps: list[int], asked: Asked) -> Iterator[RolloutLine]:
    """Yields the responses of one step, or of several those that match."""
    from pipeline.observability.rollout_files import file_of, read_rollouts

    for step in steps:
        for line in read_rollouts(file_of(run.rollouts, step)):
            if len(steps) == 1 or asked.matches(line):
                yield line


def _nothing(steps: list[int], lines: list[RolloutLine]) -> str:
    if lines and not any(line.reward is not None for line in lines):
        return f"no response of step {steps[0] + 1} has a reward; --search '' shows all"
    where = f"step {steps[0] + 1}" if len(steps) == 1 else f"{len(steps)} steps"
    return f"no response in {where} matches"


def _more(found: list[Pair], shown: list[Pair]) -> Iterator[RenderableType]:
    if left := len(found) - len(shown):
        yield _plain(f"{left} more pairs: narrow it down, or take --worst, --best or --json")


# --- evaluations ------------------------------------------------------------------------


def _show_evaluations(
    run: RunFolder, step: int | None, asked: Asked, *, full: bool, json_wanted: bool
) -> None:
    from launch.run_files.samples import read_samples
    from launch.show.layout import sample_block

    known = read_samples(run.samples)
    if not known:
        exit_with_error(f"{run.path}: no evaluation has kept responses yet (eval.every)", 2)
    last = max(known) if step is None else step
    if last not in known:
        there = ", ".join(map(str, known))
        exit_with_error(f"{run.path}: no evaluation at step {step}: there are {there}", 2)
    steps = sorted({min(known), last})
    prompts = dict.fromkeys(line.prompt for number in steps for line in known[number])
    rows = {p: [(n, _to(known[n], p)) for n in steps] for p in prompts}
    sought = asked.search.casefold()
    rows = {
        p: row
        for p, row in rows.items()
        if sought in p.casefold() or any(s and sought in s.response.casefold() for _, s in row)
    }
    if not rows:
        exit_with_error(f"{run.path}: no response of the evaluations matches", 2)
    if json_wanted:
        typer.echo(as_json({n: [s for r in rows.values() for m, s in r if m == n] for n in steps}))
        return
    width = _width()
    _print([b for p, row in rows.items() for b in sample_block(p, row, width, full=full)])


def _to(lines: list[SampleLine], prompt: str) -> SampleLine | None:
    return next((line for line in lines if line.prompt == prompt), None)


# --- printing ---------------------------------------------------------------------------


def _width() -> int:
    from rich.console import Console

    return Console().width


def _plain(text: str) -> RenderableType:
    from rich.text import Text

    from pipeline.system.terminal_text import printable

    return Text(printable(text), "bright_black")


def _print(blocks: list[Any]) -> None:
    from rich.console import Console

    from launch.monitor.panel import Legible

    console = Console(highlight=False)
    for block in blocks:
        console.print(Legible(block))
