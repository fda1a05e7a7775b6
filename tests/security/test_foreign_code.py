"""Python files that come with a model are never run, by whatever loads the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from pipeline.data.tokenizer import ModelError, Tokenizer, refuse_code
from tests.paths import ROOT

MODEL = ROOT / "models" / "chain-sums"
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def trapped(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """A model whose `auto_map` names a file that would leave a trace if it were run."""
    shutil.copytree(MODEL, folder)
    trace = folder.parent / "sprung"
    (folder / "modeling_trap.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import Qwen3Config as TrapConfig, Qwen3ForCausalLM as TrapModel\n"
        "from transformers import PreTrainedTokenizerFast as TrapTokenizer\n"
    )
    settings = json.loads((folder / file).read_text())
    names = {"AutoConfig": "TrapConfig", "AutoModelForCausalLM": "TrapModel"}
    settings["auto_map"] = {auto: f"modeling_trap.{name}" for auto, name in names.items()}
    settings["auto_map"]["AutoTokenizer"] = ["modeling_trap.TrapTokenizer", None]
    (folder / file).write_text(json.dumps(settings | changes))
    return folder


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused_by_name(tmp_path: Path, file: str) -> None:
    model = trapped(tmp_path / "model", file)
    with pytest.raises(ModelError, match=rf"{file}: auto_map names code .*modeling_trap\.Trap"):
        Tokenizer(model)
    assert not (tmp_path / "sprung").exists()


def test_code_named_at_any_depth_is_seen(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": [{"auto_map": {"AutoConfig": "a.B"}}]}')
    with pytest.raises(ModelError, match=r"\(a\.B\)"):
        refuse_code(tmp_path)
    (tmp_path / "config.json").write_text('{"auto_map": {}}')
    refuse_code(tmp_path)


@pytest.mark.fault("a model that brings code of its own", part="configuration", by="file")
@pytest.mark.parametrize("key", ["model", "learner.reference"])
def test_a_run_with_such_a_model_does_not_start(tmp_path: Path, key: str) -> None:
    """Promise: status 2 with file and key.
    Bound: before anything starts.
    """
    model = trapped(tmp_path / "model")
    shown = CliRunner().invoke(app, ["train", QUICKSTART, "--dry-run", f"{key}={model}"])
    assert shown.exit_code == 2
    assert f"{model}/config.json: auto_map names code that comes with the model" in shown.output


LOAD = """
import sys, torch
from pathlib import Path
from transformers import AutoTokenizer
from learner.build import load_model
for model in sys.argv[1:]:
    for read in (
        lambda: load_model(Path(model), torch.device("cpu")),
        lambda: AutoTokenizer.from_pretrained(model, trust_remote_code=False),
    ):
        try:
            read()
            print("read")
        except ValueError as error:
            print("trust_remote_code" in str(error))
"""
LOAD_VLLM = """
import sys
from vllm.transformers_utils.config import get_config
for model in sys.argv[1:]:
    try:
        get_config(model, trust_remote_code=False)
        print("read")
    except Exception as error:
        print("trust" in str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [LOAD, pytest.param(LOAD_VLLM, marks=pytest.mark.long)],
    ids=["transformers", "vllm"],
)
def test_what_loads_a_model_runs_no_file_of_it_even_unchecked(tmp_path: Path, code: str) -> None:
    known = trapped(tmp_path / "known")
    unknown = trapped(tmp_path / "unknown", model_type="unheard_of")
    done = subprocess.run(
        [sys.executable, "-c", code, str(known), str(unknown)],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = [line for line in done.stdout.splitlines() if not line.startswith("now: ")]
    assert read[0] == "read"  # by the code of transformers itself
    assert "True" in read  # and what that does not know is refused
    assert not (tmp_path / "sprung").exists()
