"""`darts.train` and its siblings: real small jobs, and errors before anything starts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import darts
from darts import _rewards
from tests.launch.jobs.jobs import heed_ctrl_c
from tests.paths import ROOT

MODEL = ROOT / "models" / "chain-sums"
ROWS = [{"prompt": f"{n}+{n + 1}=", "answer": str(2 * n + 1)} for n in range(8)]
SMALL: dict[str, Any] = {
    "model": MODEL,
    "engine": "simulated",
    "step.prompts": 2,
    "group.size": 2,
    "sampling.max_tokens": 24,
    "advantage.grpo.drop_equal": False,
    "selector": "all",
    "budget.redundancy": 1,
    "learner.warmup_steps": 0,
}


def length_reward(sample: Any) -> float:
    return float(sample.tokens)


def in_a_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def collect() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    thread.join()
    [result] = found
    if isinstance(result, Exception):
        raise result
    return result


called_back: list[dict[str, Any]] = []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> darts.Run:
    out = tmp_path_factory.mktemp("darts") / "run"
    return in_a_thread(
        lambda: darts.train(
            data=ROWS,
            held_out=ROWS[:2],
            reward=length_reward,
            steps=1,
            out=out,
            on_step=called_back.append,
            on_eval=called_back.append,
            quiet=True,
            **SMALL,
        )
    )


pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
@pytest.mark.deepspeed
def test_rows_and_a_function_are_trained_on_off_the_main_thread(run: darts.Run):
    assert run.result["steps"] == 1
    assert run.result["tokens"]["trained"] > 0
    assert [line["what"] for line in run.metrics] == ["eval", "step", "eval"]
    assert run.metrics[1]["reward"] > 1, "the reward is that of the function"
    assert darts.Run(run.path).result == run.result
    assert [line["step"] for line in run.steps] == [0]
    assert [line["step"] for line in run.evaluations] == [0, 1]
    assert run.evaluation == run.metrics[-1]
    assert (run.config.step.count, run.config.learner.warmup_steps) == (1, 0)


@pytest.mark.slow
@pytest.mark.deepspeed
def test_callbacks_are_given_each_step_and_evaluation_as_it_is_on_file(run: darts.Run):
    on_file = [{k: v for k, v in line.items() if k != "time"} for line in run.metrics]
    assert called_back == on_file


class Pruned(Exception):
    pass


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_callback_that_raises_ends_the_run_with_a_checkpoint_and_is_raised(tmp_path: Path):
    def prune(step: dict[str, Any]) -> None:
        seen.append(step["step"])
        if step["step"] >= 1:
            raise Pruned("not promising")

    seen: list[int] = []
    more: dict[str, Any] = {**SMALL, "reward": length_reward, "quiet": True, "on_step": prune}
    with pytest.raises(Pruned, match="not promising") as caught:
        darts.train(data=ROWS, steps=100000, out=tmp_path / "run", **more)
    assert caught.value.__notes__ == [
        f"{tmp_path}/run: stopped; continue with darts.train(resume='{tmp_path}/run')"
    ]
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(seen) < 50, "it ended soon"


@pytest.mark.slow
@pytest.mark.deepspeed
def test_rows_are_kept_in_the_runs_folder_for_a_resume(
    run: darts.Run, capfd: pytest.CaptureFixture[str]
):
    kept = (run.path / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == ROWS
    with pytest.raises(darts.RunError, match=r"has finished its 1 steps; raise step\.count"):
        darts.train(resume=run.path)
    again = darts.train(resume=run.path, steps=2)
    assert again.path == run.path
    assert (again.result["steps"], again.config.step.count) == (2, 2)
    assert [line["step"] for line in again.steps] == [0, 1]
    said = capfd.readouterr().out
    assert "changed: step.count: 1 -> 2" in said
    assert "resuming" in said
    assert "step   2/2" in said, "it prints as `darts train` does"


@pytest.mark.slow
@pytest.mark.deepspeed
def test_export_writes_a_model_and_refuses_a_directory_that_is_there(
    run: darts.Run, tmp_path: Path
):
    written = run.export(tmp_path / "model")
    assert (written / "config.json").is_file()
    with pytest.raises(darts.RunError, match="already exists"):
        run.export(written)


@pytest.mark.slow
def test_evaluate_returns_the_figures_of_the_rows_and_needs_no_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    absent = tmp_path / "absent" / "deepspeed"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('no DeepSpeed on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", f"{absent.parent}:{ROOT}")
    found = darts.evaluate(data=ROWS, reward=length_reward, out=tmp_path / "e", quiet=True, **SMALL)
    assert found["samples"] == len(ROWS) * 4
    assert found["reward"] > 1
    assert sorted(path.name for path in (tmp_path / "e" / "logs").iterdir()) == [
        "e0.log",
        "stage.log",
    ], "there was no learner"


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_run_that_fails_raises_with_reason_status_and_folder(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def broken(sample):\n    raise ValueError('not today')\n")
    own: dict[str, Any] = {**SMALL, "step.tries": 40, "reward": f"{tmp_path}/broken.py:broken"}
    with pytest.raises(darts.RunError, match="not today") as caught:  # after 50 calls
        darts.train(data=ROWS, steps=1, out=tmp_path / "run", quiet=True, **own)
    assert caught.value.status == 1
    assert caught.value.path == tmp_path / "run"


SCRIPT = """
import sys
import darts

def by_length(sample):
    return float(sample.tokens)

if __name__ == "__main__":
    darts.train(reward=by_length, steps=100000, out=sys.argv[1], **{settings})
    print("it went on")
"""


@pytest.mark.slow
@pytest.mark.deepspeed
def test_ctrl_c_in_a_script_stops_its_run_with_a_checkpoint(tmp_path: Path):
    script, out = tmp_path / "script.py", tmp_path / "run"
    settings = {**SMALL, "model": str(MODEL), "data": ROWS}
    script.write_text(SCRIPT.replace("{settings}", repr(settings)))
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509  one call, no locks
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("step "):
                break
        process.send_signal(signal.SIGINT)
        said += process.stdout.read()
    assert "KeyboardInterrupt: " in said, said
    assert f"continue with darts.train(resume='{out}')" in said
    assert "it went on" not in said
    assert list((out / "checkpoints").glob("step-*"))


# --- before anything starts -------------------------------------------------------------------


def refused(tmp_path: Path, **given: Any) -> str:
    """The message of what `train` refuses; nothing is left of it."""
    out = tmp_path / "refused"
    settings: dict[str, Any] = {**SMALL, "data": ROWS, **given}
    with pytest.raises((darts.ConfigError, darts.RunError, TypeError, ValueError)) as caught:
        darts.train(out=out, quiet=True, **settings)
    assert not out.exists()
    return str(caught.value)


def test_every_problem_of_the_settings_is_said_and_no_folder_is_left(tmp_path: Path):
    said = refused(tmp_path, **{"group.size": "many", "stp": 3})
    assert "group.size: found 'many', expected a whole number" in said
    assert "stp: unknown key; did you mean step?" in said


def test_data_that_a_run_could_not_read_is_refused(tmp_path: Path):
    assert "prompt" in refused(tmp_path, data=[{"question": "1+1="}], reward=length_reward)
    assert "row 1 of the data is 'x', expected a dict" in refused(tmp_path, data=[ROWS[0], "x"])
    assert "row 0 of the data: prompt is bytes" in refused(tmp_path, data=[{"prompt": b"1+1="}])
    assert "the data has no rows" in refused(tmp_path, data=[])


def test_a_function_that_no_process_can_import_is_refused_with_the_cure(tmp_path: Path):
    cure = "reward='rewards.py:"

    def local(sample: Any) -> float:
        return 1.0

    assert "is a lambda" in refused(tmp_path, reward=lambda sample: 1.0)
    said = refused(tmp_path, reward=local)
    assert "is defined inside another function" in said
    assert f"{cure}local'" in said
    assert "a method of an object" in refused(tmp_path, reward=Holder().score_it)
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("def typed(sample):\n    return 1.0", "<cell>", "exec"), typed)
    assert "typed was typed in and is in no file, and Python has not kept its source; write" in (
        refused(tmp_path, reward=typed["typed"])
    )


class Holder:
    def score_it(self, sample: Any) -> float:
        return 1.0


def test_functions_are_named_by_module_or_by_file(tmp_path: Path, monkeypatch: Any):
    assert _rewards.importable_name(length_reward) == f"{__name__}:length_reward"
    (tmp_path / "beside.py").write_text("def mine(sample):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)  # as a script's folder is: other processes lack it
    import beside  # type: ignore[import-not-found]

    assert _rewards.importable_name(beside.mine) == f"{tmp_path}/beside.py:mine"
    both = _rewards.reward_overrides([length_reward, "a.py:b"], tmp_path)
    assert both == [f'reward={{"python": {{"function": ["{__name__}:length_reward", "a.py:b"]}}}}']
    assert _rewards.reward_overrides("math", tmp_path) == ["reward=math"]
    assert _rewards.reward_overrides({"exact": {"marker": "#"}}, tmp_path) == [
        'reward={"exact": {"marker": "#"}}'
    ]


def test_a_file_that_starts_its_run_when_imported_is_refused(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import darts

        def mine(sample):
            return 1.0

        darts.train(model={str(MODEL)!r}, data={ROWS!r}, reward=mine, steps=1)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'put the call under `if __name__ == "__main__":`' in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused_and_kept(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("model: x\n")
    with pytest.raises(darts.RunError, match="already holds a run") as caught:
        darts.train(data=ROWS, out=tmp_path, **SMALL)
    assert caught.value.status == 2
    assert (tmp_path / "config.yaml").exists()


def test_resume_takes_only_what_it_may_change_and_needs_a_checkpoint(tmp_path: Path):
    with pytest.raises(ValueError, match="may change, found model, reward "):
        darts.train(resume=tmp_path, model=MODEL, reward=length_reward, steps=3)
    with pytest.raises(darts.RunError) as caught:
        darts.train(resume=tmp_path / "none")
    assert caught.value.status == 2
    with pytest.raises(darts.RunError, match="no result"):
        darts.Run(tmp_path).result  # noqa: B018


def test_checks_run_beside_a_running_event_loop(tmp_path: Path):
    """As in a notebook's cell."""

    async def cell() -> str:
        return refused(tmp_path, reward="math", data=[{"prompt": "1+1=", "answer": "#"}])

    assert "1 of 1 checked answers" in asyncio.run(cell())


# --- settings and the simulator -----------------------------------------------------------------


def test_load_config_takes_files_dicts_and_keywords():
    config = darts.load_config(
        ROOT / "configs/quickstart.yaml", seed=3, step={"count": 7}, **{"learner.lora": None}
    )
    assert (config.seed, config.step.count, config.step.prompts) == (3, 7, 16)
    again = darts.load_config({"model": MODEL, "sampling": {"max_tokens": 9}}, selector="all")
    assert (again.sampling.max_tokens, again.selector.name) == (9, "all")
    assert darts.load_config(config) == config
    assert darts.load_config(config, seed=4).seed == 4


def test_simulate_returns_means_and_steps():
    sizes: dict[str, Any] = {"engine.count": 2, "sampling.max_tokens": 512}
    found = darts.simulate(step={"count": 2, "prompts": 8}, median=100.0, **sizes)
    assert len(found["steps"]) == 2
    assert found["metrics"]["step_s"] > 0
    with pytest.raises(ValueError, match="device is 'tpu', expected one of h20"):
        darts.simulate(device="tpu")
