"""What the command says and does before anything starts."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from launch.cli import app
from launch.commands.train import create_run, identify, start_run
from pipeline.config.load import load
from pipeline.config.schema import Config
from pipeline.system.run_folder import RunError, RunFolder
from tests.paths import ROOT

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def darts(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory: whatever is left there was left by the command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_help_loads_neither_torch_nor_anything_else_that_is_slow() -> None:
    code = "from typer.testing import CliRunner\nimport launch.cli\n"
    code += "assert CliRunner().invoke(launch.cli.app, ['--help']).exit_code == 0"
    slow = {"torch", "vllm", "deepspeed", "transformers", "tokenizers", "numpy", "zmq", "pipeline"}
    assert not modules_after(code) & slow


def test_help_names_every_command() -> None:
    result = darts("--help")
    assert result.exit_code == 0
    assert "Others:" not in result.output, "every command has a section"
    for command in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"\n  {command} " in result.output
    sections = ["Train:", "Before a run:", "While it runs:", "What it did:"]
    places = [result.output.index(section) for section in sections]
    assert places == sorted(places)


@pytest.mark.parametrize("arguments", [["-h"], ["train", "-h"], ["data", "check", "-h"]])
def test_h_is_help_everywhere(arguments: list[str]) -> None:
    result = darts(*arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_version_is_that_of_the_package() -> None:
    assert darts("--version").output == f"darts {version('darts-rl')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_darts(shell: str) -> None:
    script = darts("completion", shell).output
    assert "_DARTS_COMPLETE=complete_" in script
    assert darts("completion", "csh").exit_code == 2


def test_darts_answers_a_shell_that_completes() -> None:
    asked = {**os.environ, "_DARTS_COMPLETE": "complete_bash", "COMP_WORDS": "darts ex",
             "COMP_CWORD": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli"], env=asked, cwd=ROOT, capture_output=True, text=True
    )
    assert sorted(done.stdout.split()) == ["explain", "export"]


def test_without_a_command_it_shows_help() -> None:
    assert "Before a run:" in darts().output


def test_dry_run_prints_what_would_run_and_starts_nothing(elsewhere: Path) -> None:
    result = darts("train", QUICKSTART, "--dry-run", "step.prompts=32", "selector=dual_end")
    assert result.exit_code == 0, result.output
    assert "nothing was started" in result.output
    assert "training: " in result.output
    assert list(elsewhere.iterdir()) == []


def test_what_dry_run_prints_is_a_configuration_that_means_the_same(elsewhere: Path) -> None:
    overrides = ["step.prompts=32", "selector=dual_end", "seed=7"]
    printed = darts("train", QUICKSTART, "--dry-run", *overrides).output
    text = printed[: printed.index("\ntraining: ")]
    text = text[: text.rindex("\nmodel: ")]  # the lines of what was checked follow
    (elsewhere / "again.yaml").write_text(text)
    assert load(elsewhere / "again.yaml", ()) == load(Path(QUICKSTART), overrides)


@pytest.mark.fault("a configuration with several problems", part="configuration", by="file")
def test_all_problems_of_a_configuration_come_at_once_with_exit_2() -> None:
    """Promise: status 2, with all of them by key.
    Bound: before anything starts.
    """
    result = darts(
        "train",
        QUICKSTART,
        "step.prompts=0",
        "learner.zero=7",
        "selektor=dual_end",
        "reward=exakt",
    )
    assert result.exit_code == 2
    assert "4 problems in the configuration" in result.output
    for key in ("step.prompts", "learner.zero", "selektor", "reward"):
        assert key in result.output


def test_a_configuration_that_is_not_there_is_named_with_exit_2() -> None:
    result = darts("train", "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.output


def test_train_without_a_configuration_says_what_to_type() -> None:
    result = darts("train")
    assert result.exit_code == 2
    assert "darts train configs/quickstart.yaml" in result.output


def test_a_model_that_is_not_there_is_named_with_exit_2() -> None:
    result = darts("train", QUICKSTART, "model=models/none", "--dry-run")
    assert result.exit_code == 2
    assert "models/none" in result.output


def test_resume_takes_the_folder_and_settings() -> None:
    for more in (["--out", "x"], [QUICKSTART], [QUICKSTART, "seed=1"], ["--dry-run"]):
        result = darts("train", *more, "--resume", "runs/a")
        assert result.exit_code == 2
        assert "--resume takes the run's folder, and other settings as key=value" in result.output
    result = darts("train", "--resume", "runs/none", "step.count=3", "seed=1")
    assert "runs/none/config.yaml: cannot be read" in result.output, "both are settings"


def folder_with_a_config(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.make_folders()
    run.config.write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    model = ROOT / "models"
    (path.parent / "models").symlink_to(model)
    return run


@pytest.mark.fault("a resume without a checkpoint", part="checkpoints", by="file")
def test_resume_of_a_folder_without_a_checkpoint_exits_5_and_begins_nothing(
    elsewhere: Path,
) -> None:
    """Promise: status 5, and nothing is written but the lock and its owner.
    Bound: before anything starts.
    """
    run = folder_with_a_config(elsewhere / "r")
    before = sorted(p.name for p in run.path.rglob("*"))
    result = darts("train", "--resume", "r")
    assert result.exit_code == 5, result.output
    assert "no complete checkpoint" in result.output
    left = sorted(p.name for p in run.path.rglob("*"))
    assert set(left) - set(before) <= {"lock", "owner.json"}


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_resume_of_what_is_no_run_exits_2_with_a_sentence(folder: str) -> None:
    result = darts("train", "--resume", folder)
    assert result.exit_code == 2
    assert "darts: " in result.output
    assert "Traceback" not in result.output


def test_a_home_that_the_shell_has_left_in_a_path_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/nowhere/config.yaml" in darts("train", "--resume=~/nowhere").output
    assert (
        "~nobody-of-this-name/x/config" in darts("train", "--resume=~nobody-of-this-name/x").output
    )


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.system.run_folder import RunError, RunFolder
run = RunFolder(Path(sys.argv[1])); run.make_folders(); run.hold_lock()
print("held", flush=True); time.sleep(60)
"""


@pytest.mark.fault("a second run in the same folder", part="people", by="process")
def test_a_second_run_in_the_same_folder_is_refused_and_told_of_the_first(
    elsewhere: Path,
) -> None:
    """Promise: status 2 with the first one's process, and no configuration is written.
    Bound: before anything starts.
    """
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(elsewhere / "r")],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == b"held\n"
        result = darts("train", QUICKSTART, "--out", "r")
        assert result.exit_code == 2
        assert f"in use by process {first.pid}" in result.output
        assert not (elsewhere / "r" / "config.yaml").exists()
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


@pytest.mark.fault("a new run in the folder of an old one", part="people", by="file")
def test_a_folder_that_holds_a_run_already_is_not_written_over(elsewhere: Path) -> None:
    """Promise: status 2 with the command that resumes; the old configuration is unchanged.
    Bound: before anything starts.
    """
    run = folder_with_a_config(elsewhere / "r")
    content = run.config.read_text()
    result = darts("train", QUICKSTART, "--out", "r", "seed=9")
    assert result.exit_code == 2
    assert "already holds a run; choose another --out" in result.output, "it has no checkpoint"
    (run.checkpoints / "step-000001").mkdir(parents=True)
    result = darts("train", QUICKSTART, "--out", "r", "seed=9")
    assert result.exit_code == 2
    assert "resume it with darts train --resume" in result.output
    assert run.config.read_text() == content


@pytest.mark.fault("a start has failed, and is tried again in the same folder", part="people",
                   by="file")  # fmt: skip
def test_what_a_failed_start_has_left_blocks_no_other(elsewhere: Path) -> None:
    """Promise: a folder whose run has neither a checkpoint nor a step is used again; one with a
    step, or with a config.yaml of somebody's own, is not. Bound: before anything starts.
    """
    run = folder_with_a_config(elsewhere / "r")
    with pytest.raises(RunError, match="already holds a run"):
        create_run(run.path, fresh=False)  # nothing shows that the file is of a run
    run.about.write_text("{}")
    run.metrics.write_text('{"what":"warning","text":"no engine"}\n')
    create_run(run.path, fresh=False).release_lock()
    assert run.metrics.read_text() == ""
    run.metrics.write_text('{"what":"step","step":0}\n')
    with pytest.raises(RunError, match="already holds a run"):
        create_run(run.path, fresh=False)


@pytest.mark.fault("a disk that is full when a run is started", part="disk", by="file")
@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_start_that_found_no_room_blocks_no_other(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Promise: whichever of its first files found no room, the same command starts a run when there
    is room again.
    Bound: before anything starts.
    """
    config, left = load(Path(QUICKSTART), []), [None] * writes

    def full(real: Callable[..., Any]) -> Callable[..., Any]:
        def until_full(*arguments: Any, **options: Any) -> Any:
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left.pop()
            return real(*arguments, **options)

        return until_full

    run = create_run(elsewhere / "r", fresh=False)
    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full(Path.write_bytes))
        disk.setattr(os, "fsync", full(os.fsync))
        with pytest.raises(OSError, match="No space left"):
            identify(run, config)
    run.release_lock()
    again = create_run(elsewhere / "r", fresh=False)
    identify(again, config)
    again.release_lock()
    assert load(again.config) == config


def test_a_start_that_found_no_room_is_told_with_the_status_of_one_that_was_refused(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(run: RunFolder, _: Config) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.about))

    monkeypatch.setattr("launch.commands.train.identify", full)
    assert start_run(load(Path(QUICKSTART), []), elsewhere / "r", fresh=False) == 2
    assert str(elsewhere / "r" / "about.json") in capsys.readouterr().err
    create_run(elsewhere / "r", fresh=False).release_lock()  # it holds nobody up


@pytest.mark.fault("the port for Prometheus is taken", part="configuration", by="socket")
def test_trackers_that_cannot_be_had_are_named_before_anything_starts(elsewhere: Path) -> None:
    """Promise: status 2 by its key, and nothing is written.
    Bound: before anything starts.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = darts("train", QUICKSTART, f"metrics.prometheus_port={port}")
    assert result.exit_code == 2
    assert f"metrics.prometheus_port: cannot listen on 127.0.0.1:{port}" in result.output
    assert list(elsewhere.iterdir()) == []


def test_eval_evaluates_also_where_training_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Config] = []

    def start(config: Config, *_: object) -> int:
        started.append(config)
        return 0

    monkeypatch.setattr("launch.commands.train.start_run", start)
    result = darts("eval", QUICKSTART, "eval.every=0")
    assert result.exit_code == 0, result.output
    assert [(config.step.count, config.eval.every) for config in started] == [(0, 1)]


@pytest.mark.parametrize("part", [["engine", "--name", "e9"], ["learner"]])
def test_a_part_that_joins_nothing_is_told_what_the_address_is(part: list[str]) -> None:
    result = darts(*part, "--join", "nowhere")
    assert result.exit_code == 2
    assert "folder of a running job" in result.output


def test_export_of_what_is_no_run_exits_1_with_a_sentence(elsewhere: Path) -> None:
    result = darts("export", "nowhere", "out")
    assert result.exit_code == 1
    assert "no complete checkpoint" in result.output
    assert not (elsewhere / "out").exists()


def test_config_schema_prints_the_schema_of_every_setting_and_option() -> None:
    result = darts("config", "schema")
    assert result.exit_code == 0
    assert json.loads(result.output)["properties"]["seed"]["maximum"] == 2**31 - 1
    assert result.output == (ROOT / "configs" / "schema.json").read_text()
    assert "darts config schema > schema.json" in darts("config", "schema", "--help").output


@pytest.mark.parametrize("group", ["", "data", "reward", "config", "bench"])
def test_summaries_of_help_are_whole_in_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = darts(*filter(None, [group]), "--help").output.partition("ARGS]...")[2]
    assert [line for line in listed.splitlines() if line.endswith("...")] == []


def test_plugins_lists_one_kind_within_the_terminal_s_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = darts("plugins", "selector").output
    assert shown.startswith("selector:")
    assert "  first_m " in shown
    assert "budget:" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    wrong = darts("plugins", "selectors")
    assert wrong.exit_code == 2
    assert "did you mean selector?" in wrong.output


def test_plugins_lists_every_seam_with_options_and_their_defaults() -> None:
    result = darts("plugins")
    assert result.exit_code == 0
    for kind in ("prompt_order", "budget", "selector", "batch", "reward", "advantage", "loss"):
        assert f"{kind}:\n" in result.output
    assert "dual_end" in result.output
    assert "redundancy = 1.5: " in result.output


@pytest.mark.fault("SIGTERM before anything is started", part="people", by="process")
def test_sigterm_ends_a_command_as_ctrl_c_does_before_a_run_takes_it() -> None:
    """Promise: status 130, as at Ctrl-C, and no traceback. Bound: at once, not after 60 s."""
    code = (
        "import os, signal, sys, time\n"
        "from launch import cli\n"
        "def reading(*_):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "cli.load_config = reading\n"
        "sys.argv = ['darts', 'train', 'mine.yaml']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.fault("SIGTERM once more, when all is done", part="people", by="process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_on_the_way_out_changes_no_status(number: signal.Signals) -> None:
    """Promise: the status is the one that was decided, and nothing is printed. Bound: at once."""
    code = (
        "import atexit, os, sys\n"
        "from launch import cli\n"
        f"atexit.register(os.kill, os.getpid(), {number:d})\n"
        "sys.argv = ['darts', 'train', 'not-there.yaml']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "not-there.yaml" in done.stderr
    assert "KeyboardInterrupt" not in done.stderr


STARTED = """
import os, sys
from launch import cli
if len(sys.argv) > 1:
    for number in range(3):
        os.close(number)
    del sys.argv[1:]
def reading(*_):
    ours, theirs = os.pipe()
    with open(os.environ["SEEN"], "w") as seen:
        print(min(ours, theirs), sys.flags.utf8_mode, os.environ.get("PYTHONIOENCODING"), file=seen)
    raise SystemExit(0)
cli.load_config = reading
sys.argv += ["train", "mine.yaml"]
cli.main()
"""


@pytest.mark.fault("a command is started with its standard streams closed", part="people",
                   by="process")  # fmt: skip
def test_nothing_of_a_run_gets_the_number_of_a_closed_standard_stream(tmp_path: Path) -> None:
    """Promise: no socket or file of the run gets the number of one, in which libraries would print.
    Bound: before anything is opened.
    """
    seen = tmp_path / "seen"
    words = [sys.executable, "-P", "-c", STARTED, "closed"]
    subprocess.run(words, cwd=ROOT, env={**os.environ, "SEEN": str(seen), "PYTHONPATH": str(ROOT)},
                   check=True)  # fmt: skip
    assert int(seen.read_text().split()[0]) > 2


@pytest.mark.fault("PYTHONPATH leads to packages named as those of darts", part="people",
                   by="process")  # fmt: skip
def test_a_project_with_packages_of_our_names_is_not_taken_for_darts(elsewhere: Path) -> None:
    """Promise: the command uses its own, and so does all that it starts. Bound: at its start."""
    for name in ("pipeline", "engines"):
        (elsewhere / name).mkdir()
        (elsewhere / name / "__init__.py").write_text("raise RuntimeError('of the project')")
    (elsewhere / "learner.py").write_text("raise RuntimeError('of the project')")
    code = (
        "import subprocess, sys\n"
        "from launch import cli\n"
        "words = [sys.executable, '-P', '-c', 'import pipeline, engines, learner']\n"
        "sys.exit(subprocess.run(words).returncode)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{elsewhere}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.fault("the current folder is removed", part="people", by="file")
def test_a_command_in_a_folder_that_is_gone_says_so(elsewhere: Path) -> None:
    """Promise: status 2, and nothing is started. Bound: at once."""
    code = "import os; os.rmdir(os.getcwd()); from launch import cli; cli.main()"
    (elsewhere / "gone").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=elsewhere / "gone", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("darts: the current folder was removed")


@pytest.mark.fault("a locale of ASCII", part="people", by="process")
def test_in_a_locale_of_ascii_names_and_text_are_utf_8_and_the_terminal_stays_as_it_is(
    tmp_path: Path,
) -> None:
    """Promise: names of files and what is read and written are UTF-8, as elsewhere; the terminal
    gets its own encoding. Bound: before anything is read.
    """
    seen = tmp_path / "seen"
    environment = {
        **os.environ, "SEEN": str(seen), "PYTHONPATH": str(ROOT), "LC_ALL": "C",
        "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
    }  # fmt: skip
    subprocess.run([sys.executable, "-P", "-c", STARTED], cwd=ROOT, env=environment, check=True)
    assert seen.read_text().split()[1:] == ["1", "ascii:backslashreplace"]
