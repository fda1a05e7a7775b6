"""Facts of a model that stand in several files of its directory, each read from all of them.

The files are config.json (of a multimodal model its `text_config` before the rest),
generation_config.json, tokenizer_config.json, special_tokens_map.json and tokenizer.json. Tokens
that end or begin a text are united, of several limits of positions the smallest counts. Loads no
model and no library of models, so that every process may ask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec

from pipeline.system import untrusted_files
from pipeline.system.untrusted_files import UnreadableFile

_POSITIONS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length"),
    *("max_sequence_length", "seq_length", "seq_len", "model_max_length"),
)
"""Names of the limit of positions in config.json, by architecture; the list of vLLM."""
_VOCABULARY = ("vocab_size", "padded_vocab_size", "n_vocab")
_SCALED = ("linear", "dynamic", "yarn")
"""Kinds of rope scaling whose factor is not in the limit; as vLLM has it."""
_MOST_IDS = 1 << 31  # token ids are int32 everywhere
_MOST_TIMES = 10_000  # a factor that is none
_UNLIMITED = 10**9
"""transformers writes 10^30 for a tokenizer without a limit."""
_POINTER = b"version https://git-lfs"


class ModelError(Exception):
    """A model's directory does not hold what training needs."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one model."""

    vocabulary: int  # rows of the embedding; 0: not named
    max_model_tokens: int  # prompt and response together; 0: not named
    ends: dict[int, tuple[str, ...]]  # token that ends a response -> files that name it
    unknown_ends: dict[str, str]  # text that a file names as an end, and no token -> that file
    bos: frozenset[int]  # tokens that begin a text
    adds_bos: bool | None  # what add_bos_token says; None: nothing
    pad: int | None
    dtype: str  # as the weights are saved; "": not named
    tied: bool | None  # whether the output layer is the embedding; None: not named

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return tuple(self.ends)


def read_facts(directory: Path) -> ModelFacts:
    """Read the facts of a model. Raises ModelError if a file is damaged, or config.json absent."""
    config = read_json(directory / "config.json")
    # a nested section of one that is null says nothing
    inner = config.get("text_config")
    text: dict[str, Any] = {**config, **_said(inner)} if isinstance(inner, dict) else config
    tokens = _Tokens(directory)
    generation = tokens.files["generation_config.json"]
    ends: dict[int, list[str]] = {}
    unknown: dict[str, str] = {}
    for name, found in (
        ("generation_config.json", _ids(generation.get("eos_token_id"))),
        ("config.json", [*_ids(text.get("eos_token_id")), *_ids(config.get("eos_token_id"))]),
    ):
        for token in found:
            ends.setdefault(token, []).append(name)
    for name, word in tokens.named("eos_token"):
        token = tokens.id_of(word)
        if token is None:
            unknown.setdefault(word, name)
        else:
            ends.setdefault(token, []).append(name)
    settings = tokens.files["tokenizer_config.json"]
    adds = settings.get("add_bos_token")
    tied = [part.get("tie_word_embeddings") for part in (config, text)]
    return ModelFacts(
        vocabulary=max((_count(text.get(name)) for name in _VOCABULARY), default=0),
        max_model_tokens=_limit(text) or _count(settings.get("model_max_length")),
        ends={token: tuple(dict.fromkeys(names)) for token, names in ends.items()},
        unknown_ends=unknown,
        bos=tokens.united("bos", text),
        adds_bos=adds if isinstance(adds, bool) else None,
        pad=next(iter(tokens.listed("pad", text)), None),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or ""),
        tied=True if True in tied else False if False in tied else None,
    )


class _Tokens:
    """Finds tokens by what the tokenizer's files call them."""

    def __init__(self, directory: Path) -> None:
        names = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
        self.files = {name: _optional(directory / name) for name in names}
        self._path = directory / "tokenizer.json"
        self._ids: dict[str, int] | None = None

    def named(self, key: str) -> list[tuple[str, str]]:
        """(file, text) of each file that names this token."""
        found: list[tuple[str, str]] = []
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            value = self.files[name].get(key)
            value = cast(dict[str, Any], value).get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and value:
                found.append((name, value))
        return found

    def listed(self, kind: str, text: dict[str, Any]) -> list[int]:
        """Ids of a kind of token by all files, those of config.json first."""
        ids = [
            *_ids(text.get(f"{kind}_token_id")),
            *_ids(self.files["generation_config.json"].get(f"{kind}_token_id")),
            *(self.id_of(word) for _, word in self.named(f"{kind}_token")),
        ]
        return [token for token in ids if token is not None]

    def united(self, kind: str, text: dict[str, Any]) -> frozenset[int]:
        return frozenset(self.listed(kind, text))

    def id_of(self, word: str) -> int | None:
        if self._ids is None:
            self._ids = self._read()
        return self._ids.get(word)

    def _read(self) -> dict[str, int]:
        try:
            found = untrusted_files.read_json(self._path, _TokenizerFile)
        except UnreadableFile:  # told by who needs the tokenizer
            return {}
        vocabulary = found.model.vocab
        if isinstance(vocabulary, list):  # Unigram: [text, score], by place
            pairs = [item for item in vocabulary if isinstance(item, list) and item]
            ids = {str(cast(list[Any], pair)[0]): index for index, pair in enumerate(pairs)}
        else:
            ids = {key: value for key, value in vocabulary.items() if isinstance(value, int)}
        return ids | {token.content: token.id for token in found.added_tokens or ()}


class _Added(msgspec.Struct):
    id: int
    content: str


class _Vocabulary(msgspec.Struct):
    vocab: dict[str, Any] | list[Any] = {}


class _TokenizerFile(msgspec.Struct):
    added_tokens: list[_Added] | None = None
    model: _Vocabulary = msgspec.field(default_factory=_Vocabulary)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the model's files. Raises ModelError if it is not a JSON object."""
    try:
        found = untrusted_files.read_json(path)
    except UnreadableFile as error:
        refuse_pointer(path)
        raise ModelError(f"{error}; expected an object; save it again") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path}: found a {type(found).__name__}, expected an object; save it again"
        )
    return cast(dict[str, Any], found)


def refuse_pointer(path: Path) -> None:
    """Raise ModelError if git-lfs left a pointer in place of this file's content."""
    if is_pointer(path):
        raise ModelError(
            f"{path}: a pointer of git-lfs in place of the file: fetch it with `git lfs pull`"
        )


def is_pointer(path: Path) -> bool:
    try:
        with untrusted_files.open_regular(path) as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _limit(text: dict[str, Any]) -> int:
    """The longest sequence that config.json allows; 0 if it names none."""
    named = [_count(text.get(name)) for name in _POSITIONS]
    limit = min((count for count in named if count), default=0)
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    scaled = cast(dict[str, Any], scaling) if isinstance(scaling, dict) else {}
    factor = scaled.get("factor")
    kind = scaled.get("rope_type", scaled.get("type"))
    if kind in _SCALED and isinstance(factor, int | float) and 1 < factor < _MOST_TIMES:
        base = _count(scaled.get("original_max_position_embeddings")) or limit
        return max(limit, int(base * factor))
    return limit


def _said(section: Any) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def _count(value: object) -> int:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 < value < _UNLIMITED
    return value if fits and isinstance(value, int) else 0


def _ids(value: object) -> list[int]:
    values: list[Any] = value if isinstance(value, list) else [value]
    ids = [item for item in values if isinstance(item, int) and not isinstance(item, bool)]
    return [item for item in ids if 0 <= item < _MOST_IDS]
