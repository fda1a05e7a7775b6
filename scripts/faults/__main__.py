"""Does random faults to real runs, and looks after each whether anything was lost:

    python -m scripts.faults [--count 200] [--seed 0] [--only KIND] [--engine simulated]

Every fault is drawn from a seed of its own: its kind, its moment and the rest. Signals to each kind
of process and to all at once, writes that fail, files that are removed or damaged, connections
without end, output that nobody reads. `--together` of them meet one run, which is resumed as often
as it ends, until its data is at its end. `chain` says what has to hold after each. Faults beyond
the first may meet a run that earlier ones have marked: a seed that fails with others is shown
with all seeds of its run.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.bench.program import options_parser, write_json
from scripts.faults.chain import Chain, Injection, Outcome
from scripts.faults.kinds import KINDS
from scripts.faults.run import adopt_orphans

SOURCE = Path(__file__).with_name("failing_writes.c")


def failing_writes(folder: Path) -> Path | None:
    """Builds the library that makes writes fail; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "failing_writes.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


def outcomes_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Formats the outcomes by kind, as Markdown: how many, what became of the run, what failed."""
    rows = [
        "| fault | times | went on | ended, and resumed or new | failed |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        of_kind = [one for one in outcomes if one.injection.kind == kind]
        if of_kind:
            on = sum(one.then.startswith("went on") for one in of_kind)
            failed = [str(one.injection.seed) for one in of_kind if one.problems]
            said = f"{len(failed)} (seeds {', '.join(failed)})" if failed else "0"
            rows.append(f"| {kind} | {len(of_kind)} | {on} | {len(of_kind) - on} | {said} |")
    failed = sum(bool(one.problems) for one in outcomes)
    return [*rows, f"\n{len(outcomes)} faults, {failed} with a problem"]


def again(seeds: Sequence[int], options: argparse.Namespace) -> str:
    """Returns the command that does the same faults to one run."""
    words = [f"python -m scripts.faults --seed {seeds[0]} --count {len(seeds)}"]
    words += [f"--together {len(seeds)} --engine {options.engine}"]
    words += [f"--only '{options.only}'"] if options.only else []
    return " ".join([*words, *options.overrides])


def main() -> int:
    parser = options_parser(__doc__, overrides="settings of the runs")
    parser.add_argument("--count", type=int, default=200, help="how many faults")
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has the next")
    parser.add_argument("--only", choices=list(KINDS), default="", metavar="KIND",
                        help=f"one of: {'; '.join(KINDS)}")  # fmt: skip
    parser.add_argument("--engine", choices=["simulated", "transformers", "vllm"],
                        default="simulated", help="which engines sample")  # fmt: skip
    parser.add_argument("--together", type=int, default=5, help="faults that meet one run")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of all limits")
    parser.add_argument("--folder", type=Path, help="where runs with a problem are kept")
    options = parser.parse_args()
    adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM):  # also as a shell's background job
        signal.signal(number, signal.default_int_handler)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        for one in disturb(options, folder):
            outcomes.append(one)
            print(f"[{len(outcomes)}/{options.count}] {one}", flush=True)
            for line in one.problems:
                print(f"    {line}", flush=True)
    except KeyboardInterrupt:
        interrupted = True  # no process is left by then
        print("interrupted; so far:")
    print("\n".join(outcomes_table(outcomes)))
    write_json(options.out, [_row(one) for one in outcomes])
    failed = any(one.problems for one in outcomes)
    if not failed and options.folder is None:
        shutil.rmtree(folder)
    return 130 if interrupted else int(failed)


def disturb(options: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Yields what became of each fault, `--together` of them in one run below `folder`."""
    library = failing_writes(folder)
    if library is None:
        print("there is no C compiler: writes do not fail here", file=sys.stderr)
    kinds = [name for name, kind in KINDS.items() if library or not kind.preloads]
    kinds = [options.only] if options.only else kinds
    settings = [f"engine.kind={options.engine}", "engine.count=2", *options.overrides]
    seeds = range(options.seed, options.seed + options.count)
    for first in range(0, len(seeds), options.together):
        several = seeds[first : first + options.together]
        place = folder / f"seed-{several[0]}"
        place.mkdir()
        with Chain(place, settings, library, options.patience) as chain:
            for one in chain.carry_out(Injection.drawn(seed, kinds) for seed in several):
                if one.problems:
                    one.problems.append(f"alone: {again([one.injection.seed], options)}")
                    one.problems.append(f"as here: {again(several, options)}")
                yield one
        if not any(place.iterdir()):
            place.rmdir()


def _row(one: Outcome) -> dict[str, object]:
    return {
        "seed": one.injection.seed,
        "kind": one.injection.kind,
        "phase": one.injection.phase,
        "did": one.did,
        "then": one.then,
        "seconds": one.seconds,
        "problems": one.problems,
    }


if __name__ == "__main__":
    sys.exit(main())
