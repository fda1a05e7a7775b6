"""Encodes and decodes text by the tokenizer.json in a model's directory.

Invariant: no token is added to a prompt and no special token is left in a
response, so the tokens trained on are the tokens sampled. Also reads facts from the
model's files: vocabulary, stop tokens, longest sequence. Loads no model, and does not
import transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as FastTokenizer

from pipeline.system import untrusted_files
from pipeline.system.untrusted_files import UnreadableFile

_NAMING_CODE = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)


_MOST_IDS = 1 << 31  # token ids are int32 everywhere


class ModelError(Exception):
    """A model's directory does not hold what training needs."""


class Tokenizer:
    """The tokenizer of one model. Raises ModelError if tokenizer and model do not match."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        refuse_code(directory)
        config = read_json(directory / "config.json")
        # multimodal models have the language model's values one level down
        inner = config.get("text_config")
        text: dict[str, Any] = {**config, **inner} if isinstance(inner, dict) else config
        self.vocabulary = _count(text.get("vocab_size"))
        """Rows of the embedding: all ids are smaller."""
        self.max_model_tokens = _count(text.get("max_position_embeddings"))
        """Most tokens of prompt and response together; 0: unknown."""
        generation = directory / "generation_config.json"
        extra = read_json(generation) if generation.is_file() else {}
        self.eos = frozenset(_ids(text.get("eos_token_id")) + _ids(extra.get("eos_token_id")))
        """Sampling one of these ends a response."""
        self.bos = frozenset(_ids(text.get("bos_token_id")))
        """Tokens that begin a text, if the model has any; the prompt or its template has it."""
        pads = _ids(text.get("pad_token_id"))
        self.pad = pads[0] if pads else min(self.eos, default=0)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{path}: no such file, but prompts need it; save the tokenizer with "
                "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        self._tokenizer = _fast_tokenizer(path)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._check()

    def _check(self) -> None:
        where = self.directory
        if not self.vocabulary:
            raise ModelError(f"{where / 'config.json'}: no vocab_size")
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= self.vocabulary:
            raise ModelError(
                f"{where}: the tokenizer has ids up to {largest}, the model has "
                f"{self.vocabulary} (config.json: vocab_size); take both from the same model"
            )
        if not self.eos:
            raise ModelError(
                f"{where}: no end-of-sequence token: neither config.json nor "
                "generation_config.json has eos_token_id, so no response could end; name it in "
                "generation_config.json"
            )
        for eos in sorted(self.eos):
            if eos >= self.vocabulary or self._tokenizer.id_to_token(eos) is None:
                raise ModelError(
                    f"{where}: eos_token_id {eos} is not a token of the tokenizer "
                    f"(model: {self.vocabulary} ids); correct it in generation_config.json"
                )

    def encode(self, text: str) -> list[int]:
        """Encode a text. Raises ValueError if the tokenizer has no token for a part of it."""
        [ids] = self.encode_all([text])
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts, faster than one by one. Raises ValueError like `encode`."""
        try:
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:  # the library raises bare Exception, or its panic
            _raise_ours(error)
            raise ValueError(f"cannot be written {self._alphabet(texts)}: {error}") from error
        return [encoding.ids for encoding in found]

    def _alphabet(self, texts: Sequence[str]) -> str:
        """Name the characters that the tokenizer cannot encode, for a message."""
        wrong: list[str] = []
        for character in sorted(set("".join(texts))):
            try:
                self._tokenizer.encode(character, add_special_tokens=False)
            except Exception:
                wrong.append(character)
        few = f" (it lacks {''.join(wrong[:40])!r})" if wrong else ""
        return f"in the tokenizer's alphabet{few}"

    def decode(self, ids: Sequence[int]) -> str:
        """Decode a response without special tokens; ids that name no token are left out."""
        kept = [int(token) for token in ids if int(token) not in self.eos]
        return self._tokenizer.decode(kept, skip_special_tokens=True)


def _fast_tokenizer(path: Path) -> FastTokenizer:
    try:
        return FastTokenizer.from_buffer(untrusted_files.read_bytes(path))
    except UnreadableFile as error:
        raise ModelError(str(error)) from error
    except BaseException as error:  # the library raises bare Exception, or its panic
        _raise_ours(error)
        cure = "expected a file of the package tokenizers; save it again"
        raise ModelError(f"{path}: not a tokenizer: {error}; {cure}") from error


def _raise_ours(error: BaseException) -> None:
    """Raise what is neither an Exception nor a panic of the library: Ctrl-C, an exit."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error


def check_tokenizer(directory: Path) -> None:
    """Raise ModelError unless model and tokenizer fit each other."""
    Tokenizer(directory)


def refuse_code(directory: Path) -> None:
    """Raise ModelError if the model's files name Python code that comes with it."""
    for name in _NAMING_CODE:
        path = directory / name
        named = _code(read_json(path)) if path.is_file() else []
        if named:
            raise ModelError(
                f"{path}: auto_map names code that comes with the model ({', '.join(named)}); "
                "darts never runs such code; if transformers supports the model_type itself, "
                "remove auto_map from the file"
            )


def _code(entry: Any) -> list[str]:
    """Collect the names in every `auto_map` of an entry."""
    if isinstance(entry, list):
        return [name for item in entry for name in _code(item)]
    if not isinstance(entry, dict):
        return []
    inner = {key: value for key, value in entry.items() if key != "auto_map"}
    return [*_texts(entry.get("auto_map")), *_code(list(inner.values()))]


def _texts(entry: Any) -> list[str]:
    if isinstance(entry, dict | list):
        values = entry.values() if isinstance(entry, dict) else entry
        return [text for value in values for text in _texts(value)]
    return [str(entry)] if entry else []


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the model's files. Raises ModelError if it is not a JSON object."""
    try:
        found = untrusted_files.read_json(path)
    except UnreadableFile as error:
        raise ModelError(f"{error}; expected a JSON object, save it again") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path}: found a {type(found).__name__}, expected an object; save it again"
        )
    return cast(dict[str, Any], found)


def _count(value: object) -> int:
    """A number of things that a file gives; 0 for anything else, so that nothing overflows."""
    return value if type(value) is int and 0 < value < _MOST_IDS else 0


def _ids(value: object) -> list[int]:
    values: list[Any] = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and 0 <= item < _MOST_IDS]
