"""Applies a model's chat template: turns prompts of a file into the text that the model reads.

Messages go through the model's chat template in Jinja's sandbox, with the extras that
transformers' `apply_chat_template` has, so that the text is the same to the letter.
Invariant: only the template writes special tokens; encoding adds none. Must not know
data files, or tokens.
Source: transformers 5.19, `utils/chat_template_utils.py`.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from pipeline.config.schema import DataConfig
from pipeline.data.files import DataError, kind_of
from pipeline.data.template_sandbox import Sandbox
from pipeline.data.tokenizer import ModelError, read_json
from pipeline.system.untrusted_files import UnreadableFile, read_text

ROLES = ("system", "developer", "user", "assistant", "tool")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_END = "END_OF_THE_MESSAGE_TO_GO_ON_WITH"
_MOST_BYTES = 1 << 20  # of a template: the longest of well-known models have 20 KB


class ChatTemplate:
    """The template of one model and one `data` section; loaded when first needed."""

    def __init__(self, model: Path, data: DataConfig) -> None:
        self._model, self._data = model, data
        self._render: Callable[..., str] | None = None
        self._source = ""  # file of the template, for messages

    def prompt_text(self, prompt: object, own: Mapping[str, Any] | None = None) -> tuple[str, bool]:
        """Return (text for the model, True if a template made it).

        Args:
            own: arguments of the template for this prompt alone.

        Raises ValueError for a bad prompt; DataError if the template is missing or unusable.
        """
        data = self._data
        if isinstance(prompt, str):
            if data.chat != "always":
                if data.system and prompt:
                    raise ValueError(
                        "is text, so data.system cannot be added; set data.chat: always, or leave "
                        "data.system out"
                    )
                if own:
                    raise ValueError(
                        f"is text, so the row's {' and '.join(own)} cannot be given to a template; "
                        "set data.chat: always, or leave the column out"
                    )
                return prompt, False
            if not prompt:
                return "", False
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list):
            raise ValueError(f"is {kind_of(prompt)}, expected text or a list of messages")
        if data.chat == "never":
            raise ValueError(
                "is a list, and data.chat is never: expected text; set data.chat: auto for messages"
            )
        messages = _checked(cast(list[Any], prompt))
        if data.system and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": data.system}, *messages]
        return self._templated(messages, own or {}), True

    def turn_end(self) -> str:
        """Return what the template writes behind a message of the assistant; "" if it has no
        template, or refuses such a conversation."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _END}]
        arguments = {"add_generation_prompt": False, **self._data.chat_arguments}
        try:
            if self._render is None:
                self._render = self._found()
            return self._rendered(turns, arguments).partition(_END)[2]
        except (DataError, ValueError, ModelError):
            return ""

    def _templated(self, messages: list[dict[str, Any]], own: Mapping[str, Any]) -> str:
        if self._render is None:
            self._render = self._found()
        arguments: dict[str, Any] = {
            "add_generation_prompt": messages[-1]["role"] != "assistant",
            **self._data.chat_arguments,
            **own,
        }
        continues = arguments.pop("continue_final_message", messages[-1]["role"] == "assistant")
        if continues and not arguments["add_generation_prompt"]:
            return self._continued(messages, arguments)
        return self._rendered(messages, arguments)

    def _continued(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        """Return the text up to the end of the last message, which the model continues."""
        content = messages[-1].get("content")
        if not isinstance(content, str):
            raise ValueError("ends with a message that is not text, so it cannot be continued")
        marked = [*messages[:-1], {**messages[-1], "content": f"{content}{_END} "}]
        before, mark, after = self._rendered(marked, arguments).rpartition(_END)
        if not mark:
            raise ValueError(
                f"ends with the assistant's message, which {self._source} leaves out of the text; "
                "end it with the user's, or set data.chat_arguments: {add_generation_prompt: true}"
            )
        return before if after.startswith(" ") else before.rstrip()  # a template that trims

    def _rendered(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        assert self._render is not None
        try:
            return self._render(messages=messages, **arguments)
        except Exception as error:  # templates may raise anything
            raise ValueError(
                f"is refused by {self._source}{_line(error)}: {_message_of(error)}; correct the "
                "messages, or name another template with data.chat_template"
            ) from error

    def _found(self) -> Callable[..., str]:
        """Compile the template. Raises DataError if it is missing or invalid."""
        template = self._written()
        environment = Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.bound_filters(tojson=_tojson)
        extras: dict[str, Any] = {"raise_exception": _refuse, "strftime_now": _now}
        environment.globals.update(extras)
        try:
            compiled = environment.from_string(template)
        except Exception as error:  # Jinja's; Python's own, of what Jinja made of it; deep nesting
            line, why = "", _message_of(error)
            if isinstance(error, jinja2.TemplateSyntaxError):
                line, why = f":{error.lineno}", error.message or ""
            elif isinstance(error, RecursionError | MemoryError):
                why = "nested too deep"
            raise DataError(
                f"{self._source}{line}: not a chat template: {why:.500}; expected Jinja, as in "
                "transformers; correct it, or name another with data.chat_template"
            ) from error
        tokens = _special_tokens(self._model)

        def render(**given: Any) -> str:
            environment.begin()
            return compiled.render(**{"tools": None, "documents": None, **tokens, **given})

        return render

    def _written(self) -> str:
        """Read the template: from the setting, its own file, or tokenizer_config.json."""
        own = self._model / "chat_template.jinja"
        path = Path(self._data.chat_template) if self._data.chat_template else own
        if self._data.chat_template or own.is_file():
            self._source = str(path)
            try:
                return read_text(path, _MOST_BYTES)
            except UnreadableFile as error:
                raise DataError(
                    f"{path}: cannot be read: {error.why}; expected a chat template in UTF-8, save "
                    "it so"
                ) from error
        # A processor's file is the last to look at: of a multimodal model it may be the only one.
        for name in ("tokenizer_config.json", "chat_template.json"):
            config = self._model / name
            found = _default_of(
                read_json(config).get("chat_template") if config.is_file() else None
            )
            if found is not None:
                self._source = f"{config} (chat_template)"
                return found
        raise DataError(
            f"{self._model}: no chat template in chat_template.jinja, tokenizer_config.json or "
            "chat_template.json, and a prompt needs one; name a file with data.chat_template, or "
            "give prompts as text with data.chat: auto"
        )


def _default_of(found: Any) -> str | None:
    """The template of an entry that is one, or has several by their names."""
    if isinstance(found, list):
        named = [cast(dict[str, Any], one) for one in found if isinstance(one, dict)]
        found = {one.get("name"): one.get("template") for one in named}
    if isinstance(found, dict):
        found = cast(dict[Any, Any], found).get("default")
    return found if isinstance(found, str) else None


def _checked(messages: list[Any]) -> list[dict[str, Any]]:
    """Check messages and drop null fields. Raises ValueError that names the first bad one."""
    if not messages:
        raise ValueError("is an empty list, expected messages")
    checked: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(
                f"is a list with {kind_of(message)} at [{number}], expected a message, "
                '{"role": ..., "content": ...}'
            )
        given = cast(dict[str, Any], message)
        role, content = given.get("role"), given.get("content")
        if role is None and "from" in given and "value" in given:
            raise ValueError(
                f"has from and value at [{number}], as ShareGPT, expected role and content: human "
                "is user there, gpt is assistant"
            )
        if role not in ROLES:
            raise ValueError(
                f"has the role {role!r:.60} at [{number}], expected one of {', '.join(ROLES)}"
            )
        if content is None and not given.get("tool_calls"):
            raise ValueError(f"has no content at [{number}], expected text")
        if isinstance(content, list):
            kinds = {_part(part) for part in cast(list[Any], content)} - {"text"}
            if kinds:
                raise ValueError(
                    f"has {', '.join(sorted(kinds))} in the content at [{number}], expected text "
                    "alone; leave the prompt out"
                )
        elif content is not None and not isinstance(content, str):
            raise ValueError(f"has {kind_of(content)} as content at [{number}], expected text")
        # columnar files have every field in every row; templates test whether one is defined
        checked.append({key: value for key, value in given.items() if value is not None})
    return checked


def _part(part: object) -> str:
    kind = cast(dict[str, Any], part).get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else kind_of(part)


def _special_tokens(model: Path) -> dict[str, str]:
    """Read bos_token and the like, by the names that templates use."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = model / name
        given = read_json(path) if path.is_file() else {}
        for key in _SPECIAL:
            value = given.get(key)
            value = cast(dict[str, Any], value).get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[key] = value
    return found


def _line(error: Exception) -> str:
    """Return the line of the template that raised, for a message."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    return f", line {lines[-1]}" if lines else ""


def _message_of(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replaces Jinja's own filter, which escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005  # local time, as templates expect
