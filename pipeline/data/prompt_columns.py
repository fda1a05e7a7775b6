"""Columns beside the prompt that belong into it: used in the chat template, or refused by name.

`tools` and `chat_template_kwargs` are arguments of the template, as TRL has them; they may be JSON
text. Images, video and audio, as TRL and verl give them to a model, are refused.
"""

from __future__ import annotations

import json
from typing import Any, cast

from pipeline.data.files import kind_of
from pipeline.data.plain_values import plain
from pipeline.system.untrusted_files import check_depth

_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_BESIDE = ("system", "system_prompt", "documents", "functions", "context", "multi_modal_data")
_OURS = ("messages", "tokenize", "add_generation_prompt", "continue_final_message")


def template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template that a row brings along. Raises ValueError for a bad one."""
    for name in _MEDIA:
        if not _empty(row.get(name)):
            raise ValueError(
                f"has {name}, which darts gives to no model; leave the prompt or the column out"
            )
    arguments: dict[str, Any] = {}
    extra = _read(row, "chat_template_kwargs", dict)
    if taken := sorted(set(_OURS) & extra.keys()):
        raise ValueError(f"has chat_template_kwargs.{taken[0]}, which darts sets itself")
    arguments |= extra
    if tools := _read(row, "tools", list):
        arguments["tools"] = tools
    return arguments


def columns_used(row: dict[str, Any]) -> list[str]:
    """Names of the columns of a row that are arguments of the template."""
    return [name for name in ("tools", "chat_template_kwargs") if not _empty(row.get(name))]


def columns_beside(row: dict[str, Any]) -> list[str]:
    """Names of the columns of a row that may be thought to be in the prompt, and are not."""
    return [name for name in _BESIDE if not _empty(row.get(name))]


def _read(row: dict[str, Any], name: str, type_: type[Any]) -> Any:
    """A column as a list or an object, without its nulls; empty where the row has none."""
    value = row.get(name)
    if _empty(value):
        return type_()
    if isinstance(value, str):
        try:
            value = json.loads(value)
            check_depth(value, name)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"has {name} that are not JSON: {error}") from error
    try:
        value = _said(plain(value))
    except ValueError as error:
        raise ValueError(f"has {name}, a column that {error}") from error
    if not isinstance(value, type_):
        rule = "a list of tools" if type_ is list else "an object of arguments of the template"
        raise ValueError(f"has {name} that are {kind_of(value)}, expected {rule}")
    return value


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _said(value: Any) -> Any:
    """The value without nulls, which columnar files write for what a row does not have."""
    if isinstance(value, dict):
        given = cast(dict[str, Any], value)
        return {key: _said(inner) for key, inner in given.items() if inner is not None}
    if isinstance(value, list):
        return [_said(inner) for inner in cast(list[Any], value)]
    return value
