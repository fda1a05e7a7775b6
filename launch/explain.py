"""`darts explain`: why a group ended as it did, and which groups cost most.

Puts `decisions.jsonl` into words; decides nothing and needs nothing but the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import RUN_HELP, fail, run_folder

if TYPE_CHECKING:
    from launch.decisions import Candidate, Decided, Ended, Line, Story
    from pipeline.runfolder import RunFolder

_VERBS = {
    "Sample": "more candidates",
    "Abort": "stop and leave out",
    "Stop": "end now, with the tokens held",
    "Park": "set aside",
    "Enough": "it could close now, and stays open",
    "Finalize": "choose",
    "Defer": "give the prompt back",
    "Drop": "drop the group",
}
_FATES = {
    "trained": "trained on",
    "dropped": "dropped: its prompt is not asked again in this epoch",
    "deferred": "deferred: its prompt was given back, to be asked again",
    "evaluated": "evaluated",
}


def explain(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    group: Annotated[int | None, typer.Argument(help="number of a group", min=0)] = None,
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

    from launch import decisions
    from pipeline.printable import printable

    if group is None and worst is None and step is None:
        fail("name a group, or ask for --worst N or --step S", 2)
    if group is not None and (worst is not None or step is not None):
        fail("--worst and --step are about many groups: leave out the group", 2)
    folder = run_folder(run)
    found = _lines(folder)
    try:
        if group is None:
            groups = decisions.costliest(found, worst, None if step is None else step - 1)
            data, words = [_cost(ended) for ended in groups], _table(groups)
        else:
            told = decisions.story(found, group)
            text = _prompt_text(folder, told)
            data, words = _as_data(told, text), _words(told, text)
    except (decisions.NoSuchGroup, decisions.NoSuchStep) as error:
        fail(f"{run}: {error}", 2)
    found_text = msgspec.json.encode(data).decode() if as_json else printable("\n".join(words))
    typer.echo(found_text)


def _lines(run: RunFolder) -> Iterator[Line]:
    from launch import decisions

    path = run.decisions
    if not path.exists() or not path.stat().st_size:
        fail(f"{run.path}: no decision is on file: no group has ended yet", 2)
    return decisions.decisions(path, lambda text: typer.echo(f"darts: {text}", err=True))


def _prompt_text(run: RunFolder, told: Story) -> str:
    """Of the data set that the configuration names; '' if that cannot be read (any more)."""
    from pipeline.configfile import ConfigError, load
    from pipeline.prompts import DataError, load_held_out, load_train
    from pipeline.text import ModelError, Tokenizer

    evaluated = told.ended is not None and told.ended.kind == "eval"
    try:
        config = load(run.config)
        read = load_held_out if evaluated else load_train
        data = read(config.data, Tokenizer(Path(config.model)), config.sampling.max_tokens)
        return data[told.prompt].prompt
    except (ConfigError, DataError, ModelError, OSError, IndexError) as error:
        first = str(error).splitlines()[0]
        typer.echo(f"darts: the prompt's text cannot be read: {first}", err=True)
        return ""


# --- in words ---------------------------------------------------------------------------


def _words(told: Story, text: str) -> Iterator[str]:
    ended = told.ended
    kind = "held-out " if ended is not None and ended.kind == "eval" else ""
    attempt = f", attempt {ended.attempt + 1}" if ended is not None and ended.attempt else ""
    yield f"group {told.group}: {kind}prompt {told.prompt}{attempt}"
    if text:
        yield f"    {text.strip()}"
    yield ""
    number = 0
    if told.budget is not None:
        step, candidates, note = told.budget
        number += 1
        yield f"{number}. step {step + 1}: opened with {candidates} candidates" + _because(note)
    for decision in told.decisions:
        number += 1
        yield f"{number}. {_decision(decision)}"
    if ended is None:
        yield f"{number + 1}. it had not ended when the file did"
        return
    reason = "" if _says_the_same(told) else _because(ended.why)
    yield f"{number + 1}. step {ended.step + 1}: {_FATES.get(ended.fate, ended.fate)}{reason}"
    if told.again is not None:
        yield f"   (its prompt came again in group {told.again})"
    yield ""
    yield from _candidates(ended)
    if gone := sorted(_left_before(told)):
        yield f"left the group before its end, their lengths are not on file: {_ids(gone)}"
    yield ""
    if ended.kind == "eval":
        return
    yield (
        f"{sum(m.chosen for m in ended.members)} of {len(ended.members)} candidates chosen; "
        f"{ended.trained} of {ended.sampled} response tokens trained on, longest {ended.longest}"
    )


def _because(why: str) -> str:
    return f": {why}" if why else ""


def _decision(line: Decided) -> str:
    what = _VERBS.get(line.verb, line.verb)
    who = f" {_ids(line.ids)}" if line.ids else ""
    return f"step {line.step + 1}: {line.verb}, {what}{who}{_because(line.why)}"


def _ids(ids: Any) -> str:
    return ", ".join(map(str, ids))


def _says_the_same(told: Story) -> bool:
    """A group that was trained on has its last decision's reason."""
    assert told.ended is not None
    return bool(told.decisions) and told.decisions[-1].why == told.ended.why


def _left_before(told: Story) -> set[int]:
    """Ended members that an Abort took out are not in the group's table."""
    assert told.ended is not None
    named = {i for line in told.decisions for i in line.ids}
    return named - {member.id for member in told.ended.members}


def _candidates(ended: Ended) -> Iterator[str]:
    yield f"{'candidate':>9} {'tokens':>7} {'confidence':>11} {'reward':>8} {'versions':>9}  fate"
    for m in sorted(ended.members, key=lambda member: member.id):
        reward = "-" if m.reward is None else f"{m.reward:.3g}"
        confidence = f"{m.confidence:.3f}" if m.tokens else "-"
        versions = f"{m.versions[0]}-{m.versions[-1]}" if len(m.versions) > 1 else _ids(m.versions)
        yield (
            f"{m.id:>9} {m.tokens:>7} {confidence:>11} {reward:>8} {versions or '-':>9}  "
            f"{_fate(m, ended)}"
        )


def _fate(member: Candidate, ended: Ended) -> str:
    if member.state == "aborted":
        return "stopped" if member.tokens else "stopped before its first token"
    cut = ", cut short" if member.state == "truncated" else ""
    if ended.fate == "evaluated":
        return f"evaluated{cut}"
    if ended.fate == "trained":
        return f"{'trained on' if member.chosen else 'not chosen'}{cut}"
    return f"{'chosen, but ' if member.chosen else ''}{ended.fate} with its group{cut}"


def _table(groups: list[Ended]) -> Iterator[str]:
    head = ("group", "step", "prompt", "untrained", "trained", "longest")
    yield " ".join(f"{name:>9}" for name in head) + "  fate"
    for g in groups:
        row = (g.group, g.step + 1, g.prompt, g.wasted, g.trained, g.longest)
        yield " ".join(f"{n:>9}" for n in row) + f"  {g.fate}{_because(g.why)}"


# --- for programs -----------------------------------------------------------------------


def _cost(ended: Ended) -> dict[str, Any]:
    return {
        "group": ended.group,
        "step": ended.step,
        "prompt": ended.prompt,
        "attempt": ended.attempt,
        "fate": ended.fate,
        "why": ended.why,
        "tokens_untrained": ended.wasted,
        "tokens_trained": ended.trained,
        "tokens_longest": ended.longest,
    }


def _as_data(told: Story, text: str) -> dict[str, Any]:
    ended = told.ended
    budget = None
    if told.budget is not None:
        budget = dict(zip(("step", "candidates", "note"), told.budget, strict=True))
    found: dict[str, Any] = {
        "group": told.group,
        "prompt": told.prompt,
        "prompt_text": text or None,
        "budget": budget,
        "decisions": [
            {"step": d.step, "verb": d.verb, "ids": d.ids, "why": d.why} for d in told.decisions
        ],
        "ended": ended is not None,
        "again": told.again,
    }
    if ended is None:
        return found
    candidates = [
        {
            "id": m.id,
            "state": m.state,
            "tokens": m.tokens,
            "confidence": m.confidence,
            "reward": m.reward,
            "chosen": m.chosen,
            "versions": m.versions,
            "fate": _fate(m, ended),
        }
        for m in ended.members
    ]
    return {**found, **_cost(ended), "version": ended.version, "candidates": candidates}
