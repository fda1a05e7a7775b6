"""`darts bench compare`: runs methods x seeds one after another, and compares the results.

Turns a list of methods into runs below one folder, a JSON file, a table and a page of plots. Every
method gets its first seed before any gets its second. Results are written after every cell;
started again with the same settings, it runs only what is missing.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import msgspec

from launch.bench.compare import plots, tables
from launch.bench.compare.cells import Cell, CellError, Metrics
from launch.bench.compare.methods import METHODS, QUICK, SETS, Method
from launch.commands.train import about_run
from pipeline.config.load import ConfigError, load
from pipeline.config.pace import engine_pace
from pipeline.data.eval_sets import nothing_held_out
from pipeline.system.run_folder import RunError

TARGET = 0.75
"""Held-out accuracy for configs/bench.yaml; the warm start has .39, `sync` .66 after 60 steps."""
QUICK_OVERRIDES = ("step.count=16", "step.prompts=32", "learner.lr=1.0e-4", "eval.every=4")
QUICK_PACED = ("step.count=10", "eval.every=5")
"""At an emulated pace: as few requests a step as the configuration says, and fewer steps."""
QUICK_TARGET = 0.5


class CompareError(Exception):
    """Nothing was started: methods, settings or folder are wrong."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The runs to compare."""

    config: Path
    folder: Path
    methods: Mapping[str, int]  # name -> number of seeds
    target: float  # held-out accuracy
    overrides: tuple[str, ...] = ()
    own: Mapping[str, Method] = {}  # recipes and files of the user's, by name

    def all_cells(self) -> list[Cell]:
        """Returns all cells, seeds outermost. Raises CompareError with the problems."""
        known = {**METHODS, **self.own}
        unknown = [name for name in self.methods if name not in known]
        if unknown:
            raise CompareError(
                f"unknown: {', '.join(unknown)}; methods: {', '.join(METHODS)}; "
                f"sets of them: {', '.join(SETS)}; recipes: --recipes; a file: NAME=FILE.yaml"
            )
        if few := [name for name, seeds in self.methods.items() if seeds < 1]:
            raise CompareError(f"{few[0]}: {self.methods[few[0]]} seeds, expected at least 1")
        made = [
            Cell(
                method=known[name],
                seed=seed,
                config=self.config,
                overrides=self.overrides,
                base=self.folder,
            )
            for seed in range(max(self.methods.values(), default=0))
            for name, seeds in self.methods.items()
            if seed < seeds
        ]
        for cell in made:
            try:
                config = load(cell.config, cell.settings)
            except ConfigError as error:
                raise CompareError(f"method {cell.method.name}:\n{error}") from error
            if not config.eval.every or not config.step.count:
                raise CompareError("eval.every and step.count must be above 0")
            if why := nothing_held_out(config):
                raise CompareError(why)
        return made


def quick_comparison(wanted: Comparison, paced: bool = False) -> Comparison:
    """Returns a comparison of three methods, one seed, few steps; the user's settings win."""
    overrides = (*(QUICK_PACED if paced else QUICK_OVERRIDES), *wanted.overrides)
    return msgspec.structs.replace(wanted, methods=dict.fromkeys(QUICK, 1), overrides=overrides)


def paced_comparison(wanted: Comparison, pace: str, learner_share: float) -> Comparison:
    """Returns the same comparison with paced engines and, if `learner_share` is above 0, a learner
    that takes so many times as long for a token as an engine that samples all requests of a step
    at once; a third of it forward. Settings given still win."""
    overrides = (f"engine.pace={pace}", *wanted.overrides)
    if learner_share:
        config = load(wanted.config, overrides)
        cost = engine_pace(config.engine.pace)
        assert cost is not None  # a pace was named
        requests = max(1, config.step.prompts * config.group.size // config.engine.count)
        token_us = 1e6 * learner_share * cost.step_s(requests, 0, 0) / requests
        parts = f"forward_us: {token_us / 3:.3f}, backward_us: {token_us * 2 / 3:.3f}"
        overrides = (f"learner.pace={{{parts}, logprob_us: {token_us / 3:.3f}}}", *overrides)
    return msgspec.structs.replace(wanted, overrides=overrides)


def run_comparison(wanted: Comparison, out: Path | None = None) -> int:
    """Runs what is missing, and prints and writes the results. Returns the exit status."""
    try:
        cells = wanted.all_cells()
        for folder in (wanted.folder, *([out.parent] if out else [])):
            folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(wanted.folder / "lock", timeout=0):
            return _compare(wanted, cells, out)
    except filelock.Timeout:
        _say(f"{wanted.folder}: another comparison is running there")
        return 2
    except (CompareError, CellError, RunError, OSError) as error:
        _say(error)
        return 2


def _compare(wanted: Comparison, cells: list[Cell], out: Path | None) -> int:
    done = [cell for cell in cells if cell.finished]
    table = _write(wanted, cells, done, out)
    if done:
        _say(f"{len(done)} of {len(cells)} runs are done: {', '.join(c.name for c in done)}")
        print(table, flush=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a cell as Ctrl-C does
    failed: list[str] = []
    try:
        for number, cell in enumerate(cells, start=1):
            if cell in done:
                continue
            _say(f"[{number}/{len(cells)}] {cell.name}: {cell.method.about}")
            begun = time.monotonic()
            try:
                cell.carry_out()
            except CellError as error:
                failed.append(cell.name)
                _say(error)
                continue
            done.append(cell)
            _say(f"    {_outcome(cell, wanted.target)}, {time.monotonic() - begun:.0f} s in all")
            print(_write(wanted, cells, done, out), flush=True)
    except KeyboardInterrupt:
        _say(f"stopped; finished runs are kept in {wanted.folder}")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if done:
        _plot(wanted, done)
    if failed:
        _say(f"failed: {', '.join(failed)}; start again to run only these")
    return 1 if failed else 0


def _outcome(cell: Cell, target: float) -> str:
    found, curve = cell.final_metrics(target), cell.eval_curve()
    reached = found.seconds_to_target
    return (
        f"accuracy {curve[0].accuracy:.3f} -> {found.final_accuracy:.3f}, "
        f"{found.step_seconds:.2f} s a step, target "
        + (f"after {reached:.0f} s" if reached is not None else "not reached")
    )


def _write(wanted: Comparison, cells: list[Cell], done: list[Cell], out: Path | None) -> str:
    """Writes comparison.json (and `out`) for the finished runs. Returns the table."""
    known: dict[str, list[Metrics | None]] = {name: [] for name in wanted.methods}
    for cell in cells:
        known[cell.method.name].append(cell.final_metrics(wanted.target) if cell in done else None)
    columns = tables.columns(known)
    comparison: dict[str, Any] = {
        "target": wanted.target,
        "seeds": dict(wanted.methods),
        "paced": load(wanted.config, wanted.overrides).paced,
        "overrides": list(wanted.overrides),
        "about": about_run(),
        "settings": {cell.method.name: cell.settings[:-1] for cell in cells},
        "methods": columns,
        "ratios": tables.baseline_ratios(columns),
    }
    table = tables.comparison_markdown(comparison)
    text = json.dumps(comparison, indent=1) + "\n"
    for path in (wanted.folder / "comparison.json", *([out] if out else [])):
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)
    (wanted.folder / "comparison.md").write_text(table + "\n", encoding="utf-8")
    return table


def _plot(wanted: Comparison, done: list[Cell]) -> None:
    if not plots.available():
        _say("no plots: they need bokeh, pip install 'darts-rl[report]'")
        return
    page = wanted.folder / "comparison.html"
    curves = {
        name: [cell.eval_curve() for cell in done if cell.method.name == name]
        for name in wanted.methods
    }
    plots.draw(curves, wanted.target, page)
    _say(f"plots: {page}")


def _say(text: object) -> None:
    print(f"darts: {text}", file=sys.stderr, flush=True)
