"""`darts explain`: why a group ended as it did, and which groups cost most.

Reads only the run's folder: `decisions.jsonl`, and `metrics.jsonl` for the start of the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import RUN_HELP, as_json, exit_with_error, run_folder

if TYPE_CHECKING:
    from launch.explain.decisions import Ended, Line, Opened, Story
    from launch.run_files.step_facts import StepFacts
    from pipeline.system.run_folder import RunFolder


def explain_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    group: Annotated[str | None, typer.Argument(help="number of the group, from 0")] = None,
    trajectory: Annotated[
        int | None, typer.Option(min=0, help="explain the group of this trajectory instead")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, help="list this many groups that cost most, one line each")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="list the groups that ended in this step, from 1")
    ] = None,
    json_wanted: Annotated[
        bool, typer.Option("--json", help="print JSON; its steps are counted from 0")
    ] = False,
) -> None:
    """Explain what happened to a group, and why.

    It shows the candidates, and each decision with its reason.

    darts explain runs/quickstart 258

    darts explain runs/quickstart --worst 10 --step 3
    """
    from launch.explain import decisions
    from launch.run_files.simulated import simulated_text
    from pipeline.system.terminal_text import printable

    folder = run_folder(run)
    number = _number(group)
    if number is None and trajectory is None and worst is None and step is None:
        exit_with_error("name a group or a --trajectory, or ask for --worst N or --step S", 2)
    if number is not None and trajectory is not None:
        exit_with_error("--trajectory finds the group itself: leave out the group", 2)
    if (number, trajectory) != (None, None) and (worst, step) != (None, None):
        exit_with_error("--worst and --step list groups: leave out the group", 2)
    lines = _lines(folder, _complain)
    try:
        if trajectory is not None:
            number = decisions.group_with(_lines(folder, lambda text: None), trajectory)
        if number is None:
            asked = None if step is None else step - 1
            data, words = _many(folder, decisions.costliest(lines, worst, asked), asked)
        else:
            data, words = _one(folder, decisions.read_story(lines, number))
        shown = list(words)
    except (decisions.NoSuchGroup, decisions.NoSuchTrajectory, decisions.NoSuchStep) as error:
        exit_with_error(f"{run}: {error}", 2)
    except OSError as error:  # a file of another user, say
        exit_with_error(error, 2)
    if modelled := simulated_text(folder):
        shown[:0] = [f"simulated: {modelled}: lengths and rewards are drawn", ""]
    found_text = as_json(data) if json_wanted else printable("\n".join(shown))
    typer.echo(found_text)


def _number(group: str | None) -> int | None:
    if group is None:
        return None
    if not group.isdecimal():
        exit_with_error(
            f"group is {group!r}, but must be a number from 0: --worst 10 lists some", 2
        )
    return int(group)


def _complain(text: str) -> None:
    from pipeline.system.terminal_text import printable

    typer.echo(f"darts: {printable(text)}", err=True)


def _lines(run: RunFolder, say: Any) -> Iterator[Line]:
    from launch.explain import decisions

    path = run.decisions
    if not path.exists() or not path.stat().st_size:
        why = "the run is done, so the file is lost" if run.result.exists() else (
            "no group has ended yet"
        )  # fmt: skip
        exit_with_error(f"{run.path}: {path.name} holds no decisions: {why}", 2)
    return decisions.read_decisions(path, say)


def _one(run: RunFolder, story: Story) -> tuple[Any, Iterator[str]]:
    from launch.explain.wording import story_in_words

    text = _prompt_text(run, story)
    first = next((line.step for line in story.lines), -1)
    return _as_data(story, text), story_in_words(story, text, _facts(run, first))


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


def _prompt_text(run: RunFolder, story: Story) -> str:
    """Reads the prompt from the configured data set; '' if that cannot be read, or was not: of a
    simulated run."""
    from launch.run_files.simulated import simulated_text
    from pipeline.config.load import ConfigError, load
    from pipeline.data import eval_sets
    from pipeline.data.dataset import DataError, load_train
    from pipeline.data.tokenizer import ModelError, Tokenizer
    from pipeline.data.wanted import wanted_of

    if simulated_text(run):
        return ""
    evaluated = story.ended is not None and story.ended.kind == "eval"
    try:
        config = load(run.config, weights=False)
        tokenizer = Tokenizer(Path(config.model))
        if evaluated:
            data = eval_sets.load_eval_sets(config, tokenizer).data
        else:
            data = load_train(config.data, tokenizer, config.sampling.max_tokens, wanted_of(config))
        return data[story.prompt].prompt
    except (ConfigError, DataError, ModelError, OSError, IndexError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        _complain(f"the prompt's text cannot be read: {first}")
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


def _as_data(story: Story, text: str) -> dict[str, Any]:
    ended = story.ended
    found: dict[str, Any] = {
        "group": story.group,
        "prompt": story.prompt,
        "prompt_text": text or None,
        "budget": None if story.budget is None else _as_opened(story.budget),
        "decisions": [
            {"step": d.step, "time": d.time or None, "action": d.action, "ids": d.ids, "why": d.why}
            for d in story.decisions
        ],
        "ended": ended is not None,
        "again": story.again,
    }
    if ended is None:
        return found
    return {
        **found,
        **_cost(ended),
        "version": ended.version,
        "candidates": [_candidate(story, ended, number) for number in range(len(ended.members))],
    }


def _as_opened(opened: Opened) -> dict[str, Any]:
    import msgspec

    return {**msgspec.structs.asdict(opened), "time": opened.time or None}


def _candidate(story: Story, ended: Ended, number: int) -> dict[str, Any]:
    import msgspec

    from launch.explain.wording import fate_of

    fields = msgspec.structs.asdict(ended.members[number])
    fate, why = fate_of(ended.members[number], story, ended)
    appended = fields.pop("appended")
    return {**fields, "tokens_appended": appended, "fate": fate, "why": why}
