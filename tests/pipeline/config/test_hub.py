"""Names on the hub: what is fetched, what is pinned, and what is said where there is no network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.checkpoint.fingerprint import fingerprint_of
from pipeline.config import hub
from pipeline.config.load import ConfigError, dump, load
from pipeline.config.paths import names_without_commit
from pipeline.data.files import files_of
from pipeline.data.tokenizer import Tokenizer
from tests.paths import MODEL, ROOT
from tests.pipeline.config.hub_server import Hub, serve

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
NAME, DATA = "Qwen/Qwen2.5-0.5B", "openai/gsm8k"
ROW = b'{"prompt": "7+9=", "answer": "16"}\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model and a data set of two configurations."""
    with serve() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        files = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        found.push(f"models/{NAME}", model_files())
        found.push(f"datasets/{DATA}", data_files())
        yield found


def model_files() -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.is_file()}
    return files | {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"a pickle"}


def data_files() -> dict[str, bytes]:
    parts = ["main/train-00000-of-00002", "main/train-00001-of-00002", "main/test-00000-of-00001"]
    files = {f"{part}.jsonl": ROW * (n + 1) for n, part in enumerate(parts)}
    return {"README.md": b"# sums", "socratic/train-00000-of-00001.jsonl": ROW, **files}


def in_cache(cache: Path, kind: str, repository: str, files: dict[str, bytes]) -> str:
    """What the library leaves behind: blobs, a snapshot of links to them, and a ref."""
    commit = "c0ffee" + "0" * 34
    folder = cache / f"{kind}--{repository.replace('/', '--')}"
    for number, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return commit


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(QUICKSTART, overrides)
    return "\n".join(raised.value.problems)


def names(source: str, use: str = "train") -> list[str]:
    return [path.name for path in files_of(source, use)]


# --- from the hub -----------------------------------------------------------------------------


def test_a_model_is_fetched_without_code_and_pickles_and_its_commit_is_saved(
    server: Hub, tmp_path: Path
):
    config = load(QUICKSTART, [f"model={NAME}"])
    commit = server.refs[f"models/{NAME}"]["main"]
    there = {path.name for path in Path(config.model).iterdir()}
    assert "model.safetensors" in there
    assert not there & {"modeling.py", "pytorch_model.bin"}
    assert Tokenizer(Path(config.model)).vocabulary == Tokenizer(MODEL).vocabulary
    saved = tmp_path / "config.yaml"
    saved.write_text(dump(config))
    assert f"model: {NAME}@{commit}" in saved.read_text()

    server.push(f"models/{NAME}", {**model_files(), "config.json": b"{}"})
    server.asked.clear()
    assert load(saved) == config, "a later commit does not change a run"
    assert server.asked == [], "what is in the cache needs no network"


def test_a_saved_configuration_fetches_the_same_commit_on_a_machine_without_it(
    server: Hub, cache: Path, tmp_path: Path
):
    config = load(QUICKSTART, [f"model={NAME}", f"data.train={DATA}:main", "data.held_out=0",
                               "eval.every=0"])  # fmt: skip
    saved, before = dump(config), fingerprint_of(config)
    (tmp_path / "config.yaml").write_text(saved)
    server.push(f"models/{NAME}", {**model_files(), "config.json": b"{}"})
    server.push(f"datasets/{DATA}", {"main/train-00000-of-00001.jsonl": ROW * 9})
    shutil.rmtree(cache)
    again = load(tmp_path / "config.yaml")
    assert dump(again) == saved
    assert fingerprint_of(again) == before


def test_weights_are_left_where_they_are_not_wanted_and_fetched_when_they_are(server: Hub):
    small = load(QUICKSTART, [f"model={NAME}"], weights=False)
    assert not (Path(small.model) / "model.safetensors").exists()
    assert (Path(load(QUICKSTART, [f"model={NAME}"]).model) / "model.safetensors").exists()


def test_a_revision_is_a_branch_a_tag_or_a_commit(server: Hub):
    old = server.refs[f"models/{NAME}"]["main"]
    new = server.push(f"models/{NAME}", {**model_files(), "more.json": b"{}"}, ref="v2")
    for revision, commit in (("v2", new), ("main", old), (old, old)):
        assert load(QUICKSTART, [f"model={NAME}@{revision}"]).model.endswith(commit)
    assert "has no revision 'v3'" in problems(f"model={NAME}@v3")


def test_a_data_set_is_read_by_configuration_and_split_and_nothing_more_is_fetched(server: Hub):
    settings = [f"data.train={DATA}:main", f"data.held_out={DATA}:main"]
    data = load(QUICKSTART, settings).data
    assert isinstance(data.train, str)
    assert isinstance(data.held_out, str)
    assert names(data.train) == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert names(data.held_out, "held_out") == ["test-00000-of-00001.jsonl"]
    assert not [path for path in server.asked if "socratic" in path]


@pytest.mark.parametrize(
    "place, found",
    [
        ("main/test", ["test-00000-of-00001.jsonl"]),
        ("main/train-00001-of-00002.jsonl", ["train-00001-of-00002.jsonl"]),
        ("main/t*-00000-*", ["test-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"]),
    ],
)
def test_a_place_is_a_file_a_pattern_or_how_files_begin_and_is_saved(
    server: Hub, tmp_path: Path, place: str, found: list[str]
):
    config = load(QUICKSTART, [f"data.train={DATA}:{place}", "data.held_out=0", "eval.every=0"])
    assert isinstance(config.data.train, str)
    assert names(config.data.train) == found
    (tmp_path / "saved.yaml").write_text(dump(config))
    server.asked.clear()
    assert load(tmp_path / "saved.yaml") == config
    assert server.asked == []


def test_a_split_that_was_not_fetched_yet_is_never_taken_for_another(
    server: Hub, monkeypatch: pytest.MonkeyPatch
):
    load(QUICKSTART, [f"data.train={DATA}:main/train", "data.held_out=0", "eval.every=0"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache" in problems(f"data.held_out={DATA}:main")


def test_what_the_hub_does_not_have_is_told_with_what_it_has(server: Hub):
    assert f"name one of {DATA}:main, {DATA}:socratic" in problems(f"data.train={DATA}")
    said = problems(f"data.train={DATA}:algebra")
    assert "has no 'algebra': neither a folder, a file or a pattern" in said
    assert f"{DATA}:socratic" in said
    server.push("datasets/a/scripts", {"a.py": b"", "a.csv": b""})
    assert "has no parquet or JSONL file, only a.csv, a.py" in problems("data.train=a/scripts")


def test_a_path_that_is_not_there_is_told_as_both(server: Hub, tmp_path: Path):
    said = problems("model=models/chain-sum")
    assert f"no such directory; looked for {tmp_path}/models/chain-sum" in said
    assert "no model models/chain-sum there; or it is private: log in with `hf auth login`" in said
    server.gated.add(f"models/{NAME}")
    assert f"{NAME} is gated: accept its terms" in problems(f"model={NAME}")


def test_a_directory_of_that_name_comes_first(server: Hub, tmp_path: Path):
    shutil.copytree(MODEL, tmp_path / NAME)
    config = load(QUICKSTART, [f"model={NAME}"])
    assert config.model == str(tmp_path / NAME)
    assert server.asked == []
    assert f"model: {tmp_path / NAME}" in dump(config)


def test_a_job_of_several_machines_is_told_to_name_the_commit(server: Hub):
    settings = [f"model={NAME}", f"data.train={DATA}:main", "data.held_out=0", "eval.every=0"]
    config = load(QUICKSTART, settings)
    named = [
        f"{NAME}@{server.refs[f'models/{NAME}']['main']}",
        f"{DATA}@{server.refs[f'datasets/{DATA}']['main']}:main",
    ]
    assert names_without_commit(config, " ".join(settings)) == named
    assert names_without_commit(config, f"model={named[0]} data.train={named[1]}") == []
    assert names_without_commit(load(QUICKSTART), "") == []


# --- without a network ------------------------------------------------------------------------


def test_what_the_cache_holds_is_found_offline_and_pinned(cache: Path):
    model = in_cache(cache, "models", NAME, model_files())
    data = in_cache(cache, "datasets", DATA, data_files())
    settings = [f"model={NAME}", f"data.train={DATA}:main", "data.held_out=0",
                f"eval.sets.more={DATA}:main", f"learner.reference={NAME}"]  # fmt: skip
    config = load(QUICKSTART, settings)
    assert config.model == str(cache / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / model)
    saved = dump(config)
    for line in (f"model: {NAME}@{model}", f"train: {DATA}@{data}:main",
                 f"more: {DATA}@{data}:main", f"reference: {NAME}@{model}"):  # fmt: skip
        assert line in saved


@pytest.mark.parametrize(
    "override, command",
    [
        (f"model={NAME}", f"hf download {NAME}`"),
        (f"model={NAME}@v2", f"hf download {NAME} --revision v2`"),
        (f"data.train={DATA}:main", f"hf download {DATA} --repo-type dataset`"),
    ],
)
def test_what_the_cache_lacks_is_told_with_the_command_that_gets_it(
    cache: Path, override: str, command: str
):
    said = problems(override)
    assert f"not in the cache {cache}, and HF_HUB_OFFLINE is set: get it where there is" in said
    assert command in said


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json"])
def test_half_a_model_in_the_cache_is_none(cache: Path, lost: str):
    files = model_files()
    del files[lost]
    in_cache(cache, "models", NAME, files)
    assert f"not in the cache {cache}" in problems(f"model={NAME}")
    if lost == "model.safetensors":
        assert load(QUICKSTART, [f"model={NAME}"], weights=False).model


def test_a_model_in_shards_is_whole_with_all_of_them(cache: Path):
    files = model_files()
    weights = files.pop("model.safetensors")
    placed = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files |= {"model.safetensors.index.json": json.dumps(placed).encode()}
    files["model-1.safetensors"] = weights
    in_cache(cache, "models", NAME, files)
    assert f"not in the cache {cache}" in problems(f"model={NAME}")


def test_half_a_data_set_in_the_cache_is_none(cache: Path):
    files = data_files()
    del files["main/train-00001-of-00002.jsonl"]
    in_cache(cache, "datasets", DATA, files)
    assert f"not in the cache {cache}" in problems(f"data.train={DATA}:main/train")


@pytest.mark.fault("the Hugging Face hub does not answer", part="configuration", by="socket")
def test_the_hub_that_does_not_answer_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Promise: what is whole in the cache is used; else nothing starts, and what lacks is told with
    the command that gets it. Bound: 20 s for an answer."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be used (" in problems(f"model={NAME}")
    in_cache(cache, "models", NAME, model_files())
    assert load(QUICKSTART, [f"model={NAME}"]).model.startswith(str(cache))


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    ["gpt2", "a/b/c", "./a/b", "/a/b", "~/b", "a/b.jsonl", "a/*.parquet", "a--b/c", "a/b@../c", ""],
)
def test_what_can_be_no_name_of_the_hub_is_a_path(given: str):
    assert hub.parsed(given) is None


def test_other_paths_are_saved_as_they_are(cache: Path):
    elsewhere = f"/mnt/models--a--b/snapshots/{'0' * 40}"
    assert [hub.pinned(path) for path in (elsewhere, str(MODEL), "")] == [elsewhere, str(MODEL), ""]
