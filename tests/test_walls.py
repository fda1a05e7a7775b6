"""Walls between rooms: who may import whom, what decides without a clock, what is never used."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "engines", "learner", "launch", "darts")
HEAVY = ("torch", "vllm", "deepspeed", "transformers")
# Room of pipeline/ -> the rooms of pipeline/ that it may import, and nothing else of ours.
MAY_IMPORT = {
    "redaction": "",
    "system": "redaction",
    "wire": "system",
    "plugins": "redaction",
    "hardware": "",
    "tasks": "",
    "config": "hardware plugins redaction system tasks",
    "data": "config plugins system tasks",
    "workers": "config plugins redaction system",
    "coordinator": "hardware plugins wire.messages wire.fields",
    "checkpoint": "config coordinator data plugins system wire",
    "observability": "config coordinator plugins system wire",
    "simulation": "coordinator hardware plugins wire",
    "recording": "config coordinator plugins system wire",
    "stage": "checkpoint config coordinator data hardware observability plugins recording system "
    "wire workers",
}
# Package -> the rooms of pipeline/ that it may import.
PEERS = {
    "engines": "wire config hardware system",
    "learner": "wire config hardware system plugins",
}
# What decides: (event, now) -> commands. Shells around it hold clocks and sockets. A file
# elsewhere that calls itself pure, by the last word of its docstring, is held to it as well.
DECIDES = (
    "pipeline/coordinator/*.py",
    "pipeline/hardware/*.py",
    "pipeline/simulation/*.py",
    "pipeline/plugins/[aiv]*.py",  # actions, interfaces, views
    "pipeline/plugins/selectors/*.py",
    "pipeline/plugins/budgets/*.py",
    "pipeline/plugins/batch_rules/*.py",
    "pipeline/plugins/advantages/*.py",
    "pipeline/plugins/prompt_orders/*.py",
)
SHELL_MODULES = re.findall(
    r"\w+",
    """time datetime socket os sys zmq asyncio threading multiprocessing subprocess select signal
    tempfile shutil pathlib secrets uuid uvloop""",
)


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything that is imported, at any depth; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`np.random.rand` as text; '' for anything that is not a chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Of what is no chain of names (`cast(Any, Model).load`) the last name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            last = f".{node.func.attr}" if isinstance(node.func, ast.Attribute) else ""
            yield dotted(node.func) or last, node


# --- who imports whom -----------------------------------------------------------------------


def loaded_by(module: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after one import."""
    code = f"import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def decides() -> list[Path]:
    by_room = {path for pattern in DECIDES for path in ROOT.glob(pattern)}
    pure = {path for path in sources(*PACKAGES) if calls_itself_pure(tree_of(path))}
    return sorted(by_room | pure)


def calls_itself_pure(tree: ast.Module) -> bool:
    return bool(re.search(r"\bPure\.$", ast.get_docstring(tree) or ""))


def test_importing_all_that_decides_leaves_torch_vllm_and_deepspeed_unloaded():
    together = ", ".join(dict.fromkeys(module_of(path) for path in decides()))
    assert loaded_by(f"pipeline, {together}") & {*HEAVY, "zmq", "uvloop"} == set()


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.stage",
        "launch.cli",
        "launch.commands.train",
        "launch.torchrun",
        "engines.worker",
        "learner.learner_rank",
    ],
)
def test_importing_a_command_or_the_head_of_a_process_stays_light(module: str):
    assert loaded_by(module) & set(HEAVY) == set()


def test_checking_a_configuration_loads_no_torch():
    code = "pipeline.config.load; pipeline.config.load.load(__import__('pathlib').Path("
    assert loaded_by(code + "'configs/quickstart.yaml'))") & set(HEAVY) == set()


def test_pipeline_imports_neither_engines_nor_learner_nor_what_they_are_made_of():
    found = {
        f"{name_of(path)}: {name}"
        for path in sources("pipeline")
        for name in imports(tree_of(path))
        if name.split(".")[0] in ("engines", "learner", *HEAVY)
    }
    assert found == set()


def rooms_of_pipeline_in(path: Path) -> Iterator[tuple[str, str]]:
    """(name, room) of everything of pipeline/ that a file imports."""
    for name in imports(tree_of(path)):
        first, _, rest = name.partition(".")
        if first == "pipeline":
            yield name, rest.split(".")[0]


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_of_pipeline_imports_no_room_above_it(room: str):
    allowed = {f"pipeline.{name}" for name in (room, *MAY_IMPORT[room].split())}
    found = {
        f"{name_of(path)}: {name}"
        for path in (ROOT / "pipeline" / room).rglob("*.py")
        for name, _ in rooms_of_pipeline_in(path)
        if not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)
    }
    assert found == set()


def test_every_room_of_pipeline_has_a_rule_and_rules_make_no_circle():
    rooms = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert rooms == set(MAY_IMPORT)
    rules = {room: {n.split(".")[0] for n in names.split()} for room, names in MAY_IMPORT.items()}
    assert circle_in(rules) == []


def circle_in(arrows: Mapping[str, Collection[str]]) -> list[str]:
    """The names along one circle, in order; empty if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1][::-1]  # each imports the one before it
    return []


def test_a_circle_is_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_file_imports_another_that_imports_it_types_included():
    known = {module_of(path) for path in sources(*PACKAGES)}
    arrows: dict[str, set[str]] = {}
    for path in sources(*PACKAGES):
        found = {
            name if name in known else name.rpartition(".")[0] for name in imports(tree_of(path))
        }
        arrows[module_of(path)] = (found & known) - {module_of(path)}
    assert circle_in(arrows) == []


@pytest.mark.parametrize("package", sorted(PEERS))
def test_engines_and_learner_know_only_the_wire_and_their_settings(package: str):
    other = {"engines": "learner", "learner": "engines"}[package]
    for path in sources(package):
        for name in imports(tree_of(path)):
            assert name.split(".")[0] != other, f"{name_of(path)} imports {name}"
        for name, room in rooms_of_pipeline_in(path):
            assert room in PEERS[package].split(), f"{name_of(path)} imports {name}"


def test_nothing_imports_launch_but_launch_and_the_face_for_users():
    found = {
        f"{name_of(path)}: {name}"
        for path in sources("pipeline", "engines", "learner", "launch")
        for name in imports(tree_of(path))
        if name.split(".")[0] in ("launch", "darts")
        and not (name.startswith("launch") and path.is_relative_to(ROOT / "launch"))
    }
    assert found == set()


def test_only_the_wire_imports_zmq():
    found = {
        name_of(path) for path in sources(*PACKAGES, "scripts") if "zmq" in top_level(tree_of(path))
    }
    assert found
    assert {name for name in found if not name.startswith("pipeline/wire/")} == set()


def top_level(tree: ast.Module) -> set[str]:
    return {name.split(".")[0] for name in imports(tree)}


# --- what decides ----------------------------------------------------------------------------


def side_effects(tree: ast.Module) -> list[str]:
    """Uses of a clock, a socket, the environment, files, or randomness without a seed."""
    found = sorted(top_level(tree) & set(SHELL_MODULES))
    for name, call in calls(tree):
        seeded = bool(call.args or call.keywords)
        plain = name in ("open", "print", "input", "hash", "__import__")  # hash: by process
        drawn = re.match(r"(random|np\.random|numpy\.random)\.", name) is not None
        maker = name.endswith((".Random", ".default_rng", ".Philox", ".PCG64", ".Generator"))
        if plain or (drawn and not (maker and seeded)):
            found.append(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
            found.append(f"from {node.module} import")  # by module name, so that the rule sees it
    return found


@pytest.mark.parametrize("path", decides(), ids=name_of)
def test_what_decides_uses_no_clock_socket_environment_or_unseeded_randomness(path: Path):
    assert side_effects(tree_of(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "from os import environ",
        "import random\nrandom.shuffle([])",
        "import random\nrandom.Random()",
        "import numpy as np\nnp.random.default_rng()",
        "import numpy as np\nnp.random.rand(3)",
        "from random import shuffle",
        "hash('a')",
    ],
)
def test_rule_for_what_decides_sees_an_offence(code: str):
    assert side_effects(ast.parse(code))


# --- what is never used ----------------------------------------------------------------------

# (file, use) -> why it is safe.
ALLOWED: dict[tuple[str, str], str] = {
    ("launch/simulate/fuzz.py", "multiprocessing"): "own children, of a command that reads "
    "nothing from anybody: seeds go in, outcomes of the simulation come out",
}
UNSAFE_MODULES = (
    *("pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"),
    *("multiprocessing", "pebble", "concurrent.futures.process"),  # pickle what they pass on
)
UNSAFE_CALLS = (
    *("eval", "exec", "builtins.eval", "builtins.exec", "compile", "os.system", "os.popen"),
    *("yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "runpy.run_path"),
)
UNSAFE_NAMES = ("recv_pyobj", "send_pyobj", "recv_serialized", "ProcessPoolExecutor")


def unsafe(tree: ast.Module) -> list[str]:
    """Ways by which a file or a frame could become code."""
    known = {*imports(tree), *top_level(tree)}
    found = [m for m in UNSAFE_MODULES if any(f"{name}.".startswith(f"{m}.") for name in known)]
    for node in ast.walk(tree):
        words = [getattr(node, field, None) for field in ("id", "attr", "value", "name")]
        found += [name for name in UNSAFE_NAMES if name in words]
    for name, call in calls(tree):
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if (
            name in UNSAFE_CALLS
            or (name == "yaml.load" and "SafeLoader" not in ast.unparse(call))
            or (name == "torch.load" and given.get("weights_only") != "True")
        ):
            found.append(name)
        if name.endswith("from_pretrained") or name == "AsyncEngineArgs":
            if given.get("trust_remote_code") != "False":  # not given, transformers may ask
                found.append(f"{name} without trust_remote_code=False")
        found += [
            f"{key}=True"
            for key in ("trust_remote_code", "allow_pickle", "shell")
            if given.get(key, "False") != "False"
        ]
    return found


@pytest.mark.parametrize("package", [*PACKAGES, "scripts"])
def test_nothing_read_from_a_file_or_a_socket_becomes_code(package: str):
    found = {(name_of(path), use) for path in sources(package) for use in unsafe(tree_of(path))}
    assert found - set(ALLOWED) == set()
    assert {key for key in ALLOWED if key[0].startswith(f"{package}/")} - found == set()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path)",
        "cast(Any, AutoModel).from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "socket.recv_pyobj()",
        "read = getattr(socket, 'recv_pyobj')",
        "import multiprocessing.connection",
        "from concurrent.futures import ProcessPoolExecutor",
        "exec(compile(text, 'x', 'exec'))",
    ],
)
def test_rule_for_unsafe_reading_sees_an_offence(code: str):
    assert unsafe(ast.parse(code))


# --- the tree --------------------------------------------------------------------------------


def test_no_file_is_longer_than_400_lines():
    long = {name_of(p) for p in sources(*PACKAGES) if len(p.read_text().splitlines()) > 400}
    assert long == set()


def test_every_module_opens_with_its_map():
    bare = [name_of(p) for p in sources(*PACKAGES, "scripts") if not ast.get_docstring(tree_of(p))]
    assert bare == []


def test_no_tracked_file_names_the_place_where_it_was_made():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(rb"(?<![\w.])/(?:" + b"work" + rb"|" + b"opt" + rb")/")
    found = [
        name
        for name in listed.stdout.split("\0")
        if name
        and not name.endswith(".safetensors")
        and name != "tests/test_packaging.py"  # forbids such addresses in the locks
        and (path := ROOT / name).is_file()
        and place.search(path.read_bytes())
    ]
    assert found == []
