"""Benchmarks one GPU shared by engine and learner.

    python -m scripts.bench.gpu.run --out DIR [--tiny]

Needs only this repository: makes a model of Qwen2.5-0.5B's shape with random weights
(`scripts.bench.gpu.model`), measures the transformers engine alone (`.engine`), the
learner alone (`.learner`), then the whole pipeline through `darts train`, with
`learner.overlap` group and off. The part `graphs` runs only by name: the engine with the library's
own attention and captured CUDA graphs. Every part is a process with a time limit; one that fails
or hangs does not stop the others. Writes DIR/gpu.json and prints a table. `--tiny` is for a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import yaml

from launch.run_files.jsonl import all_lines
from pipeline.plugins.views import Sampled
from scripts.bench.overlap import step_means

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
ALONE = {
    "engine": "scripts.bench.gpu.engine",
    "graphs": "scripts.bench.gpu.engine",
    "learner": "scripts.bench.gpu.learner",
}
RUNS = ("group", "off")
GRAPHS = {"attn_implementation": "sdpa", "use_cuda_graph": True}
_GRACE_S = 12.0  # from Ctrl-C to the end of a run: a little more than `timeouts.stop_s`
_POLL_S = 0.5


def coin(sample: Sampled) -> float:
    """A reward that differs among random responses to a prompt."""
    return float(zlib.crc32(sample.response.encode()) % 2)


def gpu_settings(model: Path, overlap: str, tiny: bool, steps: int) -> dict[str, Any]:
    """Returns the settings of a run: the quickstart's task, sized for a GPU or two cores."""
    learner: dict[str, Any] = {"overlap": overlap, "lr": 1e-6, "warmup_steps": 0, "entropy": False}
    if not tiny:
        learner |= {"dtype": "bfloat16", "zero": 1, "tokens_per_micro_batch": 8192}
    engine = {
        "kind": "transformers",
        "slots": 16 if tiny else 256,
        "dtype": "float32" if tiny else "bfloat16",
        "gpu_memory": 0.35,
        "restarts": 0,
    }
    return {
        "model": str(model.resolve()),
        "data": {"held_out": 0},
        "sampling": {"max_tokens": 64 if tiny else 384},
        "step": {"count": steps, "prompts": 4 if tiny else 16},
        "group": {"size": 4 if tiny else 8},
        "reward": {"python": {"function": "scripts.bench.gpu.run:coin"}},
        # Groups end one by one. With the default most end together at the step's barrier, which
        # leaves little generation to overlap with.
        "selector": "first_m",
        "learner": learner,
        "engine": engine,
        "eval": {"every": 0},
        "checkpoint": {"every": 0},
        "timeouts": {"join_s": 90.0},
        "metrics": {"tensorboard": False},
    }


class Memory(threading.Thread):
    """Peak device memory of each process and of all, by nvidia-smi; nothing without it."""

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self.most_mib: dict[str, int] = {}
        self._over = threading.Event()
        self._tool = shutil.which("nvidia-smi")

    def run(self) -> None:
        while self._tool and not self._over.wait(_POLL_S):
            for line in self._ask("gpu", "memory.used"):
                self._note("all", line)
            for line in self._ask("compute-apps", "pid,used_memory"):
                pid, _, used = line.partition(",")
                self._note(_role(int(pid)), used)

    def stop(self) -> dict[str, int]:
        self._over.set()
        self.join()
        return self.most_mib

    def _ask(self, about: str, what: str) -> list[str]:
        command = [str(self._tool), f"--query-{about}={what}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    def _note(self, name: str, used: str) -> None:
        if used.strip().isdigit():  # "[N/A]" where a container hides it
            self.most_mib[name] = max(int(used), self.most_mib.get(name, 0))


def _role(pid: int) -> str:
    """Names the role of a process by its command line."""
    with contextlib.suppress(psutil.Error):
        words = " ".join(psutil.Process(pid).cmdline())
        for module, role in (("engines.worker", "engine"), ("learner.learner_rank", "learner")):
            if module in words:
                return role
    return "other"


def run_limited(command: Sequence[str], log: Path, limit_s: float) -> str:
    """Runs a module under a time limit. Returns what went wrong, or ''."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"not done within {limit_s:.0f} s; see {log}"
    return f"status {status}; see {log}" if status else ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the steps of one run without its first; seconds."""

    steps: int
    step_s: float
    generation_s: float
    learning_s: float  # forward and backward
    optimizer_s: float
    publish_s: float
    load_s: float  # of the new weights, with their check
    hidden_share: float  # share of forward and backward that ran during generation
    tokens_per_s: float  # sampled
    trained_per_s: float  # tokens
    engine_idle: float  # share of the slots' seconds during generation
    mismatch: float  # between the learner's and the engine's logprobs, nats


def run_averages(lines: Sequence[Mapping[str, Any]]) -> Run:
    """Averages the lines of a run's metrics. Raises ValueError below two steps."""
    found = step_means(lines)
    steps = [line for line in lines if line["what"] == "step"][1:]
    after_s = found.step - found.generation - found.load - found.optimizer - found.publish
    hidden = 1.0 - after_s / found.learning if found.learning else 0.0
    seconds = sum(line["seconds"] for line in steps)
    return Run(
        steps=len(steps),
        step_s=found.step,
        generation_s=found.generation,
        learning_s=found.learning,
        optimizer_s=found.optimizer,
        publish_s=found.publish,
        load_s=found.load,
        hidden_share=min(1.0, max(0.0, hidden)),
        tokens_per_s=sum(line["tokens_sampled"] for line in steps) / seconds,
        trained_per_s=sum(line["tokens_trained"] for line in steps) / seconds,
        engine_idle=statistics.fmean(line["bubble_engine"] for line in steps),
        mismatch=statistics.fmean(line["learner"].get("mismatch", 0.0) for line in steps),
    )


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


def measure_parts(out: Path, tiny: bool, steps: int, parts: Sequence[str]) -> dict[str, Any]:
    """Runs every part in turn; failures are recorded."""
    found: dict[str, Any] = {"tiny": tiny, "parts": {}}
    started, model = time.monotonic(), out / "model"

    def part(name: str, command: Sequence[str]) -> dict[str, Any]:
        left_s = ALL_S - (time.monotonic() - started)
        memory, begun = Memory(), time.monotonic()
        memory.start()
        error = run_limited(command, out / f"{name}.log", max(1.0, min(LIMITS_S[name], left_s)))
        done = {"error": error, "seconds": time.monotonic() - begun, "memory_mib": memory.stop()}
        print(f"{name}: {done['seconds']:.0f} s {error}", flush=True)
        found["parts"][name] = done
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        return done

    shape = ["--tiny", "--mean-tokens", "32", "--dtype", "float32"] if tiny else []
    part("model", ["scripts.bench.gpu.model", "--out", str(model), *shape])
    for name in parts:
        config = out / f"{name}.yaml"
        settings = gpu_settings(model, name if name in RUNS else "group", tiny, steps)
        if name == "graphs":
            settings["engine"]["transformers"] = GRAPHS
        config.write_text(yaml.safe_dump(settings))
        if module := ALONE.get(name):
            file = out / f"{name}.json"
            done = part(name, [module, "--config", str(config), "--out", str(file)])
            if file.exists():
                done["found"] = json.loads(file.read_text())
            continue
        folder = out / f"run-{name}"
        done = part(name, ["launch.cli", "train", str(config), "--out", str(folder)])
        metrics = folder / "metrics.jsonl"
        lines = all_lines(metrics) if metrics.exists() else []
        try:
            done["found"] = msgspec.to_builtins(run_averages(lines))
        except ValueError as error:
            done["error"] = done["error"] or str(error)
    (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a new directory for the results")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for a CPU")
    parser.add_argument("--steps", type=int, default=6, help="steps of each run; two or more")
    parser.add_argument(
        "--parts", nargs="+", choices=(*ALONE, *RUNS), default=("engine", "learner", *RUNS)
    )
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True)
    found = measure_parts(given.out, given.tiny, given.steps, given.parts)
    print("\n".join(["", *gpu_table(found)]))
    return int(any(part["error"] for part in found["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
