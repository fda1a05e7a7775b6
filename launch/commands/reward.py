"""`darts reward try`: scores given responses with the reward of a configuration.

The responses go through the same workers as in a run, with their limits; errors of user code are
shown with their traceback. No model is loaded, no engine started.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from launch.options import CONFIG_HELP, Overrides, exit_with_error, load_config

if TYPE_CHECKING:
    from pipeline.config.schema import Config
    from pipeline.data.dataset import Dataset
    from pipeline.data.items import Item
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.observability.recorder import SampleLine
    from pipeline.observability.rollout_files import RolloutLine
    from pipeline.plugins.views import Sampled

reward_app = typer.Typer(
    help="Try a reward function on given responses.", no_args_is_help=True, rich_markup_mode=None
)
_SHOWN = 60  # characters of a response


@reward_app.command("try")
def try_command(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    samples: Annotated[
        Path,
        typer.Option(
            help="JSONL file with prompt, response and answer in each line (other fields are "
            "columns), or the folder of a run: the samples of its newest evaluation, or the "
            "responses of its newest step; RUN/rollouts: those"
        ),
    ],
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="score only the first N samples")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Score given responses with a configuration's reward.

    It prints score, parts and time of each.

    darts reward try configs/quickstart.yaml --samples mine.jsonl reward=math
    """
    from pipeline.plugins.registry import PluginError
    from pipeline.system.terminal_text import printable
    from pipeline.system.untrusted_files import UnreadableFile
    from pipeline.workers.pool import RewardFailed

    loaded = load_config(config, overrides, weights=False)
    try:
        read = _of_run(samples, loaded) if samples.is_dir() else _of_file(samples, loaded)
        given = list(read)[:limit]
        if not given:
            raise ValueError(f"{samples}: no samples of this data")
        found = asyncio.run(_tried(loaded, given))
    except (OSError, ValueError, PluginError, UnreadableFile) as error:
        exit_with_error(error, 2)
    except RewardFailed as error:
        exit_with_error(f"{error.why}\n{error.traceback}".rstrip(), 2)
    typer.echo(
        json.dumps(_document(found)) if as_json else printable("\n".join(_lines(given, found)))
    )
    if samples.is_dir() and not as_json:
        typer.echo(printable(given[0][0].rpartition(", line")[0]))
    if any("error" in one for one in found):
        raise typer.Exit(1)


async def _tried(config: Config, given: Sequence[tuple[str, Sampled]]) -> list[dict[str, Any]]:
    """Scores each sample; returns its place, and its score or why it has none."""
    from pipeline.workers.pool import NoOpinion, RewardFailed, RewardPool

    async with RewardPool(config.reward, config.workers) as pool:

        async def one(where: str, sample: Sampled) -> dict[str, Any]:
            try:
                scored = await pool.score_sample(sample)
            except NoOpinion as silence:
                return {"where": where, "score": None, "why": str(silence)}
            except RewardFailed as failed:
                return {"where": where, "error": failed.why, "traceback": failed.traceback}
            seconds = scored.times[1] - scored.times[0]
            return {
                "where": where,
                "score": scored.value,
                "parts": scored.parts,
                "seconds": round(seconds, 6),
            }

        return list(await asyncio.gather(*(one(where, sample) for where, sample in given)))


# --- samples ------------------------------------------------------------------------------


def _of_file(path: Path, config: Config) -> Iterator[tuple[str, Sampled]]:
    """Reads samples from a file. Raises ValueError that names file and line."""
    from pipeline.system import untrusted_files

    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            row = untrusted_files.decode_json(line, where)
            if not isinstance(row, dict):
                raise ValueError(f"{where}: found {type(row).__name__}, expected an object")
            yield where, _sample(where, cast(dict[str, Any], row), config)


def _sample(where: str, row: dict[str, Any], config: Config) -> Sampled:
    from pipeline.config.load import plugin_class
    from pipeline.data.fields import ANSWERS, any_text
    from pipeline.plugins import registry
    from pipeline.plugins.views import Sampled

    response = row.get("response")
    if not isinstance(response, str):
        found = f"fields: {', '.join(row)}" if response is None else f"found {response!r:.80}"
        raise ValueError(f"{where}: response: {found}; expected the text of a response")
    prompt = _first_of(row, "prompt", config.data.prompt)
    names = list(dict.fromkeys(("answer", config.data.answer, *ANSWERS)))
    answer = _first_of(row, *names)
    messages: list[Any] = cast(list[Any], prompt) if isinstance(prompt, list) else []
    finish = row.get("finish", "stop")
    if finish not in ("stop", "length"):
        raise ValueError(f"{where}: finish: found {finish!r:.80}, expected stop or length")
    if answer == "" and registry.needs_answer(*plugin_class("reward", config.reward)):
        raise ValueError(
            f"{where}: answer: the reward {config.reward.name} needs one, but there is none of the "
            f"fields {', '.join(filter(None, names))}; add one, or name its field with "
            "data.answer"
        )
    return Sampled(
        prompt="" if messages else str(prompt),
        response=response,
        finish=finish,
        tokens=0,  # not known
        answer=any_text(answer),
        columns={name: value for name, value in row.items() if name not in ("response", "finish")},
        messages=messages,
    )


def _first_of(row: dict[str, Any], *names: str) -> Any:
    """Returns the value of the first of these fields that the row has; '' if it has none."""
    from pipeline.data.files import field_of

    found = (field_of(row, name)[1] for name in names if name)
    return next((value for value in found if value is not None), "")


def _of_run(path: Path, config: Config) -> Iterator[tuple[str, Sampled]]:
    """Reads the samples of a run's newest evaluation, or the responses of its newest step; the
    data set has their columns. Raises ValueError."""
    from launch.run_files.samples import read_samples
    from pipeline.observability.rollout_files import files_in
    from pipeline.system.run_folder import RunFolder

    inside = path.absolute().name if path.absolute().name in ("samples", "rollouts") else ""
    run = RunFolder(path.absolute().parent if inside else path.absolute())
    evaluations = {} if inside == "rollouts" else read_samples(run.samples)
    steps = {} if inside == "samples" else files_in(run.rollouts)
    if evaluations:
        step = max(evaluations)
        yield from _of_evaluation(f"{path}: samples of step {step}", evaluations[step], config)
    elif steps:
        step = max(steps)
        yield from _of_step(f"{path}: rollouts of step {step + 1}", steps[step], config)
    else:
        raise ValueError(
            f"{path}: has neither samples/step-*.jsonl nor rollouts/step-*.jsonl.zst: not a run, "
            "or it has not evaluated yet and keeps no responses (rollouts.every)"
        )


def _of_evaluation(
    where: str, lines: Sequence[SampleLine], config: Config
) -> Iterator[tuple[str, Sampled]]:
    from pipeline.data import eval_sets

    items = {i.prompt: i for i in _data(lambda t: eval_sets.load_eval_sets(config, t).data, config)}
    for number, line in enumerate(lines, start=1):
        if (item := items.get(line.prompt)) is not None:
            yield f"{where}, line {number}", _of_item(item, line)


def _of_step(where: str, file: Path, config: Config) -> Iterator[tuple[str, Sampled]]:
    from pipeline.data.dataset import load_train
    from pipeline.data.wanted import wanted_of
    from pipeline.observability.rollout_files import read_rollouts

    data, most, wanted = config.data, config.sampling.max_tokens, wanted_of(config)
    items = _data(lambda t: load_train(data, t, most, wanted), config)
    for number, line in enumerate(read_rollouts(file), start=1):
        known = items[line.prompt] if line.prompt < len(items) else None
        # A prompt with a variant behind it is longer than the data set's.
        if known is not None and line.finish and line.prompt_text.startswith(known.prompt):
            yield f"{where}, line {number}", _of_item(known, line)


def _data(load: Callable[[Tokenizer], Dataset], config: Config) -> Sequence[Item]:
    """Prompts of a data set. Raises ValueError."""
    from pipeline.data.dataset import DataError
    from pipeline.data.tokenizer import ModelError, Tokenizer

    try:
        return load(Tokenizer(Path(config.model))).items
    except (DataError, ModelError) as error:
        raise ValueError(str(error)) from error


def _of_item(item: Item, line: SampleLine | RolloutLine) -> Sampled:
    from pipeline.plugins.views import Sampled

    return Sampled(
        prompt=item.prompt,
        response=line.response,
        finish=line.finish,
        tokens=line.tokens,
        answer=item.answer,
        columns=item.columns,
        messages=item.messages,
        pieces=line.pieces,
    )


# --- what is shown ------------------------------------------------------------------------


def _summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = [one["score"] for one in found if one.get("score") is not None]
    seconds = [one["seconds"] for one in found if "seconds" in one]
    return {
        "samples": len(found),
        "scored": len(scores),
        "failed": sum("error" in one for one in found),
        "mean": statistics.fmean(scores) if scores else None,
        "seconds_median": statistics.median(seconds) if seconds else None,
        "seconds_max": max(seconds, default=None),
    }


def _document(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"summary": _summary(found), "samples": found}


def _lines(given: Sequence[tuple[str, Sampled]], found: Sequence[dict[str, Any]]) -> Iterator[str]:
    from pipeline.system.terminal_text import printable

    yield f"{'score':>8} {'ms':>8}  response"
    traced: set[str] = set()
    for (where, sample), one in zip(given, found, strict=True):
        if "error" in one:
            yield f"{'failed':>8} {'':>8}  {where}: {printable(one['error'])}"
            if one["traceback"] and one["traceback"] not in traced:
                traced.add(one["traceback"])
                yield printable(one["traceback"]).rstrip()
            continue
        response = printable(sample.response.replace("\n", " "))
        short = response if len(response) <= _SHOWN else f"{response[: _SHOWN - 3]}..."
        if one["score"] is None:
            yield f"{'none':>8} {'':>8}  {short}  ({one['why']})"
            continue
        parts = " ".join(f"{name}={value:g}" for name, value in one["parts"].items())
        note = f"  [{parts}]" if parts else ""
        yield f"{one['score']:>8.3f} {one['seconds'] * 1000:>8.1f}  {short}{note}"
    sums = _summary(found)
    mean = "" if sums["mean"] is None else f", mean {sums['mean']:.3f}"
    times = ""
    if sums["seconds_median"] is not None:
        times = (
            f"; a call took {sums['seconds_median'] * 1000:.1f} ms (median), "
            f"{sums['seconds_max'] * 1000:.1f} ms at most"
        )
    yield f"{sums['scored']} of {sums['samples']} scored{mean}, {sums['failed']} failed{times}"
