"""`darts explain`: why a group ended as it did, and which groups cost most.

Reads `decisions.jsonl`, and `metrics.jsonl` for when the step began; `launch.explain.wording`
puts it into words. Decides nothing and needs nothing but the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import RUN_HELP, fail, run_folder

if TYPE_CHECKING:
    from launch.explain.decisions import Ended, Line, Opened, Story
    from launch.run_files.step_facts import StepFacts
    from pipeline.system.run_folder import RunFolder


def explain(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    group: Annotated[str | None, typer.Argument(help="number of a group, from 0")] = None,
    trajectory: Annotated[
        int | None, typer.Option(min=0, help="instead: the group of this trajectory")
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(min=1, help="instead: so many groups that cost most, one line each"),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(min=1, help="groups that ended in this step, counted from 1"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="for programs; steps are counted from 0, as on file")
    ] = False,
) -> None:
    """Say what became of a group: every candidate, and every decision with its reason.

    darts explain runs/quickstart 258

    darts explain runs/quickstart --worst 10 --step 3
    """
    import msgspec

    from launch.explain import decisions
    from pipeline.system.terminal_text import printable

    folder = run_folder(run)
    number = _number(group)
    if number is None and trajectory is None and worst is None and step is None:
        fail("name a group or a --trajectory, or ask for --worst N or --step S", 2)
    if number is not None and trajectory is not None:
        fail("--trajectory finds its group itself: leave out the group", 2)
    if (number, trajectory) != (None, None) and (worst, step) != (None, None):
        fail("--worst and --step are about many groups: leave out the group", 2)
    lines = _lines(folder, _complain)
    try:
        if trajectory is not None:
            number = decisions.group_with(_lines(folder, _ignore), trajectory)
        if number is None:
            asked = None if step is None else step - 1
            data, words = _many(folder, decisions.costliest(lines, worst, asked), asked)
        else:
            data, words = _one(folder, decisions.story(lines, number))
    except (decisions.NoSuchGroup, decisions.NoSuchTrajectory, decisions.NoSuchStep) as error:
        fail(f"{run}: {error}", 2)
    found_text = msgspec.json.encode(data).decode() if as_json else printable("\n".join(words))
    typer.echo(found_text)


def _number(group: str | None) -> int | None:
    if group is None:
        return None
    if not group.isdecimal():
        fail(f"group is {group!r}, but must be a number from 0: --worst 10 lists some", 2)
    return int(group)


def _complain(text: str) -> None:
    typer.echo(f"darts: {text}", err=True)


def _ignore(text: str) -> None:
    """What another reading of the same file says."""


def _lines(run: RunFolder, say: Any) -> Iterator[Line]:
    from launch.explain import decisions

    path = run.decisions
    if not path.exists() or not path.stat().st_size:
        why = "the run is done, so the file was lost" if run.result.exists() else (
            "no group has ended yet"
        )  # fmt: skip
        fail(f"{run.path}: no decision is on file in {path.name}: {why}", 2)
    return decisions.decisions(path, say)


def _one(run: RunFolder, told: Story) -> tuple[Any, Iterator[str]]:
    from launch.explain.wording import told_in_words

    text = _prompt_text(run, told)
    first = next((line.step for line in told.lines), -1)
    return _as_data(told, text), told_in_words(told, text, _facts(run, first))


def _many(run: RunFolder, groups: list[Ended], step: int | None) -> tuple[Any, Iterator[str]]:
    from launch.explain.wording import costs_in_words, step_in_words

    def words() -> Iterator[str]:
        facts = None if step is None else _facts(run, step)
        if facts is not None:
            yield from step_in_words(facts)
        yield from costs_in_words(groups)

    return [_cost(ended) for ended in groups], words()


def _facts(run: RunFolder, step: int) -> StepFacts | None:
    from launch.run_files.step_facts import step_facts

    return step_facts(run.metrics, step, _complain)


def _prompt_text(run: RunFolder, told: Story) -> str:
    """Of the data set that the configuration names; '' if that cannot be read (any more)."""
    from pipeline.config.load import ConfigError, load
    from pipeline.data import eval_sets
    from pipeline.data.dataset import DataError, load_train
    from pipeline.data.tokenizer import ModelError, Tokenizer

    evaluated = told.ended is not None and told.ended.kind == "eval"
    try:
        config = load(run.config)
        tokenizer = Tokenizer(Path(config.model))
        if evaluated:
            data = eval_sets.load_eval_sets(config, tokenizer).data
        else:
            data = load_train(config.data, tokenizer, config.sampling.max_tokens)
        return data[told.prompt].prompt
    except (ConfigError, DataError, ModelError, OSError, IndexError) as error:
        first = str(error).splitlines()[0]
        typer.echo(f"darts: the prompt's text cannot be read: {first}", err=True)
        return ""


# --- for programs -----------------------------------------------------------------------


def _cost(ended: Ended) -> dict[str, Any]:
    return {
        "group": ended.group,
        "step": ended.step,
        "prompt": ended.prompt,
        "attempt": ended.attempt,
        "fate": ended.fate,
        "why": ended.why,
        "time": ended.time or None,
        "tokens_untrained": ended.wasted,
        "tokens_trained": ended.trained,
        "tokens_longest": ended.longest,
    }


def _as_data(told: Story, text: str) -> dict[str, Any]:
    ended = told.ended
    found: dict[str, Any] = {
        "group": told.group,
        "prompt": told.prompt,
        "prompt_text": text or None,
        "budget": None if told.budget is None else _as_opened(told.budget),
        "decisions": [
            {"step": d.step, "time": d.time or None, "action": d.action, "ids": d.ids, "why": d.why}
            for d in told.decisions
        ],
        "ended": ended is not None,
        "again": told.again,
    }
    if ended is None:
        return found
    return {
        **found,
        **_cost(ended),
        "version": ended.version,
        "candidates": [_candidate(told, ended, number) for number in range(len(ended.members))],
    }


def _as_opened(opened: Opened) -> dict[str, Any]:
    return {
        "step": opened.step,
        "time": opened.time or None,
        "candidates": opened.candidates,
        "note": opened.note,
    }


def _candidate(told: Story, ended: Ended, number: int) -> dict[str, Any]:
    from launch.explain.wording import fate_of

    member = ended.members[number]
    fate, why = fate_of(member, told, ended)
    return {
        "id": member.id,
        "state": member.state,
        "tokens": member.tokens,
        "confidence": member.confidence,
        "reward": member.reward,
        "chosen": member.chosen,
        "versions": member.versions,
        "turns": member.turns,
        "tokens_appended": member.appended,
        "fate": fate,
        "why": why,
    }
