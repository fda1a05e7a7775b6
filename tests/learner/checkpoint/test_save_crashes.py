"""What a rank writes of a checkpoint outlasts a crash, whichever library wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from learner.checkpoint.save import MODEL, optimizer_file, save_model, save_tensors
from pipeline.checkpoint import store
from pipeline.coordinator.snapshot import Snapshot
from pipeline.system.durable_files import Disk
from tests.learner.ranks import ROOT
from tests.pipeline.checkpoint.crashes import (
    COMMITTED,
    Quick,
    Recorder,
    forgotten,
    small_disk,
    states,
    wrong,
)
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

SOURCE = ROOT / "models" / "chain-sums"


@pytest.fixture(scope="module")
def state() -> Snapshot:
    world = World(3, settings_of(), plugins_of("first_m"))
    world.start()
    world.run()
    return world.cuts[0]


def tiny() -> Qwen3ForCausalLM:
    """Its files are small: thousands of copies are made of them."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=8,
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=4,
            max_position_embeddings=8,
        )
    )


def save(folder: Path, state: Snapshot, step: int, content: str, disk: Disk) -> None:
    """One rank at ZeRO 0, and the stage."""
    checkpoints = folder / "checkpoints"
    directory = store.begin_draft(checkpoints, step, disk)
    save_model(tiny(), SOURCE, directory / MODEL, disk)
    save_tensors({"step": torch.ones(8) * step}, optimizer_file(directory, 0), disk)
    about = {"content": content}
    store.commit(directory, msgspec.structs.replace(state, step=step), about, disk)
    if isinstance(disk, Recorder):
        disk.mark(COMMITTED + content)
    store.prune(checkpoints, 2, disk)


def content_of(directory: Path) -> str:
    return json.loads((directory / store.MANIFEST).read_bytes())["content"]


@pytest.mark.fault(
    "a crash while a rank writes model, tokenizer and optimizer", part="checkpoints", by="file"
)
def test_model_tokenizer_and_optimizer_are_whole_after_any_crash_and_no_fsync_is_idle(
    tmp_path: Path, state: Snapshot
) -> None:
    """Promise: resume finds the old ones or the new ones, whole.
    Bound: every prefix of the operations.
    """
    run = tmp_path / "run"
    run.mkdir()
    save(run, state, 1, "a", Quick())
    recorder = Recorder(run)
    save(run, state, 2, "b", recorder)
    for number, found in enumerate(states(recorder)):
        assert wrong(found, tmp_path / str(number), "ab", content_of) == ""
    assert forgotten(recorder, tmp_path, "ab", content_of) == []


@pytest.mark.fault("the disk is full while a rank writes", part="disk", by="file")
@pytest.mark.parametrize("room", [4_000, 600_000], ids=["tokenizer", "weights"])
def test_a_full_disk_is_an_error_of_the_rank_that_lives_on(tmp_path: Path, room: int) -> None:
    """Whichever library writes when there is no more room; none maps the file into memory.

    Promise: it is an error that can be caught, whichever library writes; nothing kills the process.
    Bound: at that write.
    """
    model = AutoModelForCausalLM.from_pretrained(SOURCE)
    refused = pytest.raises((OSError, SafetensorError), match="No space|os error|too large")
    with small_disk(tmp_path / "small", room) as folder, refused:
        save_model(model, SOURCE, folder / MODEL)
    state = {"momentum": torch.ones(room)}
    with small_disk(tmp_path / "other", room) as folder, pytest.raises((OSError, RuntimeError)):
        save_tensors(state, optimizer_file(folder, 0))
