"""The names of a folder's files -> the files of one split, as data sets on a hub name them.

A file belongs to a split whose word is in its name, between separators: `train-00000-of-00002`,
`math_test`, `dev`. A folder in which no name has such a word is one data set. Source: the package
datasets 5, `data_files.py`, but that letters of either case count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

_WORDS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
_SPLIT = {word: split for split, words in _WORDS.items() for word in words}
_WORD = re.compile(rf"(?:^|[-._ /0-9])({'|'.join(_SPLIT)})(?=$|[-._ /0-9])", re.IGNORECASE)
NONE: Mapping[Path, str] = MappingProxyType({})
WANTED = {"train": ("train",), "held_out": ("test", "validation")}
"""Use -> splits that are taken for it, the first that is there."""


def split_of(name: str) -> str:
    """The split that a name says; "" for none.

    >>> split_of("train-00000-of-00001.parquet"), split_of("gsm8k_dev.jsonl"), split_of("a.json")
    ('train', 'validation', '')
    """
    found = _WORD.search(name)
    return _SPLIT[found[1].lower()] if found else ""


def of_split(
    folder: Path, files: Sequence[Path], use: str, named: Mapping[Path, str] = NONE
) -> tuple[list[Path], list[Path]]:
    """Divide files in a folder, or below it, into those of the split and the others. Raises
    ValueError.

    Args:
        use: a key of `WANTED`. A folder that holds one split alone is read whole as held-out
            prompts, whichever it is, and never trained on unless that split is `train`.
        named: what the data set itself calls a file's split; of others the name says it.
    """
    splits = {
        file: split_of(named[file]) or named[file]
        if file in named
        else split_of(file.relative_to(folder).as_posix())
        for file in files
    }
    there = sorted({split for split in splits.values() if split})
    if not there:
        return list(files), []
    split = next((split for split in WANTED[use] if split in there), "")
    if not split and use == "held_out" and len(set(splits.values())) == 1:
        return list(files), []
    if not split:
        example = next(file for file in files if splits[file])
        raise ValueError(
            f"its files are named as the split {' and '.join(there)}, none as {WANTED[use][0]}; "
            f"name those that you want, for example {example}"
        )
    chosen = [file for file in files if splits[file] == split]
    return chosen, [file for file in files if splits[file] != split]
