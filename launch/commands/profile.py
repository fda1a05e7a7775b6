"""`darts profile`: runs a few steps and shows where their time went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from launch.options import Overrides, exit_with_error, load_config

if TYPE_CHECKING:
    from launch.run_files.records import Lives, TimingLine
    from pipeline.config.schema import Config

STEPS = 5
_ROWS = 8  # of the critical path's table; the rest is one row
_STEPS = 10  # listed steps
_PHASES = (
    "waiting for a slot", "to the first token", "decoding", "tokens to the stage",
    "waiting for its group", "waiting for the learner", "forward and backward",
)  # fmt: skip


class Wait(msgspec.Struct, frozen=True):
    """A kind of wait on the critical path; seconds are the mean of a step."""

    lane: str
    what: str
    seconds: float
    share: float  # of a step
    advice: str


def profile_command(
    config: Annotated[
        Path,
        typer.Argument(help="YAML file with the settings, or the folder of a past run to analyse"),
    ],
    overrides: Overrides = None,
    steps: Annotated[
        int | None, typer.Option(help=f"number of steps; default: {STEPS}, the first warms up")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="folder of the run; default: a new one below runs/")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="file for the whole analysis as JSON")] = None,
) -> None:
    """Run a few steps and show what they waited for.

    This is the critical path, by kind of wait.

    darts profile configs/quickstart.yaml selector=first_m

    darts profile runs/quickstart --out profile.json
    """
    if out is not None and not out.absolute().parent.is_dir():
        exit_with_error(f"--out {out}: no such folder: {out.absolute().parent}", 2)
    if config.is_dir():
        if overrides or steps is not None or folder is not None:
            exit_with_error(f"{config} is a past run: leave out settings, --steps and --folder", 2)
        run = config
    else:
        run = _run(config, overrides, STEPS if steps is None else steps, folder)
    timings = read_timings(run)
    settings = load_config(run / "config.yaml", None)
    found = critical_waits(timings, settings)
    typer.echo("\n" + profile_text(timings, found, settings.paced))
    typer.echo(f"\ntrace: {run / 'trace.json'} (open it in https://ui.perfetto.dev)")
    if out is not None:
        encoded = msgspec.json.encode(profile_document(timings, found))
        out.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")


def _run(config: Path, overrides: list[str] | None, steps: int, folder: Path | None) -> Path:
    from launch.commands.train import start_run
    from pipeline.system.run_folder import new_name

    if steps < 1:
        exit_with_error(f"--steps is {steps}, but must be at least 1", 2)
    short = ["eval.every=0", "checkpoint.every=0", "learner.warmup_steps=0", *(overrides or [])]
    must = [f"step.count={steps}", f"metrics.trace_steps={steps}", "metrics.timing=true"]
    for own in (word.partition("=")[0] for word in must):
        if any(given.partition("=")[0] == own for given in overrides or ()):
            exit_with_error(f"{own}: darts profile sets it itself (--steps N)", 2)
    loaded = load_config(config, [*short, *must])
    run = folder or new_name(Path("runs") / f"{config.stem}-profile")
    if status := start_run(loaded, run, fresh=False):
        raise typer.Exit(status)
    return run


def read_timings(run: Path) -> list[TimingLine]:
    """Reads the timing lines of a run; ends the command with a message if there are none."""
    from launch.run_files.jsonl import read_lines
    from launch.run_files.records import TimingLine

    path = run / "metrics.jsonl"
    if not path.is_file():
        exit_with_error(f"{path}: no such file; this is not the folder of a run", 2)
    found = list(read_lines(path, {"timing": TimingLine}, lambda text: typer.echo(text, err=True)))
    if not found:
        exit_with_error(
            f"{path}: no lines of timing: no step is done yet, or metrics.timing was false", 2
        )
    return found


def _warm(timings: Sequence[TimingLine]) -> Sequence[TimingLine]:
    """Leaves out the first step, which also compiles and warms up, if there are others."""
    return timings[1:] or timings


def critical_waits(timings: Sequence[TimingLine], config: Config) -> list[Wait]:
    """Returns the kinds of wait on the critical path of a mean step, the longest first."""
    from launch.commands.profile_advice import RunFacts, advice, paces
    from pipeline.observability.critical_path import by_kind

    warm = _warm(timings)
    whole = sum(timing.seconds for timing in warm) or 1.0  # a step without prompts takes no time
    waits = [t.percentiles["slot_wait_s"].p50 for t in warm if "slot_wait_s" in t.percentiles]
    facts = RunFacts(
        config=config,
        paces=paces([timing.engines for timing in warm]),
        slot_wait_share=sum(waits) / whole,
    )
    return [
        Wait(lane, what, seconds / len(warm), seconds / whole, advice(lane, what, facts))
        for lane, what, seconds in by_kind(timing.critical_path for timing in warm)
    ]


def profile_text(timings: Sequence[TimingLine], waits: Sequence[Wait], paced: str = "") -> str:
    """Formats the analysis. `paced`: the emulated pace, in words."""
    from pipeline.observability.critical_path import by_kind

    warm = _warm(timings)
    mean_s = sum(timing.seconds for timing in warm) / len(warm)
    first, last = warm[0].step + 1, warm[-1].step + 1
    lines = [
        *([f"paced: {paced}: times are emulated", ""] if paced else []),
        f"critical path, mean of steps {first} to {last}: {mean_s:.3f} s",
        f"{'seconds':>9} {'share':>6}  {'lane':16} {'what':32} what would shorten it",
    ]
    lines += [
        f"{wait.seconds:9.3f} {wait.share:6.1%}  {wait.lane:16} {wait.what:32} {wait.advice}"
        for wait in waits[:_ROWS]
    ]
    if rest := waits[_ROWS:]:
        seconds, share = sum(w.seconds for w in rest), sum(w.share for w in rest)
        lines.append(f"{seconds:9.3f} {share:6.1%}  {len(rest)} other kinds of wait")
    if waits:
        worst = waits[0]
        lines += ["", f"culprit: {worst.lane}, {worst.what} ({worst.share:.0%} of a step)"]
        lines.append(f"what would shorten it: {worst.advice}")
    lines += ["", *_lives(mean_lives(warm)), ""]
    longest = sorted(timings, key=lambda timing: -timing.seconds)[:_STEPS]
    few = (
        f"the longest {len(longest)} of {len(timings)} steps" if len(timings) > _STEPS else "steps"
    )
    lines.append(f"{few}, and the longest wait on the critical path of each")
    for timing in sorted(longest, key=lambda timing: timing.step):
        lane, what, seconds = next(iter(by_kind([timing.critical_path])), ("-", "nothing", 0.0))
        share = seconds / (timing.seconds or 1.0)
        lines.append(f"{timing.step + 1:>6}  {timing.seconds:8.3f} s  {share:4.0%} {lane}: {what}")
    return "\n".join(lines)


def mean_lives(timings: Sequence[TimingLine]) -> list[Lives]:
    """Averages the percentile groups of response length over all steps."""
    from launch.run_files.records import Lives

    groups: dict[str, list[Lives]] = {}
    for timing in timings:
        for life in timing.lives:
            groups.setdefault(life.group, []).append(life)
    found: list[Lives] = []
    for group, some in groups.items():
        count = sum(life.trajectories for life in some)
        names = [phase for phase in _PHASES if any(phase in life.seconds for life in some)]
        found.append(
            Lives(
                group=group,
                trajectories=count,
                tokens_mean=sum(life.tokens_mean * life.trajectories for life in some) / count,
                seconds={
                    name: sum(life.seconds.get(name, 0.0) * life.trajectories for life in some)
                    / count
                    for name in names
                },
            )
        )
    return found


def _lives(found: Sequence[Lives]) -> list[str]:
    """Shows where trajectories spent their time, by percentile of length."""
    lines = ["where trajectories spent their time, mean seconds, by percentile of their length"]
    lines.append(f"{'':26}" + "".join(f"{life.group:>10}" for life in found))
    lines.append(f"{'trajectories':26}" + "".join(f"{life.trajectories:10}" for life in found))
    lines.append(f"{'tokens, mean':26}" + "".join(f"{life.tokens_mean:10.1f}" for life in found))
    for phase in _PHASES:
        row = "".join(f"{life.seconds.get(phase, 0.0):10.3f}" for life in found)
        lines.append(f"{phase:26}{row}")
    for life in found:
        most = max(life.seconds.items(), key=lambda item: item[1])[0]
        lines.append(f"  {life.group}: mostly {most}")
    return lines


def profile_document(timings: Sequence[TimingLine], waits: Sequence[Wait]) -> dict[str, Any]:
    """Returns the content of `--out`."""
    return {
        "steps": [
            {
                "step": timing.step + 1,
                "step_seconds": timing.seconds,
                "critical_path": [
                    {"lane": s.lane, "what": s.what, "seconds": s.seconds, "detail": s.detail}
                    for s in timing.critical_path
                ],
                "percentiles": timing.percentiles,
                "stragglers": timing.stragglers,
            }
            for timing in timings
        ],
        "waits": waits,
        "trajectories": mean_lives(_warm(timings)),
        "culprit": waits[0] if waits else None,
    }
