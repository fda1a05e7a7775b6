"""Describes what a checkpoint was written for: settings, model, tokenizer, data.

The manifest holds it; a resume refuses differences, key by key. Settings may change if
they say how the run continues, not what its state means; so may the number of learner
ranks where each rank has the whole optimizer state (ZeRO 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import xxhash

from pipeline.config import paths, rules
from pipeline.config.schema import Config, DataConfig, Plugin
from pipeline.data.dataset import held_out_beside
from pipeline.data.files import files_of
from pipeline.plugins import registry
from pipeline.system.untrusted_files import open_regular

Fingerprint = dict[str, str]

FREE = (
    *(
        "step.count",
        "engine.",
        "placement.",
        "eval.",
        "checkpoint.",
        "timeouts.",
        "metrics.",
        "rollouts.",
        "debug.",
    ),
    "recipe",  # its settings stand beside it
    *("learner.lr", "learner.clip_norm", "learner.warmup_steps", "learner.entropy"),
    *(
        "learner.schedule",
        "learner.min_lr",
        "learner.attention",
        "learner.gradient_checkpointing",
    ),
    *("learner.tokens_per_micro_batch", "learner.kv_tokens", "learner.threads"),
)
"""Settings, or beginnings of their names, that a resume may change."""
_DATA = ("data.train", "data.held_out")
_BY_CONTENT = ("model", *_DATA, "data.chat_template", "learner.deepspeed")
"""Settings that name files: their content counts, not their path."""
_FILES = {
    "model": ("config.json",),
    "tokenizer": ("tokenizer.json", "generation_config.json"),
    "chat template": ("chat_template.jinja", "tokenizer_config.json"),
}
_BLOCK = 1 << 20  # bytes of a file read at once
_OF_FILES = "files of the "
_RANKS, _ZERO, _LORA = "learner.ranks", "learner.zero", "learner.lora"


def fingerprint_of(config: Config) -> Fingerprint:
    """Make the fingerprint of a configuration and of the files that it names, as they are now.

    Raises OSError, or DataError if a source has no file.
    """
    found = {
        key: _text(value)
        for key, value in _flat(_as_written(config))
        if not key.startswith((*FREE, f"{_LORA}.")) and key not in _BY_CONTENT
    }
    found[_LORA] = _text(config.learner.lora)  # as a whole: none differs from any
    directory = Path(config.model)
    for what, names in _FILES.items():
        paths = [path for name in names if (path := directory / name).is_file()]
        found[_OF_FILES + what] = _checksum(paths)
    template = config.data.chat_template
    found["data.chat_template"] = _checksum([Path(template)]) if template else _text(template)
    found["learner.deepspeed"] = _checksum([Path(p) for p in [config.learner.deepspeed] if p])
    return found | dict(_of_data(config.data))


def _of_data(data: DataConfig) -> Iterator[tuple[str, str]]:
    """Yield the checksums of each source's files, and their names if the order matters."""
    if isinstance(data.train, str):
        yield from _of_source("data.train", data.train, "train")
    else:
        yield "data.train", f"{len(data.train)} sources"
        for number, source in enumerate(data.train):
            key = f"data.train.{number}"
            settings: dict[str, Any] = msgspec.to_builtins(source)
            yield from ((f"{key}.{k}", _text(v)) for k, v in settings.items() if k != "path")
            yield from _of_source(key, source.path, "train")
    if isinstance(data.held_out, str):
        yield from _of_source("data.held_out", data.held_out, "held_out")
    else:
        yield "data.held_out", _text(data.held_out)
        beside = held_out_beside(data) if data.held_out else ""
        if beside and beside not in rules.tasks():
            yield from _of_source("data.held_out of data.train", beside, "held_out")


def _of_source(key: str, path: str, split: str) -> Iterator[tuple[str, str]]:
    files = [] if path in rules.tasks() else files_of(path, split)
    if not files:
        yield key, _text(path)
    elif len(files) == 1:
        yield key, _checksum(files)
    else:
        yield key, _text([file.name for file in files])
        yield from ((f"{key} {file.name}", _checksum([file])) for file in files)


def differences(saved: Mapping[str, str], now: Mapping[str, str], settings: str) -> list[str]:
    """List the differences, each with both values and the cure; empty: they match.

    Args:
        settings: file of the present settings, for the message.

    >>> differences({"group.size": "8"}, {"group.size": "4"}, "runs/a/config.yaml")
    ['group.size: 8 in the checkpoint, 4 now: put it back in runs/a/config.yaml']
    """
    whole_state = saved.get(_ZERO) == now.get(_ZERO) == "0"
    lines: list[str] = []
    for key in sorted(saved.keys() & now.keys()):  # another version of darts may have other keys
        before, after = saved[key], now[key]
        if before == after or (key == _RANKS and whole_state):
            continue
        cure = f"put it back in {settings}"
        if key.startswith(_OF_FILES):
            cure = f"put them back, or name the right model in {settings}"
        elif key.startswith(_DATA):
            cure = f"put the data back as it was, here or in {settings}"
        elif key in (_RANKS, _ZERO):
            cure += " (above ZeRO 0 each rank has its own part of the optimizer's state)"
        lines.append(f"{key}: {before} in the checkpoint, {after} now: {cure}")
    return lines


def changes(before: Config, after: Config) -> list[str]:
    """List the settings that differ, as `step.count: 60 -> 300`."""
    old, new = dict(_flat(_as_written(before))), dict(_flat(_as_written(after)))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key}: {_text(old.get(key))} -> {_text(new.get(key))}" for key in keys]


def _as_written(config: Config) -> dict[str, Any]:
    """Return section -> key -> value; a plug-in's options under its name, as in the file."""
    found: dict[str, Any] = msgspec.to_builtins(paths.as_saved(config))
    for kind in registry.PACKAGES:
        plugin: Plugin = getattr(config, kind)
        found |= {kind: plugin.name, f"{kind}.{plugin.name}": found[kind]["options"]}
    return found


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted key -> value. A dictionary as a value stays whole, so that an entry which
    one side lacks is a difference."""
    for name, value in settings.items():
        if isinstance(value, dict):
            inner = cast(dict[str, Any], value)
            yield from ((f"{name}.{key}", entry) for key, entry in inner.items())
        else:
            yield name, value


def _checksum(paths: list[Path]) -> str:
    digest = xxhash.xxh3_64()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
