"""`darts reward try` and `darts export --best`: what they say, and of what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from launch.commands.best_checkpoint import best_checkpoint
from pipeline.checkpoint import store
from pipeline.system.durable_files import SYSTEM, write_durably
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

CONFIG = "configs/quickstart.yaml"


def of(tmp_path: Path, rows: list[Any], *arguments: str) -> Result:
    path = tmp_path / "samples.jsonl"
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    command = ["reward", "try", CONFIG, "--samples", str(path), *arguments]
    return CliRunner().invoke(app, command)


def test_scores_parts_and_times_of_each_response(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+2=", "response": "1+2=3#3", "answer": "3"},
        {"prompt": "1+2=", "response": "#4", "answer": 3},
        {"prompt": "1+2=", "response": "#3", "answer": "3", "finish": "length"},
    ]
    total = "reward.sum.of=[{exact: {}, weight: 0.5}]"
    result = of(tmp_path, rows, "--json", total)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [one["score"] for one in found["samples"]] == [0.5, 0.0, 0.0]
    assert found["samples"][0]["parts"] == {"exact": 1.0}
    assert found["summary"]["scored"] == 3
    assert found["summary"]["seconds_max"] >= found["summary"]["seconds_median"] > 0
    text = of(tmp_path, rows, "--limit", "1", total).stdout
    assert "1+2=3#3  [exact=1]" in text
    assert "1 of 1 scored, mean 0.500, 0 failed; a call took" in text


@pytest.mark.parametrize(
    "row, key",
    [
        ({"reward_model": {"ground_truth": "3"}}, ""),  # verl's layout
        ({"meta": {"gold": 3}}, "meta.gold"),
    ],
)
def test_answers_lie_where_those_of_a_data_set_may(
    tmp_path: Path, row: dict[str, Any], key: str
) -> None:
    result = of(tmp_path, [{"response": "#3", **row}], "--json", f'data.answer="{key}"')
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["summary"]["mean"] == 1.0


def test_what_user_code_raises_is_shown_with_its_traceback(tmp_path: Path) -> None:
    function = "reward.python.function=tests.pipeline.workers.reward_functions:by_response"
    rows = [{"response": "fine"}, {"response": "raise"}]
    result = of(tmp_path, [*rows, rows[1]], function)
    assert result.exit_code == 1
    assert result.stdout.count("Traceback") == 1, "the same one once"
    assert "samples.jsonl:3: ValueError: no such unit" in result.stdout
    assert "samples.jsonl:2: ValueError: no such unit" in result.stdout
    assert "reward_functions.py" in result.stdout
    assert "1 of 3 scored, mean 1.000, 2 failed" in result.stdout


@pytest.mark.parametrize(
    "rows, says",
    [
        ([], "no samples"),
        (["{"], "samples.jsonl:1: not JSON"),
        (["[1]"], "samples.jsonl:1: found list, expected an object"),
        (
            [{"prompt": "a", "answer": "b"}],
            "1: response: fields: prompt, answer; expected the text",
        ),
        ([{"response": 3}], "response: found 3; expected the text of a response"),
        ([{"response": "a", "finish": "eos"}], "finish: found 'eos', expected stop or length"),
        (
            [{"response": "a", "gold": "3"}],
            (
                "1: answer: the reward exact needs one, but there is none of the fields answer, "
                "reward_model.ground_truth, solution;"
            ),
        ),
    ],
)
def test_samples_that_do_not_fit_are_named_by_file_and_line(
    tmp_path: Path, rows: list[Any], says: str
) -> None:
    result = of(tmp_path, rows)
    assert result.exit_code == 2
    assert says in result.output


def kept(run: Path, prompt: str, response: str) -> None:
    """Leaves a response of an evaluation in a run's folder."""
    line = {"prompt": prompt, "response": response, "reward": 0.0, "finish": "stop", "tokens": 2}
    (run / "samples").mkdir()
    (run / "samples" / "step-000003.jsonl").write_text(json.dumps(line) + "\n")


def test_the_samples_of_a_run_are_scored_with_the_answers_of_its_data(tmp_path: Path) -> None:
    from pipeline.tasks.chain_sums import generate

    [item, *_] = generate("held_out", 8)
    kept(tmp_path, item["prompt"], f"#{item['answer']}")
    command = ["reward", "try", CONFIG, "--samples", str(tmp_path), "data.held_out=8", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["summary"]["mean"] == 1.0


def test_the_responses_of_a_run_s_newest_step_are_scored_where_it_has_not_evaluated(
    tmp_path: Path,
) -> None:
    from pipeline.observability.rollout_files import RolloutFiles, RolloutLine
    from pipeline.tasks.chain_sums import generate

    [item, *_] = generate("train", 8)
    lines = [
        RolloutLine(step=4, group=0, prompt=0, id=number, fate="trained", finish="stop", tokens=2,
                    prompt_text=item["prompt"], pieces=((text, True),))
        for number, text in enumerate((f"#{item['answer']}", "#"))
    ]  # fmt: skip
    (tmp_path / "rollouts").mkdir()
    encoded = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    RolloutFiles(tmp_path / "rollouts", 1 << 20).append(4, encoded)
    command = ["reward", "try", CONFIG, "--samples", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert "2 of 2 scored, mean 0.500" in result.output
    assert result.output.endswith(f"{tmp_path}: rollouts of step 5\n")
    kept(tmp_path, "of another run", "#")
    result = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "rollouts")])
    assert "2 of 2 scored, mean 0.500" in result.output


def test_a_runs_reward_gets_messages_where_its_prompts_are(tmp_path: Path) -> None:
    message = {"role": "user", "content": "1+2="}
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": [message], "answer": "3"}) + "\n")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    kept(tmp_path, "1+2=", "#3")
    options = [
        "data.held_out=" + str(tmp_path / "asked.jsonl"),
        "data.chat_template=" + str(tmp_path / "chat.jinja"),
        "reward.python.function=tests.pipeline.workers.reward_functions:of_messages",
    ]
    command = ["reward", "try", CONFIG, "--samples", str(tmp_path), "--json", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["summary"]["mean"] == 1.0


# --- the best step --------------------------------------------------------------------------


def run_of(tmp_path: Path, best: str, *steps: int) -> Path:
    """A run that has checkpoints of these steps, and evaluations of four."""
    world = World(5, settings_of(), plugins_of("first_m"))
    world.start()
    world.run()
    run = tmp_path / "r"
    (run / "checkpoints").mkdir(parents=True)
    text = Path(CONFIG).read_text().replace('best: ""', f'best: "{best}"')
    text = text.replace("sets: {}", f"sets: {{aime: {run}/aime.jsonl}}")
    (run / "aime.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n')
    (run / "config.yaml").write_text(text.replace("models/", f"{Path.cwd()}/models/"))
    lines = [
        {"what": "eval", "step": step, "accuracy": 1 - step / 10, "sets": {"aime": {"accuracy": a}}}
        for step, a in ((0, 0.9), (1, 0.5), (2, 0.75), (3, 0.8))
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for step in steps:
        directory = store.begin_draft(run / "checkpoints", step)
        SYSTEM.mkdir(directory / "model")
        for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
            write_durably(SYSTEM, directory / "model" / name, str(step).encode())
        store.commit(directory, msgspec.structs.replace(world.cuts[-1], step=step), {})
    return run


def test_export_writes_the_best_step_that_has_a_checkpoint(tmp_path: Path) -> None:
    run = run_of(tmp_path, "aime/accuracy", 1, 2)
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out"), "--best"])
    assert result.exit_code == 0, result.output
    assert "aime/accuracy 0.750 at step 2" in result.stdout
    assert (tmp_path / "out" / "config.json").read_text() == "2"


@pytest.mark.parametrize("best, says", [("", "eval.best is empty"), ("accuracy", "none of the 4")])
def test_without_a_best_step_it_says_why(tmp_path: Path, best: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        best_checkpoint(run_of(tmp_path, best))
