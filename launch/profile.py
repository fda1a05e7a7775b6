"""`darts profile`: a short run, and where its steps' time went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from launch.options import Overrides, fail, load_config

STEPS = 5
_ROWS = 8  # of the critical path's table; the rest is one row
_PHASES = (
    "waiting for a slot", "to the first token", "decoding", "tokens to the stage",
    "waiting for its group", "waiting for the learner", "forward and backward",
)  # fmt: skip

Timing = Mapping[str, Any]


class Wait(msgspec.Struct, frozen=True):
    """A kind of wait on the critical path; seconds are the mean of a step."""

    lane: str
    what: str
    seconds: float
    share: float  # of a step
    advice: str


def profile(
    config: Annotated[
        Path, typer.Argument(help="a YAML file; or the folder of a run, that is read, not repeated")
    ],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="of the run; the first warms up")] = STEPS,
    folder: Annotated[
        Path | None, typer.Option(help="of the run; a new one below runs/ by default")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write everything as JSON here")] = None,
) -> None:
    """Run a few steps and print what they waited for: the critical path, lane by lane.

    darts profile configs/quickstart.yaml selector=first_m
    darts profile runs/quickstart --out profile.json
    """
    if config.is_dir():
        if overrides:
            fail("a run that is over takes no settings; name a configuration instead", 2)
        run = config
    else:
        run = _run(config, overrides, steps, folder)
    timings = read(run)
    found = summary(timings)
    typer.echo("\n" + text(timings, found))
    typer.echo(f"\ntrace: {run / 'trace.json'} (open it in https://ui.perfetto.dev)")
    if out is not None:
        out.write_text(json.dumps(document(timings, found), indent=1) + "\n")


def _run(config: Path, overrides: list[str] | None, steps: int, folder: Path | None) -> Path:
    from launch.train import start_run
    from pipeline.runfolder import new_name

    if steps < 1:
        fail(f"--steps {steps}: at least 1", 2)
    short = ["eval.every=0", "checkpoint.every=0", *(overrides or [])]
    must = [f"step.count={steps}", f"watch.trace_steps={steps}", "watch.timing=true"]
    loaded = load_config(config, [*short, *must])
    run = folder or new_name(Path("runs") / f"{config.stem}-profile")
    if status := start_run(loaded, run, fresh=False):
        raise typer.Exit(status)
    return run


def read(run: Path) -> list[Timing]:
    """The timing lines of a run. Ends the command with a word if there are none."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        fail(f"{path}: no such file; a run's folder has one", 2)
    found: list[Timing] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            fields = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            fail(f"{path}:{number}: {error}", 2)
        if fields["what"] == "timing":
            found.append(fields)
    if not found:
        fail(f"{path}: no step has its timing (watch.timing=true, and a whole step)", 2)
    return found


def _warm(timings: Sequence[Timing]) -> Sequence[Timing]:
    """Without the first step, which also compiles and warms up, if there are others."""
    return timings[1:] or timings


def summary(timings: Sequence[Timing]) -> list[Wait]:
    """Kinds of wait on the critical path of a mean step, the longest first."""
    from launch.advice import advice, paces

    warm = _warm(timings)
    whole = sum(timing["seconds"] for timing in warm)
    engines = paces(warm)
    sums: dict[tuple[str, str], float] = {}
    for timing in warm:
        for lane, what, seconds, _ in timing["critical_path"]:
            sums[lane, what] = sums.get((lane, what), 0.0) + seconds
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return [
        Wait(lane, what, seconds / len(warm), seconds / whole, advice(lane, what, engines))
        for (lane, what), seconds in ordered
    ]


def text(timings: Sequence[Timing], waits: Sequence[Wait]) -> str:
    """The printed answer."""
    warm = _warm(timings)
    mean_s = sum(timing["seconds"] for timing in warm) / len(warm)
    lines = [f"{'step':>4}  {'seconds':>8}  the longest wait on its critical path"]
    for timing in timings:
        lane, what, seconds = _longest(timing)
        share = seconds / timing["seconds"]
        lines.append(
            f"{timing['step'] + 1:>4}  {timing['seconds']:8.3f}  {share:4.0%} {lane}: {what}"
        )
    first, last = warm[0]["step"] + 1, warm[-1]["step"] + 1
    lines += [
        "",
        f"critical path, mean of steps {first} to {last}: {mean_s:.3f} s",
        f"{'seconds':>9} {'share':>6}  {'lane':16} {'what':32} what would shorten it",
    ]
    for wait in waits[:_ROWS]:
        lines.append(
            f"{wait.seconds:9.3f} {wait.share:6.1%}  {wait.lane:16} {wait.what:32} {wait.advice}"
        )
    if rest := waits[_ROWS:]:
        seconds, share = sum(w.seconds for w in rest), sum(w.share for w in rest)
        lines.append(f"{seconds:9.3f} {share:6.1%}  {len(rest)} other kinds of wait")
    lines += ["", *_lives(warm)]
    if waits:
        worst = waits[0]
        lines += ["", f"culprit: {worst.lane}, {worst.what} ({worst.share:.0%} of a step)"]
        lines.append(f"what would shorten it: {worst.advice}")
    return "\n".join(lines)


def _longest(timing: Timing) -> tuple[str, str, float]:
    sums: dict[tuple[str, str], float] = {}
    for lane, what, seconds, _ in timing["critical_path"]:
        sums[lane, what] = sums.get((lane, what), 0.0) + seconds
    if not sums:
        return "", "nothing", 0.0
    (lane, what), seconds = max(sums.items(), key=lambda item: item[1])
    return lane, what, seconds


def mean_lives(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Percentile groups of response length: trajectories, mean tokens and seconds of each phase."""
    sums: dict[str, dict[str, Any]] = {}
    for timing in timings:
        for life in timing["lives"]:
            count = life["trajectories"]
            fresh = {"trajectories": 0, "tokens": 0.0, "seconds": dict.fromkeys(_PHASES, 0.0)}
            known = sums.setdefault(life["group"], fresh)
            known["trajectories"] += count
            known["tokens"] += life["tokens_mean"] * count
            for name, seconds in life["seconds"].items():
                known["seconds"][name] += seconds * count
    return [
        {
            "group": group,
            "trajectories": known["trajectories"],
            "tokens_mean": known["tokens"] / known["trajectories"],
            "seconds": {n: s / known["trajectories"] for n, s in known["seconds"].items()},
        }
        for group, known in sums.items()
    ]


def _lives(timings: Sequence[Timing]) -> list[str]:
    """Where trajectories spent their time, by percentile of length; and what dominates."""
    found = mean_lives(timings)
    lines = ["where trajectories spent their time, mean seconds, by percentile of their length"]
    lines.append(f"{'':26}" + "".join(f"{life['group']:>10}" for life in found))
    for name, form in (("trajectories", "d"), ("tokens_mean", ".1f")):
        lines.append(f"{name:26}" + "".join(f"{format(life[name], form):>10}" for life in found))
    for phase in _PHASES:
        row = "".join(f"{life['seconds'][phase]:10.3f}" for life in found)
        lines.append(f"{phase:26}{row}")
    for life in found:
        seconds = life["seconds"]
        lines.append(f"  {life['group']}: mostly {max(seconds, key=lambda n, s=seconds: s[n])}")
    return lines


def document(timings: Sequence[Timing], waits: Sequence[Wait]) -> dict[str, Any]:
    """What `--out` writes."""
    return {
        "steps": [
            {
                "step": timing["step"] + 1,
                "step_seconds": timing["seconds"],
                "critical_path": [
                    {"lane": lane, "what": what, "seconds": seconds, "detail": detail}
                    for lane, what, seconds, detail in timing["critical_path"]
                ],
                "percentiles": timing["percentiles"],
                "stragglers": timing["stragglers"],
            }
            for timing in timings
        ],
        "waits": [msgspec.structs.asdict(wait) for wait in waits],
        "trajectories": mean_lives(_warm(timings)),
        "culprit": msgspec.structs.asdict(waits[0]) if waits else None,
    }
