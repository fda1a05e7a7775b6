"""Lays responses out for a terminal: prompt and answer above, two responses side by side.

Texts of models and users stay text: control characters are spelled out, and nothing is markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.observability.recorder import SampleLine
from pipeline.observability.rollout_files import RolloutLine
from pipeline.system.terminal_text import printable

NARROW = 60
"""Columns below which responses stand below each other."""
_HEAD, _TAIL = 1400, 400
"""Characters of a long text that are shown from its beginning and its end."""
_FAINT = "bright_black"
Pieces = Sequence[tuple[str, bool]]


def shortened(text: str, *, full: bool) -> str:
    """Leaves out the middle of a long text, and says so."""
    if full or len(text) <= _HEAD + _TAIL:
        return text
    left_out = len(text) - _HEAD - _TAIL
    return f"{text[:_HEAD]}\n[... {left_out} characters; --full shows them ...]\n{text[-_TAIL:]}"


def response_text(pieces: Pieces, *, full: bool) -> Text:
    """A response; what an environment appended is marked."""
    shown = Text()
    for number, (piece, sampled) in enumerate(pieces):
        if not sampled:
            shown.append("\n[environment]\n" if shown else "[environment]\n", "bold")
        elif number:
            shown.append("\n[model]\n", "bold")
        shown.append(printable(shortened(piece, full=full)), None if sampled else _FAINT)
    return shown if shown else Text("(no token)", _FAINT)


def number(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form)


def _facts(line: RolloutLine) -> Text:
    """What became of a response, in a few words."""
    shown = Text(f"{line.id}  ", "bold")
    shown.append(f"reward {number(line.reward)}", "bold")
    shown.append(f"  {line.tokens} tokens, {line.finish}\n")
    fate = line.fate
    if line.advantage is not None:
        fate += f", advantage {line.advantage:+.3g}"
        fate += f", weight {line.weight:g}" if line.weight != 1 else ""
    if line.why:
        fate += f": {line.why}"
    shown.append(printable(fate))
    if line.parts:
        parts = ", ".join(f"{name} {number(value)}" for name, value in line.parts.items())
        shown.append(printable(f"\n{parts}"))
    if len(line.versions) > 1:
        shown.append(f"\nof versions {line.versions[0]} to {line.versions[-1]}")
    return shown


def _beside(columns: Sequence[tuple[Text, Text]], width: int) -> RenderableType:
    """Columns of (facts, text); below each other where there is little room."""
    table = Table(box=box.SQUARE, width=width, show_header=False, border_style=_FAINT)
    if width < NARROW or len(columns) == 1:
        table.add_column(overflow="fold")
        for facts, text in columns:
            table.add_row(facts, end_section=True)
            table.add_row(text, end_section=True)
        return table
    for _ in columns:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(facts for facts, _ in columns), end_section=True)
    table.add_row(*(text for _, text in columns))
    return table


def _question(prompt: str, answer: str, *, full: bool) -> Iterator[RenderableType]:
    yield Text.assemble(
        ("prompt  ", _FAINT), printable(shortened(prompt.strip(), full=full)), overflow="fold"
    )
    if answer:
        yield Text.assemble(
            ("answer  ", _FAINT), printable(shortened(answer, full=full)), overflow="fold"
        )


def rollout_block(
    pair: tuple[RolloutLine, RolloutLine | None], width: int, *, full: bool
) -> Iterator[RenderableType]:
    """Yields two responses; where they are to different prompts, each with its own."""
    first, second = pair
    together = [line for line in pair if line is not None]
    apart = second is not None and second.group != first.group
    for line in together if apart else [first]:
        where = f"step {line.step + 1}, group {line.group}, prompt {line.prompt}"
        fate = f": {line.group_fate}" if line.group_fate else ""
        why = f", {line.group_why}" if line.group_why else ""
        yield Text(printable(f"{where}{fate}{why}"), "bold")
        yield from _question(line.prompt_text, line.answer, full=full)
    columns = [(_facts(line), response_text(line.pieces, full=full)) for line in together]
    yield _beside(columns, width)
    yield Text()


def sample_block(
    prompt: str,
    samples: Sequence[tuple[int, SampleLine | None]],
    width: int,
    *,
    full: bool,
) -> Iterator[RenderableType]:
    """Yields the responses of several evaluations to one held-out prompt, each with its step."""
    answer = next((sample.answer for _, sample in samples if sample is not None), "")
    yield from _question(prompt, answer, full=full)
    columns: list[tuple[Text, Text]] = []
    for step, sample in samples:
        if sample is None:
            columns.append((Text(f"at step {step}"), Text("not kept", _FAINT)))
            continue
        facts = Text(f"at step {step}  reward {number(sample.reward)}", "bold")
        facts.append(f"  {sample.tokens} tokens, {sample.finish}")
        pieces = sample.pieces or ((sample.response, True),)
        columns.append((facts, response_text(pieces, full=full)))
    yield _beside(columns, width)
    yield Text()
