"""The JSON Schema of configuration files: current, named by every shipped file, and true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.config.json_schema import json_schema
from pipeline.config.yaml_tree import parse, plain
from pipeline.plugins import registry
from tests.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA: dict[str, Any] = json.loads(json.dumps(json_schema()))


def errors(value: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(value)]


def test_the_committed_file_is_current():
    committed = json.loads((ROOT / "configs" / "schema.json").read_text())
    assert committed == SCHEMA, "run: python -m launch.docs.pages"
    jsonschema.Draft202012Validator.check_schema(committed)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_names_it_and_fits_it(path: Path):
    first, _ = path.read_text().split("\n", 1)
    assert first == "# yaml-language-server: $schema=schema.json"
    tree = parse(path.read_text(), str, [])
    assert tree is not None
    assert errors(plain(tree)) == []


def test_every_key_has_a_meaning_and_no_section_takes_others():
    for name, section in {"": SCHEMA, **SCHEMA["$defs"]}.items():
        assert section["additionalProperties"] is False, name
        for key, value in section["properties"].items():
            assert "$ref" in value or value["description"], f"{name}.{key}"


@pytest.mark.parametrize(
    "config",
    [
        {"stp": {"count": 3}},
        {"step": {"cout": 3}},
        {"step": {"count": -1}},
        {"learner": {"overlap": "tokens"}},
        {"learner": {"betas": [0.9, 1.0]}},
        {"workers": {"memory_gib": 0.1}},
        {"nodes": {"port": 80}},
        {"selector": "dual_ends"},
        {"selector": {"dual_end": {"longst": 1}}},
        {"selector": {"dual_end": {"longest": -1}}},
        {"selector": {"dual_end": {}, "first_m": {}}},
        {"reward": {"exact": {"limit_s": 5}}},
        {"data": {"train": [{"weight": 2}]}},
    ],
)
def test_what_loading_refuses_the_schema_refuses(config: dict[str, Any]):
    assert errors({"model": "m", **config}), config


@pytest.mark.parametrize(
    "config",
    [
        {"learner": {"lora": None}},
        {"learner": {"lora": {"rank": 4}}},
        {"workers": {"memory_gib": 0, "cpu_s": 90}},
        {"selector": {"dual_end": None}},
        {"selector": "my_package.my_module:Mine"},
        {"selector": {"my_package.my_module:Mine": {"whatever": 1}}},
        {"data": {"train": [{"path": "a.jsonl", "weight": 2}], "held_out": "b.jsonl"}},
        {"eval": {"sets": {"aime": "aime.jsonl", "more": {"path": "m", "k": [1, 4]}}}},
        *({kind: name} for kind in registry.PACKAGES for name in registry.builtin_names(kind)),
    ],
)
def test_what_loading_takes_the_schema_takes(config: dict[str, Any]):
    assert errors({"model": "m", **config}) == []
