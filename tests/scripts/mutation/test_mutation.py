"""The tool that tries small deliberate bugs, on a toy."""

from __future__ import annotations

import ast
import builtins
import fcntl
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.mutation.mutants import mutants_of, mutated, noting, sample_of
from tests.paths import ROOT

SOURCE = '''
"""A docstring with 1 number."""
import logging

log = logging.getLogger(__name__)
LIMIT: int = 4


def longest(lengths: list[int], none: int = 0) -> int:
    """Largest length, at most LIMIT."""
    found = none
    for length in lengths:
        if length > found and length < 1000:
            found = length
    log.info("found %d", found + 1)
    return min(found, LIMIT)


class Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: float) -> float:
        if not amount:
            raise ValueError(f"amount {amount + 1}")
        self.total += amount
        return self.total / 2 if self.total else 0.5


def forever(n: int) -> int:
    while n > 0:
        n -= 1
    return n


def unseen() -> bool:
    return True
'''
TEST = """
import pytest
from room.sums import Counter, forever, longest


def test_longest():
    assert longest([3, 1, 2]) == 3
    assert longest([30]) == 4
    assert longest([2000]) == 0


def test_counter():
    counter = Counter()
    assert (counter.add(3.0), counter.add(-3.0)) == (1.5, 0.5)
    with pytest.raises(ValueError):
        counter.add(0)


def test_forever():
    assert forever(4) == 0
"""
MORE = """
from room.sums import longest


def test_limit():
    assert longest([1000]) == 0
"""


def by_id(source: str) -> dict[str, str]:
    return {m.id.partition(":")[2]: m.change for m in mutants_of(source, "room/sums.py")}


def test_mutants_are_of_every_kind_and_never_of_texts_types_or_log_lines():
    assert by_id(SOURCE) == {
        ":constant:0": "4 -> 5",
        ":constant:1": "4 -> 3",
        "longest:constant:0": "0 -> 1",
        "longest:constant:1": "0 -> -1",
        "longest:condition:0": (
            "if length > found and length < 1000: ... -> "
            "if not (length > found and length < 1000): ..."
        ),
        "longest:boolean:0": "length > found and length < 1000 -> length > found or length < 1000",
        "longest:compare:0": "length > found -> length >= found",
        "longest:compare:1": "length < 1000 -> length <= 1000",
        "longest:constant:2": "1000 -> 1001",
        "longest:constant:3": "1000 -> 999",
        "longest:returned:0": "return min(found, LIMIT) -> return None",
        "longest:extreme:0": "min(found, LIMIT) -> max(found, LIMIT)",
        "Counter.__init__:removed:0": "self.total = 0 -> pass",
        "Counter.__init__:constant:0": "0 -> 1",
        "Counter.__init__:constant:1": "0 -> -1",
        "Counter.add:condition:0": "if not amount: ... -> if not not amount: ...",
        "Counter.add:not:0": "not amount -> amount",
        "Counter.add:removed:0": "raise ValueError(f'amount {amount + 1}') -> pass",
        "Counter.add:arithmetic:0": "self.total += amount -> self.total -= amount",
        "Counter.add:removed:1": "self.total += amount -> pass",
        "Counter.add:returned:0": "return self.total / 2 if self.total else 0.5 -> return None",
        "Counter.add:condition:1": (
            "self.total / 2 if self.total else 0.5 -> self.total / 2 if not self.total else 0.5"
        ),
        "Counter.add:arithmetic:1": "self.total / 2 -> self.total * 2",
        "Counter.add:constant:0": "2 -> 3",
        "Counter.add:constant:1": "2 -> 1",
        "Counter.add:constant:2": "0.5 -> 1.5",
        "Counter.add:constant:3": "0.5 -> -0.5",
        "forever:compare:0": "n > 0 -> n >= 0",
        "forever:constant:0": "0 -> 1",
        "forever:constant:1": "0 -> -1",
        "forever:arithmetic:0": "n -= 1 -> n += 1",
        "forever:removed:0": "n -= 1 -> pass",
        "forever:constant:2": "1 -> 2",
        "forever:constant:3": "1 -> 0",
        "forever:returned:0": "return n -> return None",
        "unseen:returned:0": "return True -> return None",
        "unseen:constant:0": "True -> False",
    }


def test_each_mutant_is_the_file_with_that_change_alone():
    plain = ast.unparse(ast.parse(SOURCE)) + "\n"
    seen: set[str] = set()
    for mutant in mutants_of(SOURCE, "room/sums.py"):
        text = mutated(SOURCE, mutant)
        compile(text, mutant.file, "exec")
        assert text != plain
        seen.add(text)
    assert len(seen) == len(by_id(SOURCE))
    with pytest.raises(KeyError, match="forever"):
        mutated("x = 1", next(m for m in mutants_of(SOURCE, "a") if m.function == "forever"))


def test_a_name_outlives_changes_of_other_functions():
    longer = SOURCE.replace(
        "def unseen", "def new(a: int) -> int:\n    return a + 1\n\n\ndef unseen"
    )
    before, after = by_id(SOURCE), by_id(longer)
    assert before.items() <= after.items()
    assert {name.partition(":")[0] for name in after.keys() - before.keys()} == {"new"}


def test_a_function_notes_that_it_was_entered_and_does_what_it_did():
    room: dict[str, Any] = {"__name__": "sums"}
    exec(compile(noting(SOURCE, "sums.py"), "sums.py", "exec"), room)
    noted: set[str] = builtins.REACHED  # type: ignore[attr-defined]
    try:
        assert noted == set()
        assert (room["longest"]([3, 1]), room["forever"](2)) == (3, 0)
        assert noted == {"sums.py:longest", "sums.py:forever"}
        assert room["longest"].__doc__ == "Largest length, at most LIMIT."
        room["Counter"]()
        assert noted - {"sums.py:longest", "sums.py:forever"} == {"sums.py:Counter.__init__"}
    finally:
        del builtins.REACHED  # type: ignore[attr-defined]
    assert {m.function for m in mutants_of(SOURCE, "sums.py")} >= {"longest", "Counter.__init__"}


def test_a_sample_follows_from_its_seed_and_larger_ones_begin_with_smaller_ones():
    mutants = mutants_of(SOURCE, "room/sums.py")
    ten = sample_of(mutants, 10, seed=3)
    assert sample_of(reversed(mutants), 10, seed=3) == ten
    assert sample_of(mutants, 20, seed=3)[:10] == ten
    assert sample_of(mutants, 10, seed=4) != ten
    fewer = [mutant for mutant in mutants if mutant != ten[4]]
    assert sample_of(fewer, 9, seed=3) == ten[:4] + ten[5:]


# --- the program --------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    files = {
        "room/sums.py": SOURCE,
        "tests/test_sums.py": TEST,
        "tests/__init__.py": "",
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
        "harmless.toml": "",
    }
    for name, text in files.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "toy"


def command(toy: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "scripts.mutation", "--sample", "0", "--root", str(toy),
        "--work", str(toy.parent / "work"), "--rooms", "room", "--tests", "tests",
        "--harmless", str(toy / "harmless.toml"), *more,
    ]  # fmt: skip


def run(toy: Path, *more: str) -> tuple[int, str]:
    found = subprocess.run(command(toy, *more), cwd=ROOT, capture_output=True, text=True)
    assert not found.stderr, found.stderr
    return found.returncode, found.stdout


def outcomes(text: str) -> dict[str, str]:
    """Mutant -> outcome, of those that were tried in this run."""
    found = re.findall(r"\d+/\d+ (\w+) +[\d.]+ s  room/sums.py:(\S+)", text)
    return {name: outcome for outcome, name in found}


def left_behind(toy: Path) -> list[str]:
    """What is in the folder of work that the next run does not read."""
    names = [path.name for path in (toy.parent / "work").iterdir()]
    return [name for name in names if name.startswith("copy") and "." not in name]


def test_survivors_are_found_and_named_and_the_checkout_is_as_it_was(toy: Path):
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    status, text = run(toy, "--only", "*:longest:*")
    assert {name for name, found in outcomes(text).items() if found != "killed"} == {
        "longest:compare:0",  # an equal length is as long
        "longest:compare:1",
        "longest:constant:2",
        "longest:constant:3",
    }
    assert status == 1
    assert "score 0.600" in text
    assert "survived  room/sums.py:longest:compare:0: length > found -> length >= found" in text
    assert before == {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    assert left_behind(toy) == []


def test_what_no_test_enters_is_told_apart_and_runs_nothing(toy: Path):
    status, text = run(toy, "--only", "*:unseen:*")
    assert set(outcomes(text).values()) == {"unreached"}
    assert status == 1


@pytest.mark.long
def test_results_are_used_again_until_what_they_depend_on_changes(toy: Path):
    only = ("--only", "*:longest:co[mn][ps]*:[01]")  # compare 0, 1; constant 0, 1
    first = outcomes(run(toy, *only)[1])
    assert sorted(first.values()) == ["killed", "killed", "survived", "survived"]
    status, text = run(toy, *only)
    assert (outcomes(text), status) == ({}, 1)
    assert "score 0.500" in text
    (toy / "tests" / "test_more.py").write_text(MORE)
    again = outcomes(run(toy, *only)[1])
    assert again == {"longest:compare:0": "survived", "longest:compare:1": "killed"}
    source = toy / "room" / "sums.py"
    source.write_text(SOURCE + "\nOTHER = None\n")
    assert outcomes(run(toy, *only)[1]).keys() == first.keys()


@pytest.mark.long
def test_a_survivor_with_a_reason_is_no_fault_and_a_reason_without_one_is(toy: Path):
    only = ("--only", "*:longest:compare:*")
    assert run(toy, *only)[0] == 1
    listed = (toy.parent / "work" / "survivors.toml").read_text()
    assert listed.count('why = ""') == 2
    (toy / "harmless.toml").write_text(listed.replace('why = ""', 'why = "as long"'))
    status, text = run(toy, *only)
    assert (status, "harmless: 2; to be looked at: 0" in text) == (0, True)
    (toy / "tests" / "test_more.py").write_text(MORE)
    status, text = run(toy, *only)
    assert status == 1
    assert "take it out of harmless.toml: room/sums.py:longest:compare:1" in text


def test_a_loop_that_never_ends_is_killed_with_all_that_it_started(toy: Path):
    (toy / "tests" / "test_sums.py").write_text(
        "import subprocess, sys\nfrom room.sums import forever\n\n"
        "def test_forever():\n"
        '    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)  # toy"],'
        " start_new_session=True)\n"
        "    assert forever(4) == 0\n"
    )
    status, text = run(toy, "--only", "*:forever:removed:*", "--patience", "1")
    assert (outcomes(text), status) == ({"forever:removed:0": "killed"}, 0)
    lines = [
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    ]
    assert not [line for line in lines if line.endswith("# toy")]


def test_two_runs_do_not_share_a_folder(toy: Path):
    work = toy.parent / "work"
    work.mkdir()
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = subprocess.run(command(toy), cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "0.0 minutes\n")
    assert found.stderr == f"another run uses {work}; name another folder with --work\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_and_goes_on_where_it_was(toy: Path, number: int):
    process = subprocess.Popen(command(toy), cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE)  # fmt: skip
    results = toy.parent / "work" / "results.jsonl"
    limit = time.monotonic() + 100
    while not results.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert left_behind(toy) == []
    done = len(results.read_text().splitlines())
    assert 0 < done < len(by_id(SOURCE))
    only = ("--only", "*:unseen:*")
    known = {name for name in by_id(SOURCE) if f'sums.py:{name}"' in results.read_text()}
    tried = outcomes(run(toy, *only)[1])
    assert tried.keys() == {name for name in by_id(SOURCE) if "unseen" in name} - known
