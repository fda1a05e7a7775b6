"""Encodes and decodes text by the tokenizer.json in a model's directory.

Invariant: no special token is left in a response, and none is added to a prompt but the one that
begins a text where the model's tokenizer itself puts it, so the tokens trained on are the tokens
sampled. Facts of the model come from `pipeline.config.model_files`. Loads no model, and does not
import transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from pipeline.config.model_files import (
    ModelError,
    ModelFacts,
    read_facts,
    read_json,
    refuse_pointer,
)
from pipeline.system import untrusted_files
from pipeline.system.untrusted_files import UnreadableFile

__all__ = ["ModelError", "Tokenizer", "check_tokenizer", "read_json", "refuse_code"]

_NAMING_CODE = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_TRIED = 256  # first tokens of which one can be written as text


class Tokenizer:
    """The tokenizer of one model. Raises ModelError if tokenizer and model do not match."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        refuse_code(directory)
        self.facts: ModelFacts = read_facts(directory)
        self.vocabulary = self.facts.vocabulary
        """Rows of the embedding: all ids are smaller."""
        self.max_model_tokens = self.facts.max_model_tokens
        """Most tokens of prompt and response together; 0: unknown."""
        self.eos = frozenset(self.facts.ends)
        """Sampling one of these ends a response."""
        self.end = _own_end(self.facts)
        """The one that ends a response that is given as text: the tokenizer's own, or the first."""
        self.bos = self.facts.bos
        """Tokens that begin a text, if the model has any."""
        self.pad = min(self.eos, default=0) if self.facts.pad is None else self.facts.pad
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
        self.first: int | None = self._first()
        """Token that the tokenizer itself puts before a text; None: none."""

    def _first(self) -> int | None:
        """Find it by the flag `add_bos_token`, or by what the tokenizer does with a text."""
        if self.facts.adds_bos is False:
            return None
        for token in range(min(_TRIED, self.vocabulary)):
            try:
                encoded = self._tokenizer.encode(self._tokenizer.decode([token]))
            except BaseException as error:  # it cannot be written alone
                _raise_ours(error)
                continue
            if 0 in encoded.special_tokens_mask:
                if encoded.special_tokens_mask[0]:
                    return encoded.ids[0]
                break
        return min(self.bos) if self.facts.adds_bos and self.bos else None

    def text_of(self, token: int) -> str:
        """The token as the tokenizer's file writes it."""
        return self._tokenizer.id_to_token(token) or f"token {token}"

    def special_in(self, text: str) -> int | None:
        """The first special token that is written in a text; None: none."""
        added = self._tokenizer.get_added_tokens_decoder()
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:  # a character that it lacks
            _raise_ours(error)
            return None
        return next((token for token in ids if token in added and added[token].special), None)

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
                "generation_config.json has eos_token_id, and tokenizer_config.json no eos_token "
                "of the tokenizer, so no response could end; name it in generation_config.json"
            )
        for eos in sorted(self.eos):
            if eos >= self.vocabulary or self._tokenizer.id_to_token(eos) is None:
                raise ModelError(
                    f"{where}: eos_token_id {eos} is not a token of the tokenizer "
                    f"(model: {self.vocabulary} ids); correct it in {self.facts.ends[eos][0]}"
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


def _own_end(facts: ModelFacts) -> int:
    own = (token for token, files in facts.ends.items() if "tokenizer_config.json" in files)
    return next(own, next(iter(facts.ends), 0))


def _fast_tokenizer(path: Path) -> FastTokenizer:
    try:
        return FastTokenizer.from_buffer(untrusted_files.read_bytes(path))
    except UnreadableFile as error:
        raise ModelError(str(error)) from error
    except BaseException as error:  # the library raises bare Exception, or its panic
        _raise_ours(error)
        refuse_pointer(path)
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
