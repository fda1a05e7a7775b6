"""`darts data check`: reads prompts as a run would, and counts them. Starts nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Overrides, as_json, exit_with_error, load_config

if TYPE_CHECKING:
    from launch.commands.data_report import DataReport, Lengths, TokenReport
    from pipeline.config.schema import Config
    from pipeline.data.dataset import Dataset
    from pipeline.data.tokenizer import Tokenizer

data_app = typer.Typer(
    help="Check a prompt data set before a run.", no_args_is_help=True, rich_markup_mode=None
)

_BAR = 40  # characters of the longest bar
_WIDE = 100  # columns without a terminal


@data_app.command("check")
def check_command(
    what: Annotated[
        str,
        typer.Argument(
            help="a configuration (.yaml), or data: a file, folder, pattern or name on the hub"
        ),
    ],
    overrides: Overrides = None,
    model: Annotated[
        Path | None,
        typer.Option(help="model whose tokenizer is used; needed without a configuration"),
    ] = None,
    json_wanted: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Count prompts, lengths and faults of a data set.

    It shows the first prompt as the model reads it.

    Exit status 0: a run would start; 1: bad lines would stop it; 2: the data cannot be read.

    darts data check configs/quickstart.yaml

    darts data check 'my_data/*.parquet' --model my_model data.prompt=question
    """
    import msgspec

    from launch.commands import data_report
    from pipeline.data import findings

    config, judged = _config(what, overrides or [], model), _names_reward(what, overrides or [])
    tokenizer, train, held_out = _read(config, judged)
    answers = _answers_line(config, judged, train)
    told = data_report.tokens_of(config, tokenizer, train, held_out)
    reports = {"training": data_report.report_of(train)}
    if len(held_out):
        reports["held_out"] = data_report.report_of(held_out)
    leaked = findings.shared_prompts(train, held_out)
    faults = sum(report.faults for report in reports.values())
    stops = bool(faults) and config.data.bad_lines == "stop"
    if json_wanted:
        found = {**msgspec.to_builtins(reports), "tokens": msgspec.to_builtins(told)}
        found |= {"answers": answers, "in_both": leaked, "would_start": not stops}
        typer.echo(as_json(found))
    else:
        _show(reports, told, answers, leaked, stops)
    raise typer.Exit(int(stops))


def _config(what: str, overrides: list[str], model: Path | None) -> Config:
    """Loads a configuration file, or the defaults with this data."""
    own = [f"model={model}"] if model is not None else []
    if what.endswith((".yaml", ".yml")):
        return load_config(Path(what), [*own, *overrides], weights=False)
    if model is None:
        exit_with_error(f"{what}: name the model whose tokenizer to use: --model DIR", 2)
    import json

    alone = [
        f"data.train={json.dumps(what, ensure_ascii=False)}",
        "data.held_out=0",
        "eval.every=0",
    ]
    return load_config(Path(os.devnull), [*own, *alone, *overrides], weights=False)


def _names_reward(what: str, overrides: list[str]) -> bool:
    """Whether the reward is the user's choice, or only the one that is there by default."""
    keys = (override.partition("=")[0].partition(".")[0].strip() for override in overrides)
    return what.endswith((".yaml", ".yml")) or not {"reward", "recipe"}.isdisjoint(keys)


def _answers_line(config: Config, judged: bool, train: Dataset) -> str:
    """Says what of the answers was looked at, which depends on the reward."""
    from pipeline.data.wanted import wanted_of

    name = config.reward.name
    if judged and wanted_of(config).answers:
        return (
            f"the reward {name} compares with them: each is text or a number; whether it can be "
            "graded says darts train CONFIG --dry-run"
        )
    without = sum(not item.answer for item in train.items)
    counted = f"{without} of {len(train)} training prompts have none" if without else "all there"
    if judged:
        return f"{counted}; the reward {name} gets them as they are, none is looked at"
    return f"{counted}; name a reward to have them checked: reward=exact, reward=math"


def _read(config: Config, judged: bool) -> tuple[Tokenizer, Dataset, Dataset]:
    """Reads tokenizer and both data sets; bad lines are collected. Answers are `judged` by what
    the reward needs, or may be anything."""
    import msgspec

    from pipeline.data import eval_sets
    from pipeline.data.dataset import DataError, load_train
    from pipeline.data.tokenizer import ModelError, Tokenizer
    from pipeline.data.wanted import Wanted, wanted_of
    from pipeline.stage import build

    lenient = msgspec.structs.replace(
        config, data=msgspec.structs.replace(config.data, bad_lines="skip")
    )
    try:
        tokenizer = Tokenizer(Path(config.model))
        limit = config.sampling.max_tokens
        wanted = wanted_of(config) if judged else Wanted(answers=False)
        train = load_train(lenient.data, tokenizer, limit, wanted)
        held_out = eval_sets.load_eval_sets(lenient, tokenizer).data
        if judged:
            build.check_answers(config, train, held_out)
    except (ModelError, DataError) as error:
        exit_with_error(error, 2)
    return tokenizer, train, held_out


def _show(
    reports: dict[str, DataReport], told: TokenReport, answers: str, leaked: int, stops: bool
) -> None:
    from rich.console import Console
    from rich.text import Text

    from pipeline.system.terminal_text import counted, printable

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = int(os.environ.get("COLUMNS", _WIDE))
    for line in told.warnings:
        console.print(Text(printable(f"warning: {line}")), soft_wrap=True)
    for name, report in reports.items():
        console.print(
            f"{name.replace('_', ' ')}: {counted(report.prompts, 'prompt')}", style="bold"
        )
        console.print(_table(report))
        for line in _bars(report.lengths):
            console.print(line)
        facts = (*told.facts, f"answers: {answers}") if name == "training" else ()
        for line in (*facts, *_words(report)):
            console.print(Text(printable(line)), soft_wrap=True)
    if leaked:
        console.print(f"{leaked} held-out prompts are in the training data too")
    if stops:
        console.print(
            "a run would stop here: correct the bad lines, or skip them with data.bad_lines=skip"
        )


def _table(report: DataReport) -> Any:
    from rich.table import Table
    from rich.text import Text

    from pipeline.system.terminal_text import printable

    table = Table(box=None, header_style="", pad_edge=False)
    table.add_column("source", overflow="fold")
    for column in ("prompts", "weight", "answer", "kinds", "min", "median", "p95", "max"):
        table.add_column(column, justify="left" if column in ("answer", "kinds") else "right")
    for source in report.sources:
        kinds = [f"{tag or '-'} {count}" for tag, count in sorted(source.tags.items())]
        lengths = source.lengths
        table.add_row(
            Text(printable(source.name)),
            str(source.prompts),
            f"{source.weight:g}",
            Text(printable(source.answer or "none")),
            Text(printable("\n".join(kinds))),
            str(lengths.min),
            f"{lengths.median:g}",
            f"{lengths.p95:g}",
            str(lengths.max),
        )
    return table


def _bars(lengths: Lengths) -> Iterator[str]:
    """Draws the histogram, a line for each bin."""
    most = max(count for _, _, count in lengths.histogram)
    width = len(str(lengths.max))
    for start, end, count in lengths.histogram:
        bar = "#" * round(_BAR * count / most)
        yield f"  {start:>{width}} to {end:>{width}} tokens  {count:>7}  {bar}"


def _words(report: DataReport) -> Iterator[str]:
    from pipeline.system.terminal_text import counted

    for source in report.sources:
        if source.note:
            yield f"{source.name}: {source.note}"
        if source.too_long or source.cut:
            yield f"{source.name}: {source.too_long} too long (left out), {source.cut} cut"
    if report.duplicates:
        yield f"{report.duplicates} prompts are duplicates:"
        yield from (f"  {where} as {before}" for where, before in report.first_duplicates)
        yield from _and_more(report.duplicates - len(report.first_duplicates))
    if report.faults:
        yield f"{counted(report.faults, 'bad line')}:"
        yield from (f"  {line}" for line in report.first_faults)
        yield from _and_more(report.faults - len(report.first_faults))
    first = report.first
    answer = f"answer {first.answer!r}" if first.answer else "no answer"
    yield f"first prompt ({first.where}), {first.tokens} tokens, {answer}:"
    yield from (f"  | {line}" for line in first.text.split("\n"))


def _and_more(count: int) -> Iterator[str]:
    if count > 0:
        yield f"  and {count} more"
