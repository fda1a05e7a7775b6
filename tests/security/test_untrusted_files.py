"""Every reader of files that others wrote, on damaged and hostile ones: only our own errors."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from engines.base import EngineError
from engines.model_facts import read_model_facts
from launch.cli import app
from launch.preflight.learner import learner_problems
from launch.report.build import build_page
from pipeline.checkpoint import store
from pipeline.config import deepspeed_json
from pipeline.config.load import ConfigError, load
from pipeline.config.pace import PaceError, engine_pace
from pipeline.config.schema import Config, DataConfig, LearnerConfig
from pipeline.data import template_sandbox
from pipeline.data.chat_template import ChatTemplate
from pipeline.data.dataset import load_train
from pipeline.data.files import DataError
from pipeline.data.tokenizer import ModelError, Tokenizer, refuse_code
from pipeline.observability.prometheus import TrackerError
from pipeline.observability.tracker_ids import read_id
from pipeline.system import untrusted_files
from pipeline.system.micro_batch_limit import read_limit
from pipeline.system.run_folder import RunError, RunFolder
from pipeline.system.untrusted_files import UnreadableFile
from pipeline.wire.keys import PeerKeys, TransportError, read_private
from tests.launch.report.folders import Made
from tests.paths import MODEL, ROOT
from tests.security.damage import damaged

OURS = (
    *(ConfigError, DataError, ModelError, EngineError, PaceError, RunError, TransportError),
    *(store.CheckpointError, deepspeed_json.DeepSpeedFileError, TrackerError, UnreadableFile),
)
TIMES = 60
"""Damaged copies of each file."""
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"
MACRO = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
MESSAGES = [{"role": "user", "content": "1+1="}]


def each_damaged(path: Path, read: Callable[[], object], *, seed: int = 7) -> int:
    """Reads the file damaged in many ways; returns how often it was refused. Fails at anything
    that is neither an answer nor one of OURS."""
    content, rng, refused = path.read_bytes(), random.Random(seed), 0
    for _ in range(TIMES):
        path.write_bytes(damaged(content, rng))
        said = ""
        try:
            read()
        except OURS as error:
            said = str(error) or "nothing"
            refused += 1
        assert not said or path.name in said or str(path.parent) in said
    path.write_bytes(content)
    return refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The small files of a model, with a chat template."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in MODEL.glob("*.json"):
        shutil.copy(path, folder)
    names = {"chat_template": TEMPLATE, "eos_token": "x"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def everything_of(model: Path) -> None:
    """All that reads a model before it is loaded."""
    config = Config(model=str(model))
    list(learner_problems(config))
    refuse_code(model)
    read_model_facts(str(model))
    Tokenizer(model)
    ChatTemplate(model, DataConfig()).prompt_text(MESSAGES)


@pytest.mark.fault("damaged and hostile files of a model", part="configuration", by="file")
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_a_damaged_file_of_a_model_is_refused_by_its_name(model: Path, name: str) -> None:
    """Promise: cut off, flipped, nested 100,000 deep, not UTF-8 or of other types, it is read or
    refused by its name; nothing else is raised. Bound: while it is read.
    """
    for path in (model / name, model / "config.json"):
        if not path.exists():
            path.write_text('{"eos_token_id": 1}')
    everything_of(model)
    assert each_damaged(model / name, lambda: everything_of(model)) > 0


@pytest.mark.parametrize(
    "template, why",
    [
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deep"),
        ("{% break %}", "not a chat template"),
        ("{% for m in messages %}", "not a chat template"),
        ("{{ 9 ** 9 ** 9 }}", "beyond what is computed"),
        ("{{ 'x' * 10000000000 }}", "too large"),
        ("{{ range(1000000) | list }}", "Range"),
        ("{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% include 'x' %}", "loader"),
        ("{{ nothing.at.all }}", "undefined"),
        # neither for ever nor without bounds
        (f"{LOOP}{LOOP}{LOOP}{END}{END}{END}", "rounds"),
        (f"{LOOP}{LOOP.replace(' %}', ' if false %}')}{END}{END}", "rounds"),
        (f"{LOOP}{LOOP}{{{{ 'x' * 50000 }}}}{END}{END}", "too large"),
        (f"{{% set a %}}{LOOP}{LOOP}{'x' * 5000}{END}{END}{{% endset %}}", "too large"),
        (f"{MACRO}{{{{ f(60) }}}}", "rounds"),
        ("{% for x in [[1]] recursive %}{{ loop([x, x]) }}{% endfor %}", "recursion|rounds"),
        (f"{{% set n = namespace(a='xx') %}}{LOOP}{{% set n.a = n.a ~ n.a %}}{END}", "too large"),
        (f"{{% set n = namespace(a='xx') %}}{LOOP}{{% set n.a = n.a + n.a %}}{END}", "too large"),
        (f"{{% set n = namespace(a=[1, 1]) %}}{LOOP}{{% set n.a = n.a + n.a %}}{END}", "too large"),
        (f"{{% set n = namespace(a=2) %}}{LOOP}{{% set n.a = n.a * n.a %}}{END}", "beyond"),
        ("{% set a = 'x' * 1000000 %}{{ a.replace('x', a) }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ a | replace('x', a) }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ a.join(a) }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ a | join(a) }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ [a] * 1000000 }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ '' ~ [a] * 1000000 }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ ([a] * 1000000) | tojson }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ ([a] * 1000000) | string | length }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ '%s' % ([a] * 1000000,) }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ '{}'.format([a] * 1000000) }}", "too large"),
        ("{% set a = 'x' * 1000000 %}{{ {'a': [a] * 1000000}.values() }}", "too large"),
        ("{% set n = namespace(a=['x' * 1000000] * 1000000) %}{{ n }}", "too large"),
        (
            f"{{% set n = namespace(a=1) %}}{LOOP}{{% set n.a = [n.a, n.a] %}}{{{{ n.a }}}}{END}",
            "large",
        ),
        ("{{ 'x'.center(9000000000) }}{{ 'x'.zfill(9000000000) }}", "too large"),
        ("{{ 'x' | center(9000000000) }}", "too large"),
        ("{{ 'x' | indent(9000000000, first=true) }}", "too large"),
        ("{{ messages | tojson(indent=9000000000) }}", "too large"),
        ("{{ messages | batch(9000000000, 'x') | list }}", "too large"),
        ("{{ messages | slice(9000000000) | list }}", "too large"),
        ("{{ '%9000000000d' % 1 }}", "too large"),
        ("{{ '%*d' % (9000000000, 1) }}", "too large"),
        ("{{ '%9000000000d' | format(1) }}", "too large"),
        ("{{ '{:>9000000000}'.format(1) }}", "too large"),
        ("{{ lipsum(9000000) }}", "undefined"),
        ("{{ messages.append(messages) }}{{ messages }}", "unsafe|not safe"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused_by_its_file(
    model: Path, template: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_ROUNDS", 20_000)
    path = model / "chat_template.jinja"
    path.write_text(template)
    with pytest.raises((DataError, ValueError), match=why) as found:
        ChatTemplate(model, DataConfig()).prompt_text(MESSAGES)
    assert str(path) in str(found.value)


def test_a_damaged_chat_template_is_refused_by_its_file(model: Path) -> None:
    path = model / "chat_template.jinja"
    path.write_text(TEMPLATE)

    def read() -> None:
        try:
            ChatTemplate(model, DataConfig()).prompt_text(MESSAGES)
        except ValueError as error:  # a prompt that the template refuses: a bad line
            raise DataError(str(error)) from error

    each_damaged(path, read)


def test_a_damaged_configuration_is_problems_in_words(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes((ROOT / "configs" / "quickstart.yaml").read_bytes())
    assert each_damaged(path, lambda: load(path)) > 0


@pytest.mark.parametrize(
    "text", [r'model: "\U00110000"', r'model: "\ud800"', "%YAML " + "9" * 5000 + ".1\n---\na: 1",
             r'"\udfff": 1', "seed: " + "9" * 5000]
)  # fmt: skip
def test_characters_and_numbers_that_are_none_are_problems(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml:1"):
        load(path)


def test_damaged_settings_of_others_are_refused_by_their_file(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 0}, "bf16": {"enabled": "auto"}}')
    section = msgspec.structs.replace(LearnerConfig(), deepspeed=str(path))
    assert each_damaged(path, lambda: deepspeed_json.read(section)) > 0
    profile = tmp_path / "profile.json"
    profile.write_text('{"decode": [[1, 0.1]], "name": "x"}')
    assert each_damaged(profile, lambda: engine_pace(str(profile))) > 0


# --- data ---------------------------------------------------------------------------------------


def loaded(path: Path) -> None:
    load_train(DataConfig(train=str(path), chat="never"), Tokenizer(MODEL), 8)


def test_damaged_data_are_refused_by_their_place(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1), "more": [{"a": n}]} for n in range(20)]
    lines = tmp_path / "d.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert each_damaged(lines, lambda: loaded(lines)) > 0
    table = tmp_path / "d.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), table)
    loaded(table)
    assert each_damaged(table, lambda: loaded(table)) > 0


def bomb(kind: str) -> pa.Table:
    """A table whose file is small, and which fills the memory once it is unfolded."""
    text = "1" * (4 << 20)
    if kind == "dictionary":
        prompts = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array([text]))
        return pa.table({"prompt": prompts, "answer": ["2"] * 1024})
    if kind == "nested":
        inner = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array([text]))
        return pa.table({"prompt": pa.ListArray.from_arrays(pa.array([0, 512, 1024]), inner)})
    if kind == "rows":
        return pa.table({"prompt": pa.nulls(9_000_000, pa.int64())})
    return pa.table({"prompt": [text] * 160})  # "compressed"


@pytest.mark.fault("a parquet file that unpacks to more than the memory", part="configuration",
                   by="file")  # fmt: skip
@pytest.mark.parametrize("kind", ["dictionary", "nested", "rows", "compressed", "prefixes"])
def test_a_parquet_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    """Promise: it is refused by file and row, and the memory grows by less than 1.5 GB.
    Bound: before it is unpacked.
    """
    import psutil

    path = tmp_path / "bomb.parquet"
    encoded: dict[str, Any] = {"column_encoding": "DELTA_BYTE_ARRAY"} if kind == "prefixes" else {}
    parquet.write_table(
        bomb(kind), path, compression="zstd", use_dictionary=kind in ("dictionary", "nested"),
        **encoded,
    )  # fmt: skip
    assert path.stat().st_size < 1 << 20
    before = psutil.Process().memory_info().rss
    with pytest.raises(DataError, match=r"bomb\.parquet\[\d+\]: unpacks to more than"):
        loaded(path)
    assert psutil.Process().memory_info().rss - before < 1_500_000_000


def test_rows_of_every_kind_come_out_as_pyarrow_itself_has_them(tmp_path: Path) -> None:
    from pipeline.data.parquet_rows import parquet_rows

    rows = [
        {"a": "x", "b": ["p", None, "q"], "c": {"d": "é", "e": [{"f": b"\x00"}]}, "g": n, "h": None}
        for n in range(40)
    ]
    table = pa.Table.from_pylist(rows)
    words = pa.array(["u", "v"] * 20)
    table = table.append_column("cat", words.dictionary_encode())
    table = table.append_column("large", words.cast(pa.large_string()))
    table = table.append_column("map", pa.array([[("k", "v")]] * 40, pa.map_("string", "string")))
    path = tmp_path / "all.parquet"
    parquet.write_table(table, path, row_group_size=7)
    assert list(parquet_rows(path)) == table.to_pylist()


# --- runs ---------------------------------------------------------------------------------------


def looks(folder: Path) -> list[list[str]]:
    run = str(folder)
    return [
        ["status", run],
        ["status", run, "--json"],
        ["top", run, "--once"],
        ["explain", run, "--worst", "3"],
        ["explain", run, "--step", "1", "--json"],
    ]


@pytest.mark.fault("a run's folder is damaged, and looked at", part="people", by="file")
@pytest.mark.parametrize(
    "name", ["live.json", "metrics.jsonl", "decisions.jsonl", "config.yaml", "owner.json"]
)
def test_a_look_at_a_damaged_run_ends_without_a_traceback(tmp_path: Path, name: str) -> None:
    """Promise: `darts status`, `top` and `explain` show what can be read, or name the file.
    Bound: at the look.
    """
    folder = Made(path=tmp_path / "r", steps=3, groups=4).write()
    (folder / "live.json").write_text('{"time": 1.5, "phase": "training", "step": 2, "steps": 3}')
    (folder / "owner.json").write_text('{"pid": 1, "since": "x", "host": "h", "mark": "m"}')
    content, rng = (folder / name).read_bytes(), random.Random(3)
    for _ in range(TIMES // 2):
        (folder / name).write_bytes(damaged(content, rng))
        for words in looks(folder):
            told = CliRunner().invoke(app, words)
            assert told.exception is None or isinstance(told.exception, SystemExit), words
            assert "\x1b" not in told.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.jsonl", "trace.json"])
def test_the_report_of_a_damaged_run_says_what_is_left_out(tmp_path: Path, name: str) -> None:
    folder = Made(path=tmp_path / "r", steps=3, groups=4).write()
    path, said = folder / name, list[str]()
    content, rng = path.read_bytes() if path.exists() else b"{}", random.Random(5)
    for _ in range(4):  # a changed digit may go unseen
        path.write_bytes(damaged(content, rng))
        build_page([folder], said.append)
    assert said


def test_a_damaged_small_file_of_a_run_is_refused_by_its_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    run.make_folders()
    run.micro_batches.write_text('{"setting": 8, "tokens": 4}')
    assert each_damaged(run.micro_batches, lambda: read_limit(run, 8)) > 0
    run.wandb_id.write_text("0123456789abcdef\n")
    assert each_damaged(run.wandb_id, lambda: read_id(run.wandb_id, "wandb")) > 0
    key = run.path / "k.key"
    key.write_bytes(msgspec.json.encode(PeerKeys(control="c", data="d")))
    key.chmod(0o600)
    assert each_damaged(key, lambda: read_private(key, PeerKeys)) > 0


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "\0"):
        with pytest.raises(UnreadableFile):
            untrusted_files.read_bytes(path)
