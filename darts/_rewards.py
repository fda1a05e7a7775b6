"""Functions as rewards: found by the name under which the reward's processes can import them.

A function of a module is named `module:name`, one of a script `file.py:name`. One that was typed
into a notebook's cell is written into the run's folder, with all that it uses (`darts._source`).
Nothing is pickled.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from darts._settings import as_overrides
from darts._source import NotWritable, write_functions
from pipeline.system.python_path import SAFE

Reward = str | Path | Callable[..., Any] | Mapping[str, Any] | list[Any]
"""A function or its name, several of them (their rewards are summed), the name of a reward
plug-in, or one with its options."""
_CURE = (
    "write it at the top level of a file (in a notebook: %%writefile rewards.py) and pass "
    "reward='rewards.py:{}'"
)


def reward_overrides(reward: Reward, folder: Path) -> list[str]:
    """The settings that choose a reward.

    Args:
        folder: of the run; functions that are in no file are written below it.

    Raises: ValueError for a function that no process could import.
    """
    if isinstance(reward, Mapping):
        return as_overrides({"reward": reward})
    if isinstance(reward, str | Path) and not _names_a_function(str(reward)):
        return [f"reward={reward}"]
    functions = cast(list[Any], reward) if isinstance(reward, list) else [reward]
    typed_in: list[Callable[..., Any]] = []
    names: list[str] = []
    source = folder / "reward" / "functions.py"
    for function in functions:
        if isinstance(function, str | Path):
            names.append(str(function))
        elif name := importable_name(function):
            names.append(name)
        else:
            typed_in.append(function)
            names.append(f"{source}:{function.__qualname__}")
    if typed_in:
        try:
            write_functions(typed_in, source)
        except NotWritable as error:
            raise ValueError(f"the reward {error}; " + _CURE.format(error.name)) from error
    return as_overrides({"reward": {"python": {"function": names}}})


def _names_a_function(name: str) -> bool:
    """Returns True for `file.py`, `file.py:function` and `module:function`, not for a class."""
    if ":" not in name:
        return name.endswith(".py")
    module, _, attribute = name.partition(":")
    if module.endswith(".py"):
        return True
    try:
        found: Any = functools.reduce(
            getattr, attribute.split("."), importlib.import_module(module)
        )
    except Exception:  # whatever its module does; loading the configuration says what
        return True
    return not (isinstance(found, type) and hasattr(found, "score"))


def importable_name(function: Callable[..., Any]) -> str:
    """The name by which other processes find a function: `module:name`, or `file.py:name`; '' if
    it is in no file.

    Raises: ValueError if it has no name of its own, with what to do.
    """
    name = getattr(function, "__qualname__", "")
    if not name or not hasattr(function, "__module__"):
        raise ValueError(
            f"the reward {function!r:.80} has no name that another process can import; "
            + _CURE.format("name")
        )
    if name.endswith("<lambda>") or "<locals>" in name:
        what = "a lambda" if name.endswith("<lambda>") else "defined inside another function"
        raise ValueError(
            f"the reward {name} is {what}, and the reward's processes cannot import it; "
            + _CURE.format("name" if "<lambda>" in name else name.rpartition(".")[2])
        )
    if inspect.ismethod(function) and not inspect.isclass(function.__self__):
        raise ValueError(
            f"the reward {name} is a method of an object, which its processes do not have; "
            + _CURE.format("name")
        )
    module = _module_name(function)
    if module and _is_importable(module):
        return f"{module}:{name}"
    file = _source_of(function)
    return "" if file is None else f"{file}:{name}"


def _module_name(function: Callable[..., Any]) -> str:
    """The name of its module for other processes; '' for a script or a notebook."""
    if function.__module__ != "__main__":
        return function.__module__
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # python -m package.module
    if spec is None or not spec.origin or _source_of(function) != Path(spec.origin):
        return ""
    return spec.name


def _source_of(function: Callable[..., Any]) -> Path | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    path = Path(file).absolute() if file else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _is_importable(module: str) -> bool:
    """Returns True if a fresh interpreter finds the same module: a script's folder, or one that was
    added to sys.path, is not among the places where it looks."""
    top = module.partition(".")[0]
    code = "import importlib.util as u, os, sys; sys.path.append(os.getcwd()); "
    code += f"s = u.find_spec({top!r}); print(s and (s.origin or ''))"
    words = [sys.executable, SAFE, "-c", code]  # as a part of a run looks for it
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    found = done.stdout.strip()
    if done.returncode or found == "None":
        return False
    own = getattr(sys.modules.get(top), "__file__", None)
    return not own or not found or found == own  # a namespace package has no file
