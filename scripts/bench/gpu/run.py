"""Benchmarks one GPU shared by engine and learner.

    python -m scripts.bench.gpu.run --out DIR [--methods] [--tiny]

Needs only this repository: makes a model of Qwen2.5-0.5B's shape with random weights
(`scripts.bench.gpu.model`), measures the transformers engine alone (`.engine`), the
learner alone (`.learner`), then the whole pipeline through `darts train`, with
`learner.overlap` group and off. The part `graphs` runs only by name: the engine with the library's
own attention and captured CUDA graphs. Every part is a process with a time limit; one that fails
or hangs does not stop the others. `--methods` compares methods instead
(`scripts.bench.gpu.methods`). Writes DIR/gpu.json and prints a table. `--tiny` is for a CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts.bench.gpu.methods import METHOD_STEPS, measure_methods, methods_table
from scripts.bench.gpu.parts import Parts
from scripts.bench.gpu.pipeline import GRAPHS, Run, add_averages, gpu_settings

LIMITS_S = {
    "model": 60.0,
    "engine": 90.0,
    "graphs": 60.0,
    "learner": 60.0,
    "group": 110.0,
    "off": 110.0,
}
"""Time limit of each part, seconds."""
ALL_S = 300.0
STEPS = 6
ALONE = {
    "engine": "scripts.bench.gpu.engine",
    "graphs": "scripts.bench.gpu.engine",
    "learner": "scripts.bench.gpu.learner",
}
RUNS = ("group", "off")


def gpu_table(found: Mapping[str, Any]) -> list[str]:
    """Formats the results."""
    lines: list[str] = []
    for part in ("engine", "graphs"):
        engine = found["parts"].get(part, {}).get("found")
        if not engine:
            continue
        about = ", ".join(f"{key} {value}" for key, value in engine["about"].items())
        lines += [f"engine alone ({about}; ready in {engine['start_s']:.1f} s)", ""]
        lines += ["| sequences | ms a step | tokens/s |", "|---|---|---|"]
        lines += [
            f"| {p['running']} | {1e3 * p['step_s']:.2f} | {p['tokens_per_s']:.0f} |"
            for p in engine["points"]
        ]
        lines += [
            "",
            f"weights loaded in flight in {engine['load_s']:.2f} s",
            f"largest gap to a plain forward {engine['gap']:.2e} nats",
            f"torch took {engine['peak_gib']:.1f} GiB",
            "",
        ]
    if learner := found["parts"].get("learner", {}).get("found"):
        lines += [f"learner alone: {learner['tokens']} tokens of responses, "]
        lines[-1] += f"{learner['micro_batches']} micro-batches"
        lines += ["", "| price of a bucket | buckets | s | GiB |", "|---|---|---|---|"]
        lines += [
            f"| {p['price']} | {p['buckets']} | {p['seconds']:.3f} | {p['peak_gib']:.1f} |"
            for p in learner["points"]
        ]
        lines += [""]
    names = [name for name in RUNS if found["parts"].get(name, {}).get("found")]
    if names:
        lines += [f"| a step | {' | '.join(f'overlap {name}' for name in names)} |"]
        lines += ["|---" * (1 + len(names)) + "|"]
        for field in Run.__struct_fields__:
            values = [found["parts"][name]["found"][field] for name in names]
            lines += [f"| {field} | {' | '.join(f'{value:.3g}' for value in values)} |"]
        for name in names:
            memory = found["parts"][name]["memory_mib"]
            lines += [f"| peak memory, MiB, {name} | {memory or 'no nvidia-smi'} |"]
    for name, part in found["parts"].items():
        lines += [f"{name}: {part['error']}"] if part["error"] else []
    return lines


def measure_parts(out: Path, tiny: bool, steps: int, names: Sequence[str]) -> dict[str, Any]:
    """Runs every part in turn; failures are recorded."""
    parts, model = Parts(out, ALL_S, tiny=tiny), out / "model"
    shape = ["--tiny", "--mean-tokens", "32", "--dtype", "float32"] if tiny else []
    command = ["scripts.bench.gpu.model", "--out", str(model), *shape]
    parts.run_part("model", command, LIMITS_S["model"])
    for name in names:
        config = out / f"{name}.yaml"
        settings = gpu_settings(model, name if name in RUNS else "group", tiny, steps)
        if name == "graphs":
            settings["engine"]["transformers"] = GRAPHS
        config.write_text(yaml.safe_dump(settings))
        if module := ALONE.get(name):
            parts.measure_alone(name, module, config, LIMITS_S[name])
            continue
        folder = out / f"run-{name}"
        command = ["launch.cli", "train", str(config), "--out", str(folder)]
        done = parts.run_part(name, command, LIMITS_S[name])
        add_averages(done, folder)
    parts.write()
    return parts.document


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a new directory for the results")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for a CPU")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="steps of each run, two or more; by default 6, with --methods as many as fit",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=(*ALONE, *RUNS), default=("engine", "learner", *RUNS)
    )
    parser.add_argument(
        "--methods", action="store_true", help="methods side by side, instead of the parts"
    )
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True)
    if given.methods:
        found = measure_methods(given.out, given.tiny, given.steps or METHOD_STEPS)
        table = methods_table(found)
    else:
        found = measure_parts(given.out, given.tiny, given.steps or STEPS, given.parts)
        table = gpu_table(found)
    print("\n".join(["", *table]))
    return int(any(part["error"] for part in found["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
