"""Keeps in a run's folder how large micro-batches may be after memory ran out at ZeRO 3.

`learner.tokens_per_micro_batch` stays as it was written. The kept limit holds for every later
resume, until somebody changes that setting: a new one counts again.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pipeline.system import untrusted_files
from pipeline.system.durable_files import SYSTEM, make_durable, write_file
from pipeline.system.run_folder import RunError, RunFolder


class _Kept(msgspec.Struct, frozen=True):
    setting: int
    """`learner.tokens_per_micro_batch` of the run that ran out of memory."""
    tokens: Annotated[int, msgspec.Meta(ge=1)]
    """Most tokens of a micro-batch since then."""


def read_limit(run: RunFolder, setting: int) -> int:
    """Return the most tokens of a micro-batch: `setting`, or less after memory ran out under it.

    Raises: RunError if the file is damaged.
    """
    try:
        kept = untrusted_files.read_json(run.micro_batches, _Kept)
    except untrusted_files.UnreadableFile as error:
        if error.missing:
            return setting
        raise RunError(f"{error}; remove it to use learner.tokens_per_micro_batch") from error
    return min(setting, kept.tokens) if kept.setting == setting else setting


def keep_limit(run: RunFolder, setting: int, tokens: int) -> bool:
    """Write a lower limit durably, unless it is not lower; returns whether it was."""
    if tokens >= read_limit(run, setting):
        return False
    draft = run.micro_batches.with_name(f".{run.micro_batches.name}")
    write_file(draft, msgspec.json.encode(_Kept(setting, tokens)) + b"\n")
    make_durable(SYSTEM, draft)
    SYSTEM.rename(draft, run.micro_batches)
    SYSTEM.fsync(run.path)
    return True


def note(run: RunFolder, setting: int) -> str:
    """Return a warning about a limit below the setting; '' if there is none."""
    tokens = read_limit(run, setting)
    if tokens == setting:
        return ""
    return (
        f"micro-batches of {tokens} tokens, not {setting} (learner.tokens_per_micro_batch): "
        f"memory ran out before; {run.micro_batches.name} keeps this"
    )
