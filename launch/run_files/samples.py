"""Responses that evaluations have kept, one to each of a few held-out prompts."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from pipeline.observability.recorder import SampleLine
from pipeline.system import untrusted_files
from pipeline.system.untrusted_files import BROKEN, UnreadableFile

_NAME = re.compile(r"step-(\d{6,9})\.jsonl")


def read_samples(folder: Path) -> dict[int, list[SampleLine]]:
    """Step of each evaluation -> its responses, the first evaluation first.

    Raises: UnreadableFile.
    """
    files = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("step-*.jsonl")]
    named = sorted((int(name[1]), path) for path, name in files if name)
    return {step: _lines(path) for step, path in named}


def _lines(path: Path) -> list[SampleLine]:
    content = untrusted_files.read_bytes(path)
    try:
        return [msgspec.json.decode(line, type=SampleLine) for line in content.splitlines()]
    except BROKEN as error:
        raise UnreadableFile(path, f"not the samples of an evaluation: {error}") from error
