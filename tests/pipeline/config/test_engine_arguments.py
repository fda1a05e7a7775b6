"""Arguments of the engines' own libraries: claims about `pipeline.config.engine_arguments`."""

import pytest

from pipeline.config.engine_arguments import OWNED, arguments, problems
from pipeline.config.schema import EngineConfig


def complaints(**given: object) -> dict[str, str]:
    return dict(problems(EngineConfig(**given)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "given",
    [
        {"transformers": {"page_size": 64, "use_cuda_graph": False, "attn_implementation": "sdpa"}},
        {"vllm": {"enable_prefix_caching": True, "max_model_len": 512, "kv_cache_dtype": "fp8"}},
    ],
)
def test_what_the_installed_library_knows_passes(given: dict[str, object]):
    assert complaints(**given) == {}


def test_an_unknown_argument_is_refused_with_the_nearest():
    found = complaints(vllm={"max_num_batched_token": 1}, transformers={"pagesize": 1})
    assert found["engine.vllm.max_num_batched_token"].endswith("mean max_num_batched_tokens?")
    assert found["engine.transformers.pagesize"].endswith("did you mean page_size?")


def test_what_darts_sets_is_refused_with_the_key_that_sets_it():
    found = complaints(vllm={"tensor_parallel_size": 2}, transformers={"seed": 1})
    assert found["engine.vllm.tensor_parallel_size"] == "darts sets it: set engine.tensor_parallel"
    assert found["engine.transformers.seed"] == "darts sets it: set seed"


@pytest.mark.parametrize("library", list(OWNED))
def test_what_is_refused_as_set_is_an_argument_of_the_library(library: str):
    assert OWNED[library].keys() <= arguments(library)


def test_without_the_library_names_are_left_to_the_engine(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        del name

    monkeypatch.setattr("importlib.util.find_spec", absent)
    assert complaints(vllm={"whatever": 1}) == {}
    assert "set engine.slots" in complaints(vllm={"max_num_seqs": 8})["engine.vllm.max_num_seqs"]


@pytest.mark.parametrize(
    "name",
    ["pipeline_parallel_size", "data_parallel_size", "nnodes", "prefill_context_parallel_size"],
)
def test_sizes_that_no_launcher_places_are_one(name: str):
    found = complaints(vllm={name: 2})
    assert found[f"engine.vllm.{name}"].startswith("found 2, expected 1: ")
    assert complaints(vllm={name: 1}) == {}


@pytest.mark.parametrize(
    "library, name, value, rule",
    [
        ("vllm", "max_model_len", "4k", "a whole number"),
        ("vllm", "max_model_len", 512.5, "a whole number"),
        ("vllm", "max_model_len", True, "a whole number"),
        ("vllm", "enable_expert_parallel", "yes", "true or false"),
        ("vllm", "download_dir", 3, "text"),
        ("transformers", "page_size", "64", "a whole number"),
        ("transformers", "cpu_offload_space", "much", "a number"),
    ],
)
def test_values_of_another_plain_type_are_refused(
    library: str, name: str, value: object, rule: str
):
    found = complaints(**{library: {name: value}})
    assert found[f"engine.{library}.{name}"] == f"found {value!r}, expected {rule}"


@pytest.mark.parametrize(
    "library, name, value",
    [
        ("vllm", "max_model_len", None),
        ("vllm", "download_dir", None),
        ("vllm", "served_model_name", ["a", "b"]),  # a type that is not plain is the library's
        ("transformers", "cpu_offload_space", 1),
    ],
)
def test_values_that_fit_and_types_that_are_not_plain_pass(library: str, name: str, value: object):
    assert complaints(**{library: {name: value}}) == {}
