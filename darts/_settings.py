"""Python values -> settings: keyword arguments, rows of data, and functions as rewards.

Settings become the `key=value` overrides of the command line, so that both mean the same.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from pipeline.config.load import dump, load
from pipeline.config.schema import Config
from pipeline.config.yaml_tree import Branch, parse, plain
from pipeline.system.python_path import SAFE

Settings = str | Path | Mapping[str, Any] | Config | None
"""A YAML file, settings as in such a file, a loaded configuration, or nothing: all defaults."""
Reward = str | Path | Callable[..., Any] | Mapping[str, Any] | list[Any]
"""A function or its name, several of them (their rewards are summed), the name of a reward
plug-in, or one with its options."""
Rows = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]
"""Rows, the path of a file of them, or the settings of the section `data`."""


def loaded(settings: Settings, overrides: Iterable[str]) -> Config:
    """The checked configuration. Raises ConfigError with all problems."""
    if isinstance(settings, str | Path):
        return load(Path(settings), list(overrides))
    given = as_mapping(settings) if isinstance(settings, Config) else settings or {}
    return load(None, [*as_overrides(given), *overrides])


def as_mapping(config: Config) -> dict[str, Any]:
    """A loaded configuration as the values of its YAML file."""
    tree = parse(dump(config), str, [])
    assert isinstance(tree, Branch)
    return cast(dict[str, Any], plain(tree))


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """`{"step.count": 10}` -> `["step.count=10"]`."""
    return [f"{key}={_text(value)}" for key, value in settings.items()]


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return _quoted(value) if value[:1] in ("[", "{", '"', "'") or "\n" in value else value
    return _quoted(msgspec.to_builtins(value, enc_hook=_path_as_text, str_keys=True))


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is no setting: expected numbers, text, lists and dicts")


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- rows -------------------------------------------------------------------------------------


def is_rows(data: object) -> bool:
    """Returns True if `data` is rows, not a path or settings."""
    return data is not None and not isinstance(data, str | Path | Mapping)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Writes rows as JSONL. Raises TypeError or ValueError that names the row."""
    with path.open("w", encoding="utf-8") as file:
        count = 0
        for count, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise TypeError(f"row {count - 1} of the data is {row!r:.60}, expected a dict")
            try:
                line = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise type(error)(f"row {count - 1} of the data: {error}; expected what JSON can "
                                  "hold: text, numbers, lists and dicts") from error  # fmt: skip
            file.write(line + "\n")
    if not count:
        raise ValueError("the data has no rows")
    return path


# --- rewards ----------------------------------------------------------------------------------


def reward_overrides(reward: Reward) -> list[str]:
    """The settings that choose a reward. Raises ValueError for what no worker can import."""
    if isinstance(reward, Mapping):
        return as_overrides({"reward": reward})
    if isinstance(reward, str | Path) and not _names_a_function(str(reward)):
        return [f"reward={reward}"]
    functions = cast(list[Any], reward) if isinstance(reward, list) else [reward]
    names = [str(f) if isinstance(f, str | Path) else importable_name(f) for f in functions]
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


_CURE = (
    "write it at the top level of a file (in a notebook: %%writefile rewards.py) and pass "
    "reward='rewards.py:{}'"
)


def importable_name(function: Callable[..., Any]) -> str:
    """The name by which other processes find a function: `module:name`, or `file.py:name`.

    Raises: ValueError if they cannot, with what to do.
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
    if module and _importable(module, function):
        return f"{module}:{name}"
    file = _source_of(function)
    if file is None:
        raise ValueError(
            f"the reward {name} was typed in and is in no file, so that the reward's processes "
            "cannot import it; " + _CURE.format(name)
        )
    return f"{file}:{name}"


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


def _importable(module: str, function: Callable[..., Any]) -> bool:
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
