"""What lies in a file's place and is none: readers refuse it by its name, and wait for nothing.

A pipe that nobody writes, a device that never ends, a directory, a loop of links, and a file of
three gigabytes that takes no room on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.preflight.weights import header_of
from launch.report.build import build_page
from pipeline.checkpoint import store
from pipeline.config import deepspeed_json
from pipeline.config.load import load
from pipeline.config.pace import engine_pace
from pipeline.config.schema import LearnerConfig
from pipeline.recording.frames import RecordingError
from pipeline.recording.reader import Recording
from pipeline.system.run_folder import RunFolder
from pipeline.wire.keys import PeerKeys, read_private
from tests.launch.report.folders import Made
from tests.paths import MODEL
from tests.security.test_untrusted_files import MESSAGES, OURS, everything_of, loaded

pytestmark = pytest.mark.timeout(300)  # one that waits for a pipe waits for ever


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nothing-is-there")


def enormous(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 << 30)


KINDS = [pipe, device, directory, loop, nowhere, enormous]


def refused(read: Callable[[Path], object], path: Path) -> None:
    """It may also be passed over, but neither waited for nor swallowed whole."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = str(path)
    try:
        read(path)
    except (*OURS, OSError, RecordingError) as error:
        said = str(error)
    assert path.name in said or str(path.parent) in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def of_deepspeed(path: Path) -> None:
    deepspeed_json.read(msgspec.structs.replace(LearnerConfig(), deepspeed=str(path)))


READERS: dict[str, Callable[[Path], object]] = {
    "c.yaml": load,
    "recipe.yaml": lambda path: load(None, [f"recipe={path}", f"model={MODEL}"]),
    "d.jsonl": loaded,
    "ds.json": of_deepspeed,
    "profile.json": lambda path: engine_pace(str(path)),
    "model.safetensors": header_of,
    "a.darts": lambda path: list(Recording(path).entries()),
    "k.key": lambda path: read_private(path, PeerKeys),
}


@pytest.mark.fault("a pipe, a device or a directory in a file's place", part="configuration",
                   by="file")  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_by_its_name(
    tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    """Promise: it is refused by its name, nothing is waited for, and the memory grows by less than
    a gigabyte. Bound: at the first read.
    """
    kind(tmp_path / name)
    if kind is pipe and name in ("c.yaml", "recipe.yaml"):
        pytest.skip("a shell's <(command) is a pipe, and a configuration may come from one")
    refused(READERS[name], tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_a_model_is_refused_by_its_name(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    names = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
    for name in (*names, "special_tokens_map.json", "chat_template.jinja"):
        model = tmp_path / name.replace(".", "-")
        model.mkdir()
        for path in MODEL.glob("*.json"):
            shutil.copy(path, model)
        (model / "chat_template.jinja").write_text("{{ messages }}")
        (model / name).unlink(missing_ok=True)
        kind(model / name)
        refused(lambda _, model=model: everything_of(model), model / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_at_a_run_waits_for_no_pipe_and_swallows_no_file(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    made = Made(path=tmp_path / "whole", steps=2, groups=2).write()
    (made / "live.json").write_text('{"time": 1.5, "phase": "training", "step": 2, "steps": 3}')
    looks = {
        "live.json": ["status", "top"],
        "metrics.jsonl": ["status", "top", "explain"],
        "decisions.jsonl": ["explain"],
        "config.yaml": ["status", "explain"],
        "owner.json": ["status"],
        "lock": ["status"],
    }
    more = {"top": ["--once"], "explain": ["--worst", "3"]}
    for name, commands in looks.items():
        run = tmp_path / name.replace(".", "-")
        shutil.copytree(made, run)
        (run / name).unlink(missing_ok=True)
        kind(run / name)
        for command in commands:
            told = CliRunner().invoke(app, [command, str(run), *more.get(command, [])])
            assert told.exception is None or isinstance(told.exception, SystemExit), (name, command)
    run = tmp_path / "metrics-jsonl"
    with contextlib.suppress(*OURS):
        build_page([run], lambda line: None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_what_is_no_file_is_refused(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    (run.checkpoints / "step-000001").mkdir()
    kind(run.checkpoints / "step-000001" / store.MANIFEST)
    with pytest.raises(store.CheckpointError):
        store.newest(run.checkpoints)


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "1+1=", "answer": "2", "tools": "' + "[" * 5000 + '"}',
        '{"prompt": "1+1=", "answer": "2", "tools": "' + "9" * 5000 + '"}',
        '{"prompt": "1+1=", "answer": "2", "more": ' + "[" * 900 + "]" * 900 + "}",
        '{"prompt": "1+1=", "answer": ' + "9" * 5000 + "}",
        '{"prompt": "1+1=", "answer": "2", "n": 1e999}',
        '{"prompt": "1+1=", "answer": NaN}',
        '{"prompt": "1+1=", "prompt": "1+2=", "answer": "2"}',
        '{"prompt": "\\ud800", "answer": "2"}',
        '{"prompt": "1+1=\\u0000", "answer": "2"}',
        '{"prompt": ' + json.dumps(MESSAGES * 3) + ', "answer": {"a": ["\\udfff"]}}',
    ],
)
def test_a_row_that_is_strange_is_read_or_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\ufeff" + line + "\n" + '{"prompt": "1+1=", "answer": "2"}\n')
    said = str(path)
    try:
        loaded(path)
    except OURS as error:
        said = str(error)
    assert "d.jsonl" in said
