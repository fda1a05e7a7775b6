"""Keeps which test reaches which function, from a clean run of each test file.

A file of tests is run again when it, a helper of the tests, or any source has changed.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from scripts.mutation.mutants import Mutant, noting
from scripts.mutation.plugin import Reach, Reached
from scripts.mutation.trials import OURS, Job, Runner, changed_file

CLEAN_S = 3600.0
QUICK = ("-m", "not slow and not vllm and not deepspeed and not root")


class Scope(msgspec.Struct, frozen=True):
    """Rooms to mutate, and the folders of the tests that see them."""

    rooms: tuple[str, ...]
    tests: tuple[str, ...]
    preload: tuple[str, ...] = ()
    """Modules of other people that take long to import."""


class _Kept(msgspec.Struct):
    """The clean run of one file of tests."""

    key: str
    tests: dict[str, Reached]


def hash_of(paths: Iterable[Path]) -> str:
    """Return a checksum over names and contents."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.name}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def python_files(root: Path, folders: Sequence[str]) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


class Tests:
    """The tests of one scope, and what they reach."""

    def __init__(self, scope: Scope, root: Path) -> None:
        self.scope, self._root = scope, root
        found = python_files(root, scope.tests)
        self._files = {str(p.relative_to(root)): p for p in found if p.name.startswith("test_")}
        helpers = {*found, *(root / "tests").glob("*.py")}
        self._helpers = [path for path in helpers if not path.name.startswith("test_")]
        self.all: dict[str, Reached] = {}

    def key(self, file: str | None = None) -> str:
        """Return a checksum of one test file, or of all, with the helpers."""
        files = self._files.values() if file is None else [self._files[file]]
        return hash_of([*files, *self._helpers])

    def run_clean(self, runner: Runner, longest_s: float, cache: Path) -> None:
        """Fill `all`: run what is not in the cache, a JSON file.

        Raises RuntimeError if pytest itself fails.
        """
        sources = hash_of(
            python_files(self._root, [name for name in OURS if name not in ("tests", "scripts")])
        )
        kept = (
            msgspec.json.decode(cache.read_bytes(), type=dict[str, _Kept]) if cache.exists() else {}
        )
        keys = {file: f"{self.key(file)}/{sources}/{longest_s}" for file in self._files}
        missing = [file for file in keys if file not in kept or kept[file].key != keys[file]]
        if missing:
            print(f"{len(missing)} files of tests: a clean run, to see what they reach", flush=True)
            out = cache.with_suffix(".new")
            out.unlink(missing_ok=True)
            log = cache.with_suffix(".log")
            job = Job(self._root, Reach(longest_s, out), (tuple(missing),), log, CLEAN_S, QUICK)
            with contextlib.ExitStack() as noted:
                for path in python_files(self._root, self.scope.rooms):
                    text = noting(path.read_text(), str(path.relative_to(self._root)))
                    noted.enter_context(changed_file(path, text))
                runner.start(job, write_bytecode=True)
                _, status, _ = runner.wait()
            for room in self.scope.rooms:
                compileall.compile_dir(self._root / room, quiet=2, force=True)
            if status not in (0, 1, 5):
                raise RuntimeError(f"the clean run ended with status {status}: {log}")
            found = msgspec.json.decode(out.read_bytes(), type=dict[str, Reached])
            for file in missing:
                mine = {name: t for name, t in found.items() if name.split("::")[0] == file}
                kept[file] = _Kept(keys[file], mine)
            cache.write_bytes(msgspec.json.encode(kept))
            out.unlink()
        self.all = {name: test for file in keys for name, test in kept[file].tests.items()}

    def write_bytecode(self, runner: Runner, copies: Sequence[Path]) -> None:
        """Have every copy hold the bytecode of all that the tests import: trials write none."""
        for copy in copies:
            log = copy.with_suffix(".log")
            files = (tuple(self._files),)
            runner.start(
                Job(copy, object(), files, log, CLEAN_S, ("--collect-only",)), write_bytecode=True
            )
            runner.wait()

    def reaching(self, mutant: Mutant, most_s: float) -> dict[str, float]:
        """Return the fastest tests that see this mutant, `most_s` in all, and their seconds.

        Code outside functions runs at import: the tests named like the file see it, and all
        that enter a function of it; those of the whole scope where there is none of either.
        """
        usable = {name: test for name, test in self.all.items() if test.passed}
        name = f"{mutant.file}:{mutant.function}"
        found = {n: t.seconds for n, t in usable.items() if name in t.functions}
        if not found and _at_import(mutant, self._root):
            begin, own = f"{mutant.file}:", f"/{own_tests(mutant)}::"
            within = [
                name
                for name, test in usable.items()
                if own in name or any(entered.startswith(begin) for entered in test.functions)
            ]
            found = {name: usable[name].seconds for name in within or usable}
        fastest = sorted(found, key=lambda name: (found[name], name))
        sums = itertools.accumulate(found[name] for name in fastest)
        return {name: found[name] for name, s in zip(fastest, sums, strict=True) if s <= most_s}


def own_tests(mutant: Mutant) -> str:
    """Return the name that the file of tests of the mutated file has by rule."""
    return f"test_{Path(mutant.file).stem}.py"


def _at_import(mutant: Mutant, root: Path) -> bool:
    """Return True for code of a module or of a class's body."""
    import ast

    tree = ast.parse((root / mutant.file).read_text())
    scope: ast.AST = tree
    for name in mutant.function.split(".") if mutant.function else ():
        scope = next(
            node
            for node in ast.walk(scope)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.name == name
        )
    return isinstance(scope, ast.Module | ast.ClassDef)
