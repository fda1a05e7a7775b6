"""`python -m launch.docs.failures`: generates docs/failures.md from the tests.

A test that shows what happens when something breaks is marked

    @pytest.mark.fault("engine killed", part="engines", by="process")

and its docstring says what it asserts: "Promise: ... Bound: ...". Only syntax trees are read: no
test is imported, so the page needs neither torch nor vLLM. `NOT_SHOWN` lists faults without a
test. `--check` writes nothing and exits with 1 when the page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "failures.md"
PARTS = {
    "engines": "Engines",
    "stage": "The stage",
    "learner": "The learner",
    "rewards": "Rewards",
    "wire": "Frames on the wire",
    "peers": "Who may connect",
    "network": "Network and machines",
    "checkpoints": "Checkpoints",
    "disk": "Disk and memory files",
    "configuration": "Configuration and data",
    "people": "Ctrl-C, the launcher, the run's folder",
    "everything": "All at once",
}
KINDS = {
    "process": "a real process is killed, hangs or fails",
    "socket": "real sockets",
    "file": "real files",
    "simulator": "the real coordinator in virtual time, with random faults",
    "direct": "the deciding code gets the event itself; no process, socket or file",
}
NOT_SHOWN = (
    (
        "an engine drifts: its logprobs are wrong by a little",
        "measured in every step (`mismatch_max`); nothing acts on it",
    ),
    (
        "an engine serves an older version than it says",
        "the proof after each load is shown; nothing later is",
    ),
    ("a GPU runs out of memory", "the tests raise the error themselves; on no GPU so far"),
    (
        "a run's folder copied, or on a network file system",
        "the lock is the system's; no test on NFS",
    ),
    ("power is lost", "enumerated over a model of the disk; no real power was cut"),
)
"""(fault, why there is no row for it)."""

_SAID = re.compile(r"Promise: (?P<promise>.+?) Bound: (?P<bound>.+)", re.DOTALL)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A marked test; missing texts are empty."""

    fault: str
    part: str
    by: str
    promise: str
    bound: str
    test: str  # path::name

    def mark_problems(self) -> Iterator[str]:
        if not self.fault:
            yield f"{self.test}: its mark names no fault"
        if self.part not in PARTS:
            yield f"{self.test}: part is {self.part!r}, expected one of {', '.join(PARTS)}"
        if self.by not in KINDS:
            yield f"{self.test}: by is {self.by!r}, expected one of {', '.join(KINDS)}"
        if not self.promise or not self.bound:
            yield f'{self.test}: its docstring lacks "Promise: ... Bound: ..."'
        if self.fault in dict(NOT_SHOWN):
            yield f"{self.test}: shows {self.fault!r}, which NOT_SHOWN says is not shown"


def _mark(decorator: ast.expr) -> dict[str, str] | None:
    """Returns the arguments of a `pytest.mark.fault(...)`."""
    if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != "pytest.mark.fault":
        return None
    words = {word.arg or "": ast.literal_eval(word.value) for word in decorator.keywords}
    return words | {"fault": ast.literal_eval(decorator.args[0])} if decorator.args else words


def _row(test: ast.FunctionDef | ast.AsyncFunctionDef, path: str) -> Row | None:
    marks = [mark for d in test.decorator_list if (mark := _mark(d)) is not None]
    if not marks:
        return None
    said = _SAID.search(" ".join((ast.get_docstring(test) or "").split()))
    return Row(
        fault=marks[0].get("fault", ""),
        part=marks[0].get("part", ""),
        by=marks[0].get("by", ""),
        promise=said["promise"] if said else "",
        bound=said["bound"] if said else "",
        test=f"{path}::{test.name}",
    )


def fault_rows(root: Path = ROOT) -> list[Row]:
    """Returns the marked tests by file, in their order there."""
    found: list[Row] = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(), str(path))
        tests = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        where = path.relative_to(root).as_posix()
        found += [row for test in tests if (row := _row(test, where)) is not None]
    return found


def table_problems(found: list[Row]) -> Iterator[str]:
    """Yields the problems of these rows."""
    first: dict[str, str] = {}
    for row in found:
        yield from row.mark_problems()
        if (other := first.setdefault(row.fault, row.test)) != row.test:
            yield f"{row.test}: shows {row.fault!r}, as {other} does"


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def failures_page(found: list[Row]) -> str:
    """Returns docs/failures.md."""
    hands_on = sum(row.by in ("process", "socket", "file") for row in found)
    lines = [
        "# What happens when something breaks",
        "",
        "<!-- made by `python -m launch.docs.failures` from the tests' docstrings; do not edit -->",
        "",
        f"{len(found)} faults, each with its promise and the test that shows it; {hands_on} of",
        "them with a real process, socket or file. A bound is what the test asserts, on two cores:",
        "a limit, not a measurement. Where it is a setting, the test's value stands beside it. A",
        "test that needs root is skipped, with the reason, without it. `make faults` does two",
        "hundred at random moments; what it found: [experiments.md](experiments.md).",
        "",
        "| by | |",
        "|---|---|",
        *(_cells(kind, meaning) for kind, meaning in KINDS.items()),
    ]
    for part, title in PARTS.items():
        of_part = [row for row in found if row.part == part]
        lines += ["", f"## {title}", "", "| fault | promise | bound | by | test |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            _cells(row.fault, row.promise, row.bound, row.by, f"`{row.test}`") for row in of_part
        ]
    lines += [
        "",
        "## Not shown",
        "",
        "Faults that no test brings about, or not all of what one would want to see:",
        "",
        "| fault | instead |",
        "|---|---|",
        *(_cells(fault, why) for fault, why in NOT_SHOWN),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    check = parser.parse_args().check
    found = fault_rows()
    if wrong := list(table_problems(found)):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    text = failures_page(found)
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    if not check:
        PAGE.write_text(text)
    print(f"{PAGE}: {'out of date' if check else 'written'}")
    return int(check)


if __name__ == "__main__":
    sys.exit(main())
