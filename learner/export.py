"""A checkpoint -> a directory that transformers and vLLM load. Imports no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

NEEDED = ("config.json", "model.safetensors", "tokenizer_config.json")


class ExportError(Exception):
    """The checkpoint cannot be exported; the message says what is missing."""


def export(checkpoint: Path, out: Path) -> Path:
    """Copy the model of a checkpoint to `out`, which must not exist or be empty."""
    model = checkpoint / "model"
    missing = [name for name in NEEDED if not (model / name).is_file()]
    if missing:
        raise ExportError(
            f"{model}: no {', '.join(missing)}; name a checkpoint directory that holds model/"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty directory; name another")
    draft = out.parent / f".{out.name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(model, draft)
    draft.replace(out)
    return out
