"""The kinds of plug-ins: what one must offer, and how it is found by name.

A name is, in this order: `package.module:Class`; a built-in module
(`pipeline/plugins/selectors/first_m.py` holds the class registered as `first_m`); an
entry point of group `darts.<kind>s`. An entry point is never imported unless
the configuration names it.

Every plug-in is a class with a nested `Options` Struct (checked when the
configuration is loaded) and a constructor that takes it. State that lasts is
offered by `state()` and `restore(state)`, msgpack-able, and saved in
checkpoints (of a loss by every learner rank); a plug-in without them is taken to
have none. Rewards and environments run in worker processes, any number of them,
and can have none: one that offers it is refused.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.plugins.elsewhere import hint_of_name
from pipeline.plugins.interfaces import Options
from pipeline.plugins.ranges import did_you_mean
from pipeline.plugins.signatures import signature_problems

PACKAGES = {
    "prompt_order": "pipeline.plugins.prompt_orders",
    "budget": "pipeline.plugins.budgets",
    "selector": "pipeline.plugins.selectors",
    "batch": "pipeline.plugins.batch_rules",
    "environment": "pipeline.plugins.environments",
    "reward": "pipeline.plugins.rewards",
    "advantage": "pipeline.plugins.advantages",
    "loss": "learner.losses",
}
"""kind -> where the built-in plug-ins lie; also the list of kinds."""

ENTRY_POINTS = {
    "prompt_order": "darts.prompt_orders",
    "budget": "darts.budgets",
    "selector": "darts.selectors",
    "batch": "darts.batch_rules",
    "environment": "darts.environments",
    "reward": "darts.rewards",
    "advantage": "darts.advantages",
    "loss": "darts.losses",
}
"""kind -> entry point group of installed plug-ins."""


class PluginError(Exception):
    """A plug-in cannot be found, or does not offer what its kind needs."""


IN_WORKERS = frozenset({"environment", "reward"})
"""Kinds that run in worker processes: what one of them remembers is lost with its process."""

_T = TypeVar("_T", bound=type)
_registered: dict[tuple[str, str], type] = {}


def register(kind: str, name: str) -> Callable[[_T], _T]:
    """Class decorator: this class is the plug-in `name` of `kind`."""
    if kind not in PACKAGES:
        raise PluginError(f"no kind of plug-in {kind!r}; kinds: {', '.join(PACKAGES)}")

    def enter(cls: _T) -> _T:
        known = _registered.get((kind, name))
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise PluginError(f"{kind} {name!r} is both {known.__module__} and {cls.__module__}")
        _registered[kind, name] = cls
        return cls

    return enter


def builtin_names(kind: str) -> list[str]:
    """Names of the plug-ins that come with darts (no import of them)."""
    # find_spec, not import: learner.losses must not be loaded to be listed
    spec = importlib.util.find_spec(PACKAGES[kind])
    if spec is None or spec.submodule_search_locations is None:
        return []
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def entry_points(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Installed plug-ins of a kind by name, read from metadata only."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS[kind]):
        if point.name in found and found[point.name].value != point.value:
            raise PluginError(
                f"{kind} {point.name!r} is offered twice: {found[point.name].value} "
                f"and {point.value}; uninstall one, or name it as package.module:Class"
            )
        found[point.name] = point
    return found


def plugin_names(kind: str) -> list[str]:
    """Every name that `find_plugin` knows, built-in ones first."""
    built_in = builtin_names(kind)
    return built_in + [name for name in entry_points(kind) if name not in built_in]


def find_plugin(kind: str, name: str) -> type[Any]:
    """The class behind a name. Raises PluginError with the nearest known name."""
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # whatever somebody else's module does when imported
            what = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
                what += " (looked for among all that is installed, then in the current directory)"
            raise PluginError(f"{kind} {name!r}: {what}") from error
        return _checked(kind, name, found)
    if name in builtin_names(kind):
        importlib.import_module(f"{PACKAGES[kind]}.{name}")
        return _checked(kind, name, _registered[kind, name])
    points = entry_points(kind)
    if name in points:
        try:
            return _checked(kind, name, points[name].load())
        except Exception as error:
            what = f"{points[name].value}: {type(error).__name__}: {error}"
            raise PluginError(f"{kind} {name!r}: {what}") from error
    known = plugin_names(kind)
    hint = hint_of_name(kind, name, known) or did_you_mean(name, known)
    raise PluginError(f"no {kind} named {name!r}{hint} (known: {', '.join(known)})")


def _checked(kind: str, name: str, found: object) -> type[Any]:
    if not isinstance(found, type):
        raise PluginError(f"{kind} {name!r} is {found!r}, expected a class")
    if problems := list(signature_problems(kind, found)):
        raise PluginError(f"{kind} {name!r}: {'; '.join(problems)}")
    if hasattr(found, "state") and kind in IN_WORKERS:
        why = "it runs in worker processes, which are restarted, and nothing would save it"
        raise PluginError(f"{kind} {name!r} may not offer state() and restore(): {why}")
    return found


def options_type(cls: type[Any]) -> type[Options]:
    """The plug-in's Options; the empty one if it declares none."""
    return getattr(cls, "Options", Options)


def needs_answer(reward: type[Any], options: Options) -> bool:
    """Returns True if a reward compares with the data's answer: its `needs_answer` is True, or
    returns True for its options."""
    needs = getattr(reward, "needs_answer", False)
    return bool(needs(options) if callable(needs) else needs)


def judges_groups(reward: type[Any], options: Options) -> bool:
    """Returns True if a reward gives its training rewards to whole groups (`score_group`): its
    `judges_groups` is not there, is True, or returns True for its options."""
    judges = getattr(reward, "judges_groups", True)
    wants = judges(options) if callable(judges) else judges
    return bool(hasattr(reward, "score_group") and wants)
