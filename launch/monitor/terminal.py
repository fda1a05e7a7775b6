"""Output of `darts train`: a line for each step, evaluation and warning.

On a terminal the panel of `darts top` stays below the lines; elsewhere each new phase is a line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.live import Live as LivePanel
from rich.text import Text

from launch.monitor.panel import History, clock, count, render_panel, score_name
from pipeline.observability.live_status import RunStatus
from pipeline.system.terminal_text import counted, printable

_ECHO = len("^C^C")
"""Columns kept free right of the panel for the terminal's echo of Ctrl-C: on a line of its own it
would leave a line of the panel behind."""


class TerminalView:
    """Prints steps, evaluations and warnings; updates a panel on a terminal."""

    def __init__(self, steps: int, out: TextIO | None = None, name: str = "") -> None:
        self._out = out or sys.stdout
        self._steps, self._name = steps, name
        self._now = RunStatus(steps=steps)  # the newest that came
        self._history = History()
        self._started = time.monotonic()
        self._phase = ""
        self._console: Console | None = None
        self._panel: LivePanel | None = None
        if self._out.isatty():
            self._console = Console(file=self._out, highlight=False)
            # its own thread would draw between a signal and our reaction
            self._panel = LivePanel(console=self._console, auto_refresh=False, transient=True)

    def on_line(self, line: dict[str, Any]) -> None:
        if "step" in line:
            self._history.add_line("step", line["step"])
            self._print(self._step(line["step"]))
        elif "eval" in line:
            self._history.add_line("eval", line["eval"])
            found = line["eval"]
            self._print(self._fitted(*_evaluation(found), between=", ") + _below(found))
        elif "say" in line:
            self._print(f"  ! {line['say']}")
        elif "live" in line:
            self._status(msgspec.convert(line["live"], RunStatus))

    def _step(self, step: dict[str, Any]) -> str:
        left = self._history.left_s(self._now) or 0.0
        ledger = step["ledger"]
        return self._fitted(
            f"step {step['step'] + 1:>3}/{self._steps}",
            f"reward {step['reward']:.2f}",
            f"tokens mean {step['tokens_mean']:.0f} p95 {step['tokens_p95']} "
            f"max {step['tokens_max']}",
            *_groups(step),
            f"{step['seconds']:.2f} s",
            f"ETA {clock(left)}",
            f"sampled {count(ledger['sampled'])} trained {count(ledger['trained'])} "
            f"aborted {count(ledger['aborted'])}",
            *([f"paced: {step['paced']}"] if "paced" in step else []),
        )

    def _fitted(self, *fields: str, between: str = "  ") -> str:
        """Fields on one line; on a terminal on as many as it takes to break none of them."""
        width = sys.maxsize if self._console is None else self._console.width
        lines = [""]
        for field in fields:
            joined = f"{lines[-1]}{between}{field}" if lines[-1] else field
            if len(joined) <= width or not lines[-1]:
                lines[-1] = joined
            else:
                lines[-1] += between.rstrip()
                lines.append(f"    {field}")
        return "\n".join(lines)

    def _status(self, now: RunStatus) -> None:
        self._now = now
        elapsed = clock(time.monotonic() - self._started)
        if self._console is None or self._panel is None:
            if now.phase != self._phase:
                self._phase = now.phase
                self._print(f"{elapsed}  {now.phase}")
            return
        self._panel.start()  # only the first call has an effect
        width = self._console.width - _ECHO
        note = f"{elapsed} since the start"
        self._panel.update(
            render_panel(self._name, now, self._history, width=width, note=note), refresh=True
        )

    def _print(self, text: str) -> None:
        text = printable(text)
        if self._console is None:
            self._out.write(text + "\n")
            self._out.flush()
        else:
            self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        if self._panel is not None:
            self._panel.stop()


def evaluation_line(found: Mapping[str, Any]) -> str:
    """Formats an evaluation, with further figures on lines of their own."""
    return ", ".join(_evaluation(found)) + _below(found)


def _evaluation(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"evaluation at step {found['step']}: {score_text(found)}"
    lengths = f"p95 {found['tokens_p95']} max {found['tokens_max']}"
    yield f"tokens mean {found['tokens_mean']:.1f} {lengths}"
    yield f"{found['samples']} samples in {found['seconds']:.1f} s"


def _below(found: Mapping[str, Any]) -> str:
    return "".join(f"\n  {line}" for line in _further(found))


def result_table(result: dict[str, Any], steps: int) -> str:
    """Formats the final table of a run."""
    ledger = result["tokens"]
    rows: list[tuple[str, str, str, str]] = []

    def change(name: str, before: float | None, after: float | None, form: str) -> None:
        if before is not None and after is not None:
            share = f"{(after - before) / before:+.0%}" if before else ""
            rows.append((name, format(before, form), format(after, form), share))

    name = "held-out accuracy" if _is_accuracy(result) else "held-out reward"
    change(name, result.get("reward_before"), result.get("reward_after"), ".3f")
    change(
        "mean response, tokens", result["mean_tokens_before"], result["mean_tokens_after"], ".1f"
    )
    lines: list[str] = []
    if rows and not steps:  # an evaluation alone
        lines = [*(f"{n:24}{a:>10}" for n, _, a, _ in rows), ""]
    elif rows:  # eval.every=0: there is nothing to compare
        rows.insert(0, ("", "before", "after", "change"))
        lines = [*(f"{n:24}{b:>10}{a:>10}{c:>10}" for n, b, a, c in rows), ""]
    used = {name: tokens for name, tokens in ledger.items() if tokens}
    if steps:
        lines.append(
            f"{result['steps']} of {counted(steps, 'step')} in {result['train_seconds']:.1f} s"
        )
    lines += [*_mechanisms(result), ""]
    total = max(1, result["tokens_reported_by_engines"])
    lines.append(f"{'tokens sampled':24}{result['tokens_reported_by_engines']:>10}")
    lines += [f"  {name:22}{tokens:>10}{tokens / total:>10.1%}" for name, tokens in used.items()]
    return "\n".join(lines)


def score_text(found: Mapping[str, Any]) -> str:
    """The mean reward of an evaluation, by its right name."""
    name = score_name(found)
    return f"{name} {found[name]:.3f}"


def _is_accuracy(result: Mapping[str, Any]) -> bool:
    return all(
        result.get(f"reward_{when}") == result.get(f"accuracy_{when}")
        for when in ("before", "after")
    )


def _groups(step: Mapping[str, Any]) -> Iterator[str]:
    """Yields the groups trained on and those that were not, and how many had equal rewards."""
    trained = step["groups"].get("trained", 0)
    ended = sum(step["groups"].values())
    yield f"groups {trained} (+{ended - trained})"
    if equal := step.get("groups_equal", 0):
        which = "all" if equal == ended else f"{equal}"
        yield f"{which} with equal rewards"


def _mechanisms(result: dict[str, Any]) -> Iterator[str]:
    """Yields a line on each of DARTS' mechanisms that the run had: did it act?"""
    groups = result.get("groups", {})
    if equal := groups.get("equal"):
        yield f"rewards: all equal in {equal} of {groups['ended']} groups"
    adaptive = result.get("adaptive", {})
    if "prompts_planned" in adaptive:
        known, planned = adaptive["prompts_known"], adaptive["prompts_planned"]
        pruned = adaptive.get("pruned", 0)
        yield f"adaptive: {known} of {planned} prompts known, {pruned} groups at M_up pruned"
    if shaped := result.get("rewards_shaped"):
        yield f"overlong: {shaped} rewards shaped"
    if foreign := result.get("foreign"):
        members, tokens = foreign["members"], count(foreign["tokens"])
        yield f"foreign: {members} responses trained on that were not sampled here, {tokens} tokens"
    if (times := result.get("generation", {})).get("predicted_s"):
        expected, measured = times["predicted_s"], times["measured_s"]
        yield f"generation: {measured:.1f} s, {expected:.1f} s expected by the budget"
    if (share := result.get("logprob_hidden_share")) is not None:
        tokens = result.get("tokens_streamed", 0)
        yield f"logprob forwards: {share:.0%} during generation, {count(tokens)} tokens streamed"
    if paced := result.get("paced"):
        steps, late = paced["steps"], paced["late"]
        share = f"{late} of them slower than the pace, by {paced['late_s']:.2f} s in all"
        yield f"paced: {paced['name']}: {steps} engine steps, {share}"
    if unsure := result.get("weights_unsure"):
        loads = unsure + result["weights_proved"]
        yield f"weights: {unsure} of {loads} loads are not proved (docs/engines.md)"


def _further(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the optional metrics of an evaluation: pass@k, greedy, and sets by name."""
    own = [f"{key} {found[key]:.3f}" for key in found if key == "greedy" or "pass@" in key]
    if own:
        yield ", ".join(own)
    for name, metrics in found.get("sets", {}).items():
        more = _further(metrics)
        score = score_text(metrics) if "accuracy" in metrics else "no metrics"
        yield ", ".join([f"{name}: {score}", *more])
