"""`darts config`: the schema, and the recipes that a configuration may name."""

from __future__ import annotations

import json

from typer.testing import CliRunner, Result

from launch.cli import app
from pipeline.config.recipes import FOLDER, builtin_names


def darts(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", *arguments])


def test_the_schema_is_json():
    assert "recipe" in json.loads(darts("schema").output)["properties"]


def test_recipes_are_listed_with_their_source_and_one_is_printed_as_it_is():
    lines = darts("recipes").output.splitlines()
    assert [line.split()[0] for line in lines] == builtin_names()
    [dars] = [line for line in lines if line.startswith("dars ")]
    assert "(arXiv 2508.13755): hard prompts" in dars
    assert darts("recipes", "dars").output.strip() == (FOLDER / "dars.yaml").read_text().strip()
    result = darts("recipes", "darz")
    assert result.exit_code == 2
    assert "darts config recipes lists them" in result.output
