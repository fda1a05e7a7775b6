"""A selector from a separate distribution: installed, named, run; and never loaded unnamed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

SOURCE = Path(__file__).parent / "darts_example_selector"
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def darts(*arguments: str, site: Path, limit_s: float = 100) -> subprocess.CompletedProcess[str]:
    """The `darts` command of this tree, with `site` as one more place of installed packages."""
    command = [str(Path(sys.prefix) / "bin" / "darts"), *arguments]
    env = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit_s
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example distribution, built and installed as pip does it, without a network."""
    target = tmp_path_factory.mktemp("site")
    # uv_build looks its program up on PATH.
    env = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    install = ("install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target")
    command = [sys.executable, "-m", "pip", *install, str(target), str(SOURCE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_installed_selector_resolves_by_its_entry_point_name_with_options(site: Path):
    done = darts("train", QUICKSTART, "--dry-run", "selector.quickest.spare=2", "seed=3", site=site)
    assert done.returncode == 0, done.stderr
    assert "selector:\n  quickest:\n    spare: 2\n" in done.stdout
    assert "nothing was started" in done.stdout


def test_installed_selector_resolves_by_package_module_and_class(site: Path):
    name = "darts_example_selector:Quickest"
    done = darts("train", QUICKSTART, "--dry-run", f"selector={name}", site=site)
    assert done.returncode == 0, done.stderr
    assert f"{name}:\n    spare: 0\n" in done.stdout.replace("'", "").replace("? ", "")


def test_options_of_an_installed_selector_are_checked_before_anything_starts(site: Path):
    done = darts("train", QUICKSTART, "--dry-run", "selector.quickest.spare=-1", site=site)
    assert done.returncode == 2
    assert "selector.quickest.spare: found -1, expected at least 0" in done.stderr


def test_installed_selector_is_listed_with_the_distribution_that_brought_it(site: Path):
    done = darts("plugins", site=site)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.strip().startswith("quickest")]
    assert "darts-example-selector" in line
    assert "darts_example_selector:Quickest" in line


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.timeout(400)
def test_real_job_runs_with_an_installed_selector_named_on_the_command_line(
    site: Path, tmp_path: Path
):
    run = tmp_path / "run"
    settings = (
        "selector=quickest",
        "engine.kind=simulated",  # random tokens: every reward is 0, so
        "advantage.grpo.drop_equal=false",  # groups without a signal are kept
        "step.count=1",
        "step.prompts=2",
        "group.size=2",
        "sampling.max_tokens=24",
        "data.held_out=0",
        "eval.every=0",
        "checkpoint.every=0",
        "learner.warmup_steps=0",
    )
    done = darts("train", QUICKSTART, *settings, "--out", str(run), site=site, limit_s=380)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    why = [line["why"] for line in lines if line["what"] == "decision"]
    assert why
    assert all(text.startswith("the 2 quickest of ") for text in why)
    trained = [g for g in lines if g["what"] == "group" and g["fate"] == "trained"]
    assert len(trained) == 2
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 1
    assert result["tokens"]["trained"] > 0


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """An installed plug-in whose module must not be imported."""
    (tmp_path / "booby_trapped.py").write_text("raise RuntimeError('the trap is sprung')\n")
    info = tmp_path / "booby_trapped-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: booby-trapped\nVersion: 1.0\n")
    groups = (
        "prompt_orders",
        "budgets",
        "selectors",
        "batch_rules",
        "rewards",
        "advantages",
        "losses",
    )
    points = "".join(f"[darts.{group}]\ntrap = booby_trapped:Trap\n" for group in groups)
    (info / "entry_points.txt").write_text(points)
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [("--help",), ("plugins",), ("train", QUICKSTART, "--dry-run")], ids=str
)
def test_installed_plugin_that_the_config_does_not_name_is_never_imported(
    trapped: Path, arguments: tuple[str, ...]
):
    done = darts(*arguments, site=trapped)
    assert done.returncode == 0, done.stderr
    assert "the trap is sprung" not in done.stdout + done.stderr
    if arguments == ("plugins",):
        assert done.stdout.count("booby-trapped (booby_trapped:Trap)") == 7


def test_named_plugin_is_imported_and_its_failure_is_shown(trapped: Path):
    done = darts("train", QUICKSTART, "--dry-run", "selector=trap", site=trapped)
    assert done.returncode != 0
    assert "the trap is sprung" in done.stderr
