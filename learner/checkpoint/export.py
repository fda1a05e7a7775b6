"""Exports the model of a checkpoint for transformers and vLLM. Imports torch only for LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.system import untrusted_files

NEEDED = ("config.json", "model.safetensors", "tokenizer_config.json")
ADAPTER = "adapter"


class ExportError(ValueError):
    """The checkpoint cannot be exported; the message says what is missing."""


def export_model(checkpoint: Path, out: Path) -> Path:
    """Write the model of a checkpoint to `out`, which must be empty or not exist.

    After a run with LoRA: the base model with the adapter merged into it, and the
    adapter itself in `out`/adapter.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty directory; name another")
    draft = out.parent / f".{out.name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    if (checkpoint / ADAPTER).is_dir():
        _merged(checkpoint / ADAPTER, draft)
    else:
        _copied(checkpoint / "model", draft)
    draft.replace(out)
    return out


def _copied(model: Path, draft: Path) -> None:
    missing = [name for name in NEEDED if not (model / name).is_file()]
    if missing:
        raise ExportError(
            f"{model}: no {', '.join(missing)}; name a checkpoint directory that holds model/"
        )
    shutil.copytree(model, draft)


def _merged(adapter: Path, draft: Path) -> None:
    settings = untrusted_files.read_json(adapter / "adapter_config.json", dict[str, Any])
    base = Path(untrusted_files.words(settings.get("base_model_name_or_path")) or "unknown")
    if not (base / "config.json").is_file():
        raise ExportError(
            f"{adapter}: made for the model in {base}, which does not exist: put it back"
        )
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from learner import lora
    from learner.checkpoint.save import companions
    from learner.weights import checkpoint_tensors

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    dtype = model.dtype
    lora.attach(model.to(torch.float32), lora.section_of(adapter), base)
    lora.load_adapter(model, adapter)
    draft.mkdir(parents=True)
    for path in companions(base):
        shutil.copyfile(path, draft / path.name)
    save_file(checkpoint_tensors(model, dtype), draft / "model.safetensors", {"format": "pt"})
    shutil.copytree(adapter, draft / ADAPTER)
