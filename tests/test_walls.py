"""The walls of the house: who may import whom, what decides without a clock, what is never used."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "engines", "learner", "launch")
HEAVY = ("torch", "vllm", "deepspeed", "transformers")
# What decides: (event, now) -> commands. Shells around it hold clocks and sockets.
DECIDES = """coordinator core selection roster steps placement intake evaluation figures
    occupancy waits snapshot groups ledger statistics events verbs views packing translate answers
    crew limits watchdog planning hints audit staleness reporting handover latency cores trace fleet
    tally live timeline timing spans causes critical ranks turns"""
SANS_IO = sorted(
    [
        *(ROOT / "pipeline" / f"{name}.py" for name in re.findall(r"\w+", DECIDES)),
        *(
            path
            for folder in ("selectors", "budgets", "batches", "advantages", "orders", "simulation")
            for path in (ROOT / "pipeline" / folder).glob("*.py")
        ),
        ROOT / "engines" / "flush.py",
        ROOT / "learner" / "schedule.py",
    ]
)
SHELL_MODULES = re.findall(
    r"\w+",
    """time datetime socket os sys zmq asyncio threading multiprocessing subprocess select signal
    tempfile shutil pathlib secrets uuid uvloop""",
)
# Measured: nothing else of pipeline/ is needed there.
FROM_PIPELINE = {
    "engines": {
        "chunks",
        "clocks",
        "config",
        "configfile",
        "cores",
        "keys",
        "link",
        "messages",
        "private",
    },
    "learner": {
        "clocks",
        "config",
        "configfile",
        "cores",
        "deepspeedfile",
        "disk",
        "messages",
        "link",
        "packing",
        "plugins",
        "private",
    },
}


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


def test_importing_all_that_decides_leaves_torch_vllm_and_deepspeed_unloaded():
    together = ", ".join(dict.fromkeys(module_of(path) for path in SANS_IO))
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


@pytest.mark.parametrize("package", sorted(FROM_PIPELINE))
def test_engines_and_learner_know_only_the_wire_and_their_settings(package: str):
    other = {"engines": "learner", "learner": "engines"}[package]
    used: set[str] = set()
    for path in sources(package):
        for name in imports(tree_of(path)):
            first, _, rest = name.partition(".")
            assert first != other, f"{name_of(path)} imports {name}"
            if first == "pipeline":
                used.add(rest.split(".")[0])
    assert used - FROM_PIPELINE[package] == set()


def test_nothing_imports_launch_but_launch():
    found = {
        f"{name_of(path)}: {name}"
        for path in sources("pipeline", "engines", "learner")
        for name in imports(tree_of(path))
        if name.split(".")[0] == "launch"
    }
    assert found == set()


def test_only_the_stages_sockets_and_their_peers_import_zmq():
    found = {name_of(path) for path in sources(*PACKAGES) if "zmq" in top_level(tree_of(path))}
    modules = ("chunks", "guard", "link", "transport")
    assert found == {f"pipeline/{name}.py" for name in modules}


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


@pytest.mark.parametrize("path", SANS_IO, ids=name_of)
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


@pytest.mark.parametrize("package", PACKAGES)
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
    bare = [name_of(p) for p in sources(*PACKAGES) if not ast.get_docstring(tree_of(p))]
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
