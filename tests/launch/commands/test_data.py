"""`darts data check`: what a run would read, counted before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from tests.paths import ROOT

MODEL = ROOT / "models" / "chain-sums"
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def check(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["data", "check", *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"prompt": prompt, "answer": "2", "terms": 2} for prompt in ("1+1=", "2=", "1+1=")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_file_is_counted_by_kind_and_length_and_its_first_prompt_shown(file: Path):
    result = check(str(file), "--model", str(MODEL))
    assert result.exit_code == 0, result.output
    found = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert found[0] == "training: 3 prompts"
    assert "3 1 answer terms=2 3 2 4 4 4" in found[2]
    assert "2 to 2 tokens 1 ####################" in found
    assert "4 to 4 tokens 2 ########################################" in found
    assert f"{file}:3 as {file}:1" in found
    assert f"first prompt ({file}:1), 4 tokens, answer '2':" in found
    assert found[-1] == "| 1+1="


def test_a_path_may_hold_any_letter(file: Path):
    named = file.rename(file.with_name("Summe \N{PARTY POPPER} ä.jsonl"))
    assert check(str(named), "--model", str(MODEL)).exit_code == 0


def test_bad_lines_are_listed_and_the_status_says_that_a_run_would_stop(file: Path):
    with file.open("a") as opened:
        opened.write('{"answer": "2"}\n[]\n')
    result = check(str(file), "--model", str(MODEL))
    assert result.exit_code == 1
    assert f"  {file}:4: no field 'prompt' (data.prompt)" in result.stdout
    assert f"  {file}:5: found a list, expected an object" in result.stdout
    assert "a run would stop here" in result.stdout
    assert check(str(file), "data.bad_lines=skip", "--model", str(MODEL)).exit_code == 0


def test_json_has_both_sets_and_what_they_share(file: Path):
    sources = json.dumps([{"path": str(file), "tag": "easy", "weight": 2}, {"path": "chain_sums"}])
    given = [f"data.train={sources}", f"data.held_out={file}", f"model={MODEL}"]
    more = check(QUICKSTART, *given, f"eval.sets={{again: {{path: {file}, prompts: 2}}}}", "--json")
    sets = json.loads(more.stdout)["held_out"]["sources"]
    assert [(s["prompts"], s["lengths"]["min"]) for s in sets] == [(3, 2), (2, 2)]
    result = check(QUICKSTART, *given, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(s["prompts"], s["weight"]) for s in found["training"]["sources"]] == [
        (3, 2.0),
        (20_000, 1.0),
    ]
    assert found["training"]["sources"][0]["tags"] == {"easy": 3}
    lengths = found["held_out"]["lengths"]
    assert (lengths["min"], lengths["median"], lengths["max"]) == (2, 4.0, 4)
    assert sum(count for _, _, count in lengths["histogram"]) == 3
    assert (found["held_out"]["duplicates"], found["in_both"]) == (1, 3)
    assert found["held_out"]["first"]["text"] == "1+1="
    assert found["would_start"] is True


def test_what_cannot_be_read_at_all_ends_with_2_and_the_reason(tmp_path: Path, file: Path):
    assert check(str(file)).exit_code == 2
    assert "name the model whose tokenizer to use: --model DIR" in check(str(file)).stderr
    missing = check(str(tmp_path / "none.parquet"), "--model", str(MODEL))
    assert missing.exit_code == 2
    assert "nor a file, a folder or a pattern that fits one" in missing.stderr
    file.write_text('{"prompt": "1="}\n')
    result = check(str(file), "--model", str(MODEL), "reward=exact")
    assert result.exit_code == 2
    assert "the reward exact compares with an answer; name its field" in result.stderr


def test_answers_are_judged_by_the_reward_that_is_named(file: Path):
    file.write_text('{"prompt": "1=", "answer": null}\n{"prompt": "2=", "answer": "2"}\n')
    given = (str(file), "--model", str(MODEL))
    result = check(*given)
    assert result.exit_code == 0, result.output
    assert "answers: 1 of 2 training prompts have none; name a reward to" in result.stdout
    found = check(*given, "reward=exact")
    assert found.exit_code == 1
    assert f"{file}:1: answer is null" in found.stdout
    assert "answers: the reward exact compares with them" in found.stdout


def test_what_ends_a_response_is_shown_and_a_template_that_ends_turns_otherwise_is_told(
    tmp_path: Path, file: Path
):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    found = check(str(file), "--model", str(model)).stdout
    assert "a response ends with $ (1, by generation_config.json, config.json" in found
    template = "{% for m in messages %}{{ m.content }}~{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    file.write_text('{"prompt": [{"role": "user", "content": "1="}], "answer": "1"}\n')
    told = check(str(file), "--model", str(model))
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("warning: the chat template ends a turn with '~' (0)")
    asked = json.loads(check(str(file), "--model", str(model), "--json").stdout)
    assert asked["tokens"]["warnings"][0].startswith("the chat template ends a turn with '~'")


def test_of_a_folder_with_splits_one_is_counted_and_the_others_named(tmp_path: Path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1=", "answer": "1"}\n')
    result = check(str(tmp_path), "--model", str(MODEL))
    assert result.stdout.startswith("training: 1 prompt")
    assert "split train, without 1 other file (test.jsonl)" in result.stdout
