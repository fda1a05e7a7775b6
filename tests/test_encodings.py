"""Every text file is written and read as UTF-8, whatever the locale of the machine is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = ("darts", "engines", "launch", "learner", "pipeline")
ASCII = {
    "launch/launcher/oom.py": "the kernel's files",
    "launch/docs": "made in a checkout, by its authors",
    "launch/warm_start": "made in a checkout, by its authors",
    "launch/simulate/replay.py": "figures of our own benchmark",
    "pipeline/wire/clock_sync.py": "the kernel's file",
    "pipeline/system/run_folder.py": "the kernel's file",
    "pipeline/system/temp_dirs.py": "the kernel's files, and numbers of ours",
    "pipeline/workers/resource_limits.py": "the kernel's files",
}
"""File or folder -> why its text is ASCII, or nobody else's."""


def offences(tree: ast.Module) -> Iterator[str]:
    """Text files that are opened in whatever encoding the locale has."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        named = {word.arg for word in node.keywords}
        called = node.func.attr if isinstance(node.func, ast.Attribute) else (
            node.func.id if isinstance(node.func, ast.Name) else ""
        )  # fmt: skip
        if called in ("write_text", "read_text") and isinstance(node.func, ast.Attribute):
            given = len(node.args) - (called == "write_text")
            if "encoding" not in named and given < 1:
                yield f"line {node.lineno}: {called}"
        elif called == "open":
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            modes = [word for word in words if isinstance(word, str) and set(word) <= set("rwaxb+")]
            if any(mode and "b" not in mode for mode in modes) and "encoding" not in named:
                yield f"line {node.lineno}: open"


@pytest.mark.parametrize(
    "path",
    [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_text_file_names_its_encoding(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if any(name == known or name.startswith(f"{known}/") for known in ASCII):
        return
    assert not list(offences(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "code", ["p.write_text(x)", "p.read_text()", "open(p, 'w')", "p.open('a')"]
)
def test_the_rule_sees_an_offence(code: str) -> None:
    assert list(offences(ast.parse(code)))
    assert not list(offences(ast.parse("p.read_text(encoding='utf-8'); open(p, 'rb')")))
