"""Settings that have another name now: a tree that uses an old one -> the same tree with new names.

Old names are taken, with a line for each that says the new one. A setting that is given by both
names in one place is refused; an override wins over a file, whichever of the names it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.config.yaml_tree import Branch, Leaf, Tree

_WORKERS = {
    **{name: name for name in ("limit_s", "fail_share", "memory_gib", "cpu_s", "file_mib")},
    **{name: name for name in ("open_files", "processes", "env")},
    "workers": "count",
}
RENAMED: dict[str, str] = {
    "watch.warn_s": "timeouts.log_wait_s",
    "watch.lost_s": "timeouts.heartbeat_s",
    "watch.still_s": "timeouts.no_token_s",
    "watch.timing": "metrics.timing",
    "watch.trace_steps": "metrics.trace_steps",
    **{
        f"{plugin}.{old}": f"workers.{new}"
        for plugin in ("reward.*", "reward.sum.of.*.*", "rollout.*", "environment.*")
        for old, new in _WORKERS.items()
    },
    "watch": "timeouts",
    "prompts": "prompt_order",
    "rollout": "environment",
}
"""Old setting -> new one, keys before their section; `*` is any name, as of a plug-in."""
_OWN = ("math.limit_s",)
"""Options of plug-ins that have the name of an old setting."""
SECTIONS = frozenset(old for old in RENAMED if "." not in old)


def move(tree: Branch, problem: Callable[[str, str, str], None]) -> list[str]:
    """Moves what has an old name. Returns a line for each, with its place and both names.

    Args:
        problem: called with each complaint: key, text, place.
    """
    told: list[str] = []
    emptied: set[str] = set()  # sections whose keys all had a row of their own
    for old, new in RENAMED.items():
        for key, holder in list(_holders(tree, old.split("."))):
            if key.endswith(_OWN):
                continue
            above, _, last = key.rpartition(".")
            entry = holder.entries.pop(last)
            if key in emptied and isinstance(entry, Branch) and not entry.entries:
                continue
            emptied.add(above)
            how = "moved" if last == new.rpartition(".")[2] else "renamed"
            told.append(f"{entry.where}: {key}: {how} to {new}; it is taken as that")
            _put(tree, new.split("."), entry, key, problem)
    return told


def _holders(tree: Tree, pattern: list[str], prefix: str = "") -> Iterator[tuple[str, Branch]]:
    """(key, the branch that holds it) of every setting that fits the pattern."""
    first, *rest = pattern
    if isinstance(tree, Leaf):
        return
    for name, entry in tree.entries.items():
        if first not in ("*", name):
            continue
        if rest:
            yield from _holders(entry, rest, f"{prefix}{name}.")
        elif isinstance(tree, Branch):
            yield prefix + name, tree


def _put(
    tree: Branch, path: list[str], entry: Tree, old: str, problem: Callable[[str, str, str], None]
) -> None:
    """Writes it at its new place; of two, the override's or neither."""
    *above, last = path
    for name in above:
        inner = tree.entries.setdefault(name, Branch(entry.where))
        if not isinstance(inner, Branch):
            return
        tree = inner
    there = tree.entries.setdefault(last, entry)
    if there is entry:
        return
    if isinstance(there, Branch) and isinstance(entry, Branch) and not _two_plugins(there, entry):
        for name, value in entry.entries.items():
            _put(there, [name], value, f"{old}.{name}", problem)
    elif _is_override(entry) and not _is_override(there):
        tree.entries[last] = entry
    elif _is_override(entry) or not _is_override(there):
        problem(old, f"given by its new name too, at {there.where}; leave one out", entry.where)


def _two_plugins(there: Branch, entry: Branch) -> bool:
    """Whether each is another plug-in with its options: `shuffled: {...}` and `easy_first: {}`."""
    one, other = list(there.entries), list(entry.entries)
    is_plugin = all(
        len(tree.entries) == 1 and isinstance(next(iter(tree.entries.values())), Branch)
        for tree in (there, entry)
    )
    return is_plugin and one != other


def _is_override(tree: Tree) -> bool:
    return tree.where.startswith("override ")
