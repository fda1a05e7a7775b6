"""Compares TRL's GRPOTrainer with darts: the same model, task, recipe and machine.

    pip install 'darts-rl[bench]'
    python -m scripts.bench.trl_peer [--size quickstart|bench|both] [--seeds 3] [--folder DIR]

Both train the same model on the same data, with the learning rate, loss, limits and number of
responses of a step that the configuration has. darts runs twice: as the configuration is, and as
plain GRPO (`darts_all`: sample 8, learn from all 8), which trains on exactly as many responses as
TRL. TRL samples with transformers' `generate`, on all cores. A few steps of each of its settings
come first, and the fastest is the one that is compared (`--trl-settings`). Evaluations are outside
the measured time.

A cell is one side and one seed. A finished one is not run again, so an interrupted comparison goes
on where it stopped. Nothing else may run beside it: on a busy machine TRL's threads wait for one
another, and its steps take many times as long.

TRL's vLLM mode (`vllm_mode="colocate"`) is left out: on vLLM's CPU build it starts, and fails at
the first update of the weights ("'Parameter' object has no attribute 'weight_loader'"; TRL 1.16,
which names vLLM 0.31 as the newest that it supports, with vLLM 0.32).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from launch.bench.compare.cells import Cell, CellError
from launch.bench.compare.command import TARGET
from launch.bench.compare.methods import METHODS, Method
from launch.commands.train import about_run
from launch.run_files.jsonl import all_lines
from pipeline.config.load import dump, load
from scripts.bench.program import options_parser, write_json
from scripts.bench.trl_trainer import SETTINGS, Evaluation, Training

PROBE_STEPS = 3  # of each setting of TRL; the first does not count
_LOG_LINES = 12  # shown of a run that failed


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained, and for how long."""

    config: Path
    steps: int
    target: float  # held-out accuracy


SIZES = {
    "quickstart": Size(config=Path("configs/quickstart.yaml"), steps=60, target=0.9),
    "bench": Size(config=Path("configs/bench.yaml"), steps=160, target=TARGET),
}
DARTS = {
    "darts": Method(name="darts", about="the configuration as it is", overrides=()),
    "darts_all": Method(
        name="darts_all",
        about="plain GRPO, streamed: sample 8, learn from all 8",
        overrides=METHODS["sync_streamed"].overrides,
    ),
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One side, one seed."""

    seed: int
    step_seconds: float  # mean
    seconds_to_target: float | None
    accuracy_before: float
    accuracy_after: float
    mean_tokens_after: float


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A few steps with one setting of TRL."""

    step_seconds: float | None  # mean without the first step; None: failed
    error: str = ""


def row_of(training: Training, seed: int, target: float) -> Row:
    first, last = training.curve[0], training.curve[-1]
    return Row(
        seed=seed,
        step_seconds=training.step_seconds,
        seconds_to_target=training.seconds_to(target),
        accuracy_before=first.accuracy,
        accuracy_after=last.accuracy,
        mean_tokens_after=last.mean_tokens,
    )


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Both trainers at one size."""

    size: Size
    steps: int
    every: int
    base: Path
    overrides: tuple[str, ...]  # of every run, as given on the command line

    def settings(self, steps: int, every: int) -> list[str]:
        """Returns the overrides of a run of so many steps."""
        warmup = min(steps, load(self.size.config, self.overrides).learner.warmup_steps)
        run = (f"step.count={steps}", f"eval.every={every}", "checkpoint.every=0")
        return [*self.overrides, *run, f"learner.warmup_steps={warmup}"]

    def darts(self, side: str, seed: int) -> Training:
        """Trains with darts, or reads the finished run. Raises CellError."""
        cell = Cell(
            method=DARTS[side],
            seed=seed,
            config=self.size.config,
            overrides=tuple(self.settings(self.steps, self.every)),
            base=self.base,
        )
        if not cell.finished:
            cell.carry_out()
        steps = [line for line in all_lines(cell.run.metrics) if line["what"] == "step"]
        return Training(
            seconds=[line["seconds"] for line in steps],
            curve=[
                Evaluation(train_s=e.train_s, accuracy=e.accuracy, mean_tokens=e.tokens_mean)
                for e in cell.eval_curve()
            ],
        )

    def trl(self, setting: str, seed: int) -> Training:
        """Trains with TRL, or reads the finished run. Raises CellError."""
        settings = [*self.settings(self.steps, self.every), f"seed={seed}"]
        return self._trl(f"trl-{setting}-s{seed}", setting, settings, self.every)

    def probe(self, setting: str) -> Probe:
        """Measures a few steps of TRL; a failure is a finding."""
        try:
            settings = self.settings(PROBE_STEPS, 0)
            training = self._trl(f"probe-{setting}", setting, settings, 0)
        except CellError as error:
            return Probe(step_seconds=None, error=str(error))
        return Probe(step_seconds=statistics.fmean(training.seconds[1:]))

    def _trl(self, name: str, setting: str, settings: Sequence[str], every: int) -> Training:
        """Runs TRL in a process of its own, unless its file has a run with these settings."""
        wanted = dump(load(self.size.config, settings))
        file = self.base / f"{name}.json"
        if file.exists():
            done = json.loads(file.read_text())
            if done["config"] != wanted:
                raise CellError(
                    f"{file}: a finished run with other settings; "
                    f"remove it, or choose another --folder"
                )
            return msgspec.convert(done["training"], Training)
        self.base.mkdir(parents=True, exist_ok=True)
        out, log = file.with_suffix(".tmp"), file.with_suffix(".log")
        command = [sys.executable, "-m", "scripts.bench.trl_trainer"]
        command += ["--config", str(self.size.config), "--setting", setting]
        command += ["--every", str(every), "--out", str(out), *settings]
        with log.open("w") as stream:
            status = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, check=False
            ).returncode
        if status:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            raise CellError(f"{name}: status {status}; end of {log}:\n{tail}")
        done = {
            "about": about(),
            "config": wanted,
            "setting": setting,
            "training": json.loads(out.read_text()),
        }
        out.write_text(json.dumps(done, indent=1) + "\n")
        out.rename(file)
        return msgspec.convert(done["training"], Training)


def about() -> dict[str, Any]:
    """Describes revision, versions and machine."""
    found = about_run()
    for package in ("trl", "accelerate"):
        found["versions"][package] = metadata.version(package)
    return found


def fastest(probes: Mapping[str, Probe]) -> str:
    """Names the setting with the shortest step. Raises CellError if all failed.

    >>> fastest({"a": Probe(step_seconds=2.0), "b": Probe(step_seconds=1.0)})
    'b'
    """
    known = {name: p.step_seconds for name, p in probes.items() if p.step_seconds is not None}
    if not known:
        raise CellError("\n".join(["no setting of TRL ran", *(p.error for p in probes.values())]))
    return min(known, key=lambda name: known[name])


def trl_ratios(darts: Sequence[Row], trl: Sequence[Row]) -> dict[str, float | None]:
    """Returns how many times as long TRL takes: medians over the seeds that both have.

    None if no seed has the metric on both sides.
    """
    found: dict[str, float | None] = {}
    others = {row.seed: row for row in trl}
    for figure in ("step_seconds", "seconds_to_target"):
        pairs = [
            (getattr(row, figure), getattr(others[row.seed], figure))
            for row in darts
            if row.seed in others
        ]
        known = [other / one for one, other in pairs if one and other]
        found[figure] = statistics.median(known) if known else None
    return found


def measured(peer: Peer, wanted: str, seeds: int) -> Iterator[dict[str, Any]]:
    """Runs every cell of one size. Yields the document after each. Raises CellError.

    Args:
        peer: the size.
        wanted: a name of `SETTINGS`, `best` or `all`.
        seeds: number of seeds, from 0.
    """
    probes: dict[str, Probe] = {}
    if wanted == "best":
        for name in SETTINGS:
            probes[name] = peer.probe(name)
            told = probes[name].step_seconds
            print(
                f"  probe {name}: {f'{told:.2f} s a step' if told else probes[name].error}",
                flush=True,
            )
        chosen = (fastest(probes),)
    else:
        chosen = tuple(SETTINGS) if wanted == "all" else (wanted,)
    sides: dict[str, list[Row]] = {}
    for seed in range(seeds):
        runs = [(side, peer.darts, side) for side in DARTS]
        for side, train, name in (*runs, *((f"trl {n}", peer.trl, n) for n in chosen)):
            row = row_of(train(name, seed), seed, peer.size.target)
            sides.setdefault(side, []).append(row)
            print(f"  {side}, {row_text(row, peer.size.target)}", flush=True)
            yield {
                "config": str(peer.size.config),
                "steps": peer.steps,
                "target": peer.size.target,
                "probes": {name: msgspec.to_builtins(probe) for name, probe in probes.items()},
                "sides": {name: [msgspec.to_builtins(r) for r in s] for name, s in sides.items()},
                "ratios": {
                    name: {
                        trl: trl_ratios(sides[name], rows)
                        for trl, rows in sides.items()
                        if trl not in DARTS
                    }
                    for name in DARTS
                },
            }


def row_text(row: Row, target: float) -> str:
    reached = row.seconds_to_target
    return (
        f"seed {row.seed}: {row.step_seconds:.2f} s a step, accuracy "
        f"{row.accuracy_before:.3f} -> {row.accuracy_after:.3f}, "
        f"mean tokens {row.mean_tokens_after:.1f}, {target} "
        + (f"after {reached:.0f} s" if reached is not None else "not reached")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options_parser(__doc__, overrides="settings of every run")
    parser.add_argument("--size", choices=(*SIZES, "both"), default="both")
    parser.add_argument(
        "--trl-settings",
        choices=("best", "all", *SETTINGS),
        default="best",
        help="best: the fastest of a few steps each",
    )
    parser.add_argument("--steps", type=int, default=0, help="steps of a run; 0: of the size")
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/trl"), help="folder of the finished runs"
    )
    options = parser.parse_args(arguments)
    # A machine that is busy before the first run slows both sides, but not alike.
    load = round(os.getloadavg()[0], 2)
    document: dict[str, Any] = {"about": about() | {"load_before": load}, "sizes": {}}
    try:
        for name in SIZES if options.size == "both" else (options.size,):
            for found in measured(_peer(name, options), options.trl_settings, options.seeds):
                document["sizes"][name] = found
                write_json(options.folder / "peer.json", document)
                write_json(options.out, document)
    except CellError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _peer(name: str, options: argparse.Namespace) -> Peer:
    size = SIZES[name]
    steps = options.steps or size.steps
    print(f"{name}: {size.config}, {steps} steps", flush=True)
    return Peer(
        size=size,
        steps=steps,
        every=options.every,
        base=options.folder / name,
        overrides=tuple(options.overrides),
    )


if __name__ == "__main__":
    sys.exit(main())
