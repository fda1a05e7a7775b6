"""Tries small deliberate bugs, and lists those that no test notices.

    python -m scripts.mutation [--sample 120] [--only 'pipeline/coordinator/*'] [--jobs 1]

Each mutant is run against the quick tests that enter its function, the fastest first, until
one fails. Results are kept in `--work` and used again as long as the file, and the test that
failed (or, for a survivor, every test), are unchanged: a run that was interrupted goes on.
Survivors that are known to be harmless stand in `harmless.toml`, each with its reason; the
program ends with 1 if there is another. Nothing in the checkout is changed.

Quick are tests that are not marked otherwise and take less than `--longest` seconds of CPU;
where many see a mutant, the fastest of them are run, `--most` seconds in all.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import signal
import sys
import time
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path, PurePath

import msgspec

from scripts.mutation.mutants import Mutant, mutants_of, mutated, sample_of
from scripts.mutation.plugin import Trial
from scripts.mutation.reach import Scope, Tests, hash_of, own_tests, python_files
from scripts.mutation.trials import (
    Copies,
    Job,
    Outcome,
    Runner,
    changed_file,
    failed_test,
    outcome_of,
)

ROOT = Path(__file__).resolve().parents[2]
HARMLESS = Path(__file__).with_name("harmless.toml")
SCOPES = (
    Scope(
        rooms=("pipeline/coordinator", "pipeline/plugins"),
        tests=("tests/pipeline/coordinator", "tests/pipeline/plugins", "tests/pipeline/simulation"),
        preload=("numpy", "msgspec", "hypothesis", "httpx", "yaml"),
    ),
    Scope(
        rooms=("learner/step", "learner/streaming"),
        tests=("tests/learner/step", "tests/learner/streaming"),
        preload=("numpy", "msgspec", "hypothesis", "torch", "transformers", "safetensors.torch"),
    ),
)
SLOWER = 10.0
"""A test may take so many times what it took in the clean run, and `--patience`."""
START_S = 120.0
"""Longest that imports may take, on a busy machine."""


class Result(msgspec.Struct, kw_only=True):
    """What became of one mutant."""

    id: str
    change: str
    outcome: Outcome
    test: str = ""
    """The test that failed; "" if importing did, or none."""
    source: str
    """Checksum of the mutated file."""
    tests: str
    """Checksum of the file of that test, or of all tests; with their helpers."""
    seconds: float


class Harmless(msgspec.Struct, forbid_unknown_fields=True):
    """A survivor that changes nothing that anybody could notice."""

    id: str
    change: str
    why: str


class HarmlessFile(msgspec.Struct, forbid_unknown_fields=True):
    """`harmless.toml`."""

    mutant: list[Harmless] = []


class Results:
    """Results on disk, one JSON object a line; the newest of a mutant counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Result] = {}
        lines = path.read_bytes().splitlines() if path.exists() else []
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):  # a line cut off by an interruption
                result = msgspec.json.decode(line, type=Result)
                self._found[result.id] = result

    def add(self, result: Result) -> None:
        self._found[result.id] = result
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(result) + b"\n")

    def last_test(self, mutant: Mutant) -> str:
        """Return the test that failed when the mutant was tried last, or ""."""
        found = self._found.get(mutant.id)
        return found.test if found else ""

    def valid(self, mutant: Mutant, source: str, tests: Tests) -> Result | None:
        """Return the known result if nothing that it depends on has changed."""
        found = self._found.get(mutant.id)
        if found is None or found.source != source or found.change != mutant.change:
            return None
        file = found.test.partition("::")[0] or None
        with contextlib.suppress(KeyError):  # that file of tests is gone
            return found if found.tests == tests.key(file) else None
        return None


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.work.mkdir(parents=True, exist_ok=True)
    lock = (options.work / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends
    except BlockingIOError:
        print(f"another run uses {options.work}; name another folder with --work", file=sys.stderr)
        return 2
    copies = Copies(options.root, options.work, options.jobs)
    try:
        results = _run(options, copies)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        copies.remove()
    return _report(results, options.work, options.harmless)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--sample", type=int, default=120, help="mutants to try; 0 is all")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--only", default="*", help="pattern of mutants' names: files, functions")
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side")
    parser.add_argument(
        "--longest", type=float, default=5.0, help="no test that takes more seconds of CPU"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mutation")
    parser.add_argument("--most", type=float, default=60.0, help="seconds of tests for a mutant")
    parser.add_argument("--patience", type=float, default=8.0, help="seconds any test may take")
    parser.add_argument("--harmless", type=Path, default=HARMLESS, help="survivors with reasons")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--rooms", nargs="+", help="other folders to mutate, with --tests")
    parser.add_argument("--tests", nargs="+", help="the tests of --rooms")
    options = parser.parse_args()
    options.root, options.work = options.root.resolve(), options.work.resolve()
    own = [Scope(tuple(options.rooms), tuple(options.tests))] if options.rooms else None
    options.scopes = own or SCOPES
    return options


def _run(options: argparse.Namespace, copies: Copies) -> list[Result]:
    first = copies.all[0]
    mutants: dict[Mutant, int] = {}
    for number, scope in enumerate(options.scopes):
        for path in python_files(first, scope.rooms):
            file = str(path.relative_to(first))
            for mutant in mutants_of(path.read_text(), file):
                if fnmatch(mutant.id, options.only):
                    mutants[mutant] = number
    sample = sample_of(mutants, options.sample or len(mutants), options.seed)
    print(f"{len(sample)} of {len(mutants)} mutants", flush=True)
    results = Results(options.work / "results.jsonl")
    found: list[Result] = []
    for number, scope in enumerate(options.scopes):
        mine = [mutant for mutant in sample if mutants[mutant] == number]
        if mine:
            found += _run_scope(scope, mine, results, options, copies)
    return found


def _run_scope(
    scope: Scope,
    sample: list[Mutant],
    results: Results,
    options: argparse.Namespace,
    copies: Copies,
) -> list[Result]:
    """Try the mutants of one scope, `--jobs` at a time."""
    tests = Tests(scope, copies.all[0])
    done: list[Result] = []
    waiting: list[Mutant] = []
    sources = {m.file: hash_of([copies.all[0] / m.file]) for m in sample}
    for mutant in sample:
        known = results.valid(mutant, sources[mutant.file], tests)
        if known:
            done.append(known)
        else:
            waiting.append(mutant)
    if not waiting:
        return done
    name = scope.rooms[0].replace("/", "-")
    with Runner(scope.preload) as runner:
        tests.run_clean(runner, options.longest, options.work / f"reach-{name}.json")
        tests.write_bytecode(runner, copies.all)
        unfit = {name: test for name, test in tests.all.items() if not test.passed}
        slow = [name for name, test in unfit.items() if test.seconds > 0.9 * options.longest]
        print(f"{len(tests.all)} tests, without {len(slow)} that take long", flush=True)
        for name in sorted(unfit.keys() - slow):
            print(f"left out, it fails without a mutant: {name}", flush=True)
        free = list(copies.all)
        running: dict[int, tuple[Mutant, Path, contextlib.ExitStack]] = {}

        def finish(mutant: Mutant, outcome: Outcome, test: str, seconds: float) -> None:
            file = test.partition("::")[0] or None
            result = Result(
                id=mutant.id, change=mutant.change, outcome=outcome, test=test,
                source=sources[mutant.file], tests=tests.key(file), seconds=round(seconds, 2),
            )  # fmt: skip
            results.add(result)
            done.append(result)
            count = f"{len(done)}/{len(sample)}"
            print(f"{count:>9} {outcome:9} {seconds:5.1f} s  {mutant.id}", flush=True)

        try:
            while waiting or running:
                while waiting and free:
                    mutant = waiting.pop(0)
                    chosen = tests.reaching(mutant, options.most)
                    if not chosen:
                        finish(mutant, "unreached", "", 0.0)
                        continue
                    copy = free.pop()
                    stack = contextlib.ExitStack()
                    path = copy / mutant.file
                    stack.enter_context(changed_file(path, mutated(path.read_text(), mutant)))
                    process = runner.start(
                        _job(copy, mutant, chosen, results.last_test(mutant), options.patience)
                    )
                    running[process] = (mutant, copy, stack)
                if running:
                    process, status, seconds = runner.wait()
                    mutant, copy, stack = running.pop(process)
                    stack.close()
                    free.append(copy)
                    outcome = outcome_of(status)
                    test = "" if outcome == "survived" else failed_test(_note(copy))
                    finish(mutant, outcome, test, seconds)
        finally:
            for _, _, stack in running.values():
                stack.close()
    return done


def _note(copy: Path) -> Path:
    return copy.with_suffix(".json")


def _job(copy: Path, mutant: Mutant, chosen: dict[str, float], last: str, patience_s: float) -> Job:
    """Run the tests of the mutated file first, or those that noticed the mutant the last time."""
    _note(copy).unlink(missing_ok=True)
    limits = {name: patience_s + SLOWER * seconds for name, seconds in chosen.items()}
    files = sorted({name.partition("::")[0] for name in chosen})
    own = last.partition("::")[0] or f"/{own_tests(mutant)}"
    first = tuple(file for file in files if f"/{file}".endswith(own))
    stages = (first, tuple(file for file in files if file not in first))
    return Job(
        copy=copy,
        plugin=Trial(limits, last, _note(copy)),
        stages=tuple(stage for stage in stages if stage),
        log=copy.with_suffix(".log"),
        limit_s=START_S + patience_s + SLOWER * sum(chosen.values()),
    )


def _report(results: list[Result], work: Path, listed: Path) -> int:
    """Print the score and the survivors that are not known to be harmless; 1 if there are any."""
    known = msgspec.toml.decode(listed.read_bytes(), type=HarmlessFile).mutant
    harmless = {(entry.id, entry.change): entry for entry in known}
    survivors = [r for r in results if r.outcome in ("survived", "unreached")]
    left = [r for r in survivors if (r.id, r.change) not in harmless]
    stale = [r for r in results if r not in survivors and (r.id, r.change) in harmless]
    by_room: dict[str, Counter[str]] = {}
    for result in results:
        room = "/".join(PurePath(result.id.partition(":")[0]).parts[:-1][:2])
        by_room.setdefault(room, Counter())[result.outcome] += 1
    print(f"\n{'':22}{'mutants':>9}{'killed':>9}{'timeout':>9}{'survived':>9}{'unreached':>11}")
    for room, counts in [*sorted(by_room.items()), ("all", sum(by_room.values(), Counter[str]()))]:
        columns = (counts["killed"], counts["timeout"], counts["survived"])
        cells = "".join(f"{count:>9}" for count in (counts.total(), *columns))
        share = (counts["killed"] + counts["timeout"]) / max(1, counts.total())
        print(f"{room:22}{cells}{counts['unreached']:>11}  score {share:.3f}")
    print(f"harmless: {len(survivors) - len(left)}; to be looked at: {len(left)}")
    for result in stale:
        print(f"no survivor any more, take it out of {listed.name}: {result.id}")
    path = work / "survivors.toml"
    path.write_text("".join(_entry(Harmless(r.id, r.change, "")) for r in left))
    for result in left:
        print(f"  {result.outcome:9} {result.id}: {result.change}")
    if left:
        print(f"{path}: kill each with a test, or say in {listed.name} why it is harmless")
    return 1 if left or stale else 0


def _entry(entry: Harmless) -> str:
    """One table of TOML; JSON's strings are TOML's."""
    lines = [
        f"{k} = {msgspec.json.encode(v).decode()}" for k, v in msgspec.structs.asdict(entry).items()
    ]
    return "[[mutant]]\n" + "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    began = time.monotonic()
    ended = main()
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    sys.exit(ended)
