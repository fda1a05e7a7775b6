"""Finds prompt and answer in the rows of a source, and turns an answer into text.

The answer's field is one for the whole source, whatever the order of its rows. What is no answer
(nothing, an empty text, a number that is none, true or false, a list) is a bad line only for a
reward that compares with answers; for others it becomes text, or "".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from pipeline.config import rules
from pipeline.config.schema import DataConfig, SourceConfig
from pipeline.data.files import field_of, kind_of
from pipeline.data.plain_values import Unreadable, plain

ANSWERS = ("answer", "reward_model.ground_truth", "solution")
"""Fields tried if no answer is named: of darts and TRL, verl, TRL."""
NO_ANSWER = "none"
"""Name of the field of data without answers."""


class Fields:
    """Of one source."""

    def __init__(self, source: SourceConfig, data: DataConfig) -> None:
        task = source.path in rules.tasks()  # with fixed field names
        self.prompt = "prompt" if task else source.prompt or data.prompt
        named = "answer" if task else source.answer or data.answer
        self.sought = not named
        self.answer = "" if named == NO_ANSWER else named
        """Once `settle` was called, the field that is used; "" if there is none."""

    def settle(self, rows: Iterable[dict[str, Any]]) -> None:
        """Look for the answer's field, where none is named: the first of `ANSWERS` that a row has.

        Raises ValueError if one is named that no row has.
        """
        left = list(ANSWERS) if self.sought else [self.answer] if self.answer else []
        found: set[str] = set()
        fields: dict[str, None] = {}
        for row in rows:
            fields |= dict.fromkeys(row)
            for name in left:
                there, value = field_of(row, name)
                if there and (value is not None or not self.sought):
                    found.add(name)
            if left and left[0] in found:
                break
        self.answer = next((name for name in left if name in found), "")
        if left and not self.sought and not found and fields:
            raise ValueError(
                f"no row has the field {left[0]!r} (data.answer); fields: "
                f"{', '.join(fields)[:200]}; name one of these, or data.answer: {NO_ANSWER}"
            )

    def prompt_of(self, row: dict[str, Any]) -> Any:
        """Raises ValueError if there is none."""
        there, prompt = field_of(row, self.prompt)
        if not there:
            raise ValueError(_missing(row, "data.prompt", self.prompt))
        if isinstance(prompt, Unreadable):
            raise ValueError(f"{self.prompt} cannot be read: {prompt.why}")
        return prompt

    def answer_of(self, row: dict[str, Any], compared: bool) -> str:
        """Raises ValueError if there is none that a reward could compare with.

        Args:
            compared: the reward does so.
        """
        if not self.answer:
            return ""
        there, answer = field_of(row, self.answer)
        if not compared:
            return any_text(answer)
        if not there:
            raise ValueError(_missing(row, "data.answer", self.answer))
        if isinstance(answer, list | dict) and self.answer == "reward_model.ground_truth":
            # in verl it may be any value that the reward function understands
            return _json(answer)
        text = _text(answer)
        if text is None:
            raise ValueError(f"{self.answer} is {_what(answer)}, expected text or a number")
        if not text.strip():
            raise ValueError(f"{self.answer} is empty, expected text or a number")
        return text


def _text(answer: Any) -> str | None:
    """Text of an answer that is text or a number; None: it is neither.

    A whole number is written without a point: tables hold such as floats where some are missing.
    """
    if isinstance(answer, bool):
        return None
    if isinstance(answer, float):
        if not math.isfinite(answer):
            return None
        return str(int(answer)) if answer.is_integer() and abs(answer) < 2**53 else str(answer)
    if isinstance(answer, str | int):
        return str(answer)
    plain_one = _plain(answer)
    return plain_one if isinstance(plain_one, str) and not isinstance(answer, bytes) else None


def any_text(answer: Any) -> str:
    """Text of whatever is there; "" for nothing."""
    text = _text(answer)
    if text is not None:
        return text
    value = _plain(answer)
    return "" if value is None else value if isinstance(value, str) else _json(value)


def _plain(value: Any) -> Any:
    try:
        return plain(value)
    except ValueError:
        return None


def _json(value: Any) -> str:
    return msgspec.json.encode(plain(value)).decode()


def _what(answer: Any) -> str:
    if isinstance(answer, float):
        return "no finite number (NaN)" if math.isnan(answer) else f"{answer}"
    if isinstance(answer, Unreadable):
        return f"not readable ({answer.why})"
    return kind_of(answer)


def _missing(row: dict[str, Any], key: str, field: str) -> str:
    fields = ", ".join(row) or "none"
    return f"no field {field!r} ({key}); fields: {fields[:200]}; name one of these"


def solution_of(row: dict[str, Any], field: str) -> str:
    """Return the text of `data.solution`, "" for none. Raises ValueError for a bad row."""
    there, found = field_of(row, field)
    if not there or found is None:
        return ""
    if not isinstance(found, str):
        raise ValueError(f"{field} is {kind_of(found)}, expected text (data.solution)")
    return found


def variant_of(row: dict[str, Any], field: str) -> str:
    """Return the text of a field that a variant may name. Raises ValueError for a bad row."""
    there, found = field_of(row, field)
    if not there:
        raise ValueError(_missing(row, "data.variants", field))
    if not isinstance(found, str | int | float) or isinstance(found, bool):
        raise ValueError(f"{field} is {kind_of(found)}, expected text (data.variants)")
    return str(found)
