"""What a person sees of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, TextIO


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour.

    >>> clock(123)
    '2:03'
    """
    minutes, second = divmod(int(max(0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def count(tokens: float) -> str:
    """Thousands and millions short.

    >>> count(12_345)
    '12.3k'
    """
    if tokens >= 1e6:
        return f"{tokens / 1e6:.2f}M"
    return f"{tokens / 1e3:.1f}k" if tokens >= 1e4 else f"{tokens:.0f}"


class TerminalView:
    """Prints steps, evaluations and warnings; keeps one line alive on a terminal."""

    def __init__(self, steps: int, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._steps = steps
        self._live = self._out.isatty()
        self._durations: deque[float] = deque(maxlen=10)
        self._accuracy = ""
        self._started = time.monotonic()
        self._phase = ""

    def heard(self, line: dict[str, Any]) -> None:
        if "step" in line:
            self._print(self._step(line["step"]))
        elif "eval" in line:
            self._print(self._evaluation(line["eval"]))
        elif "say" in line:
            self._print(f"  ! {line['say']}")
        elif "live" in line:
            self._status(line["live"])

    def _step(self, step: dict[str, Any]) -> str:
        self._durations.append(step["seconds"])
        left = (self._steps - step["step"] - 1) * sum(self._durations) / len(self._durations)
        ledger = step["ledger"]
        lost = sum(n for fate, n in step["groups"].items() if fate != "trained")
        return (
            f"step {step['step'] + 1:>3}/{self._steps}  reward {step['reward']:.2f}  "
            f"tokens mean {step['tokens_mean']:.0f} p95 {step['tokens_p95']} "
            f"max {step['tokens_max']}  groups {step['groups'].get('trained', 0)} (+{lost})  "
            f"sampled {count(ledger['sampled'])} trained {count(ledger['trained'])} "
            f"aborted {count(ledger['aborted'])}  {step['seconds']:.2f} s  ETA {clock(left)}"
        )

    def _evaluation(self, found: dict[str, Any]) -> str:
        self._accuracy = f"accuracy {found['accuracy']:.3f}"
        return (
            f"evaluation at step {found['step']}: {self._accuracy}, tokens mean "
            f"{found['tokens_mean']:.1f} p95 {found['tokens_p95']} max {found['tokens_max']}, "
            f"{found['samples']} samples in {found['seconds']:.1f} s"
        )

    def _status(self, live: dict[str, Any]) -> None:
        elapsed = clock(time.monotonic() - self._started)
        if live["phase"] != self._phase:
            self._phase = live["phase"]
            if not self._live:
                self._print(f"{elapsed}  {self._phase}")
        if self._live:
            text = (
                f"{elapsed}  {live['phase']}  step {live['step']}/{live['steps']}  "
                f"{live['running']} running  {count(live['sampled'])} tokens  {self._accuracy}"
            )
            self._out.write(f"\r\x1b[2K{text[:110]}")
            self._out.flush()

    def _print(self, text: str) -> None:
        if self._live:
            self._out.write("\r\x1b[2K")
        self._out.write(text + "\n")
        self._out.flush()

    def close(self) -> None:
        if self._live:
            self._out.write("\r\x1b[2K")
            self._out.flush()


def table(result: dict[str, Any], steps: int) -> str:
    """The final table of a run."""
    ledger = result["tokens"]
    rows: list[tuple[str, str, str, str]] = []

    def change(name: str, before: float | None, after: float | None, form: str) -> None:
        if before is not None and after is not None:
            share = f"{(after - before) / before:+.0%}" if before else ""
            rows.append((name, format(before, form), format(after, form), share))

    change("held-out accuracy", result["accuracy_before"], result["accuracy_after"], ".3f")
    change(
        "mean response, tokens", result["mean_tokens_before"], result["mean_tokens_after"], ".1f"
    )
    lines = [f"{'':24}{'before':>10}{'after':>10}{'change':>10}"]
    lines += [f"{n:24}{b:>10}{a:>10}{c:>10}" for n, b, a, c in rows]
    used = {name: tokens for name, tokens in ledger.items() if tokens}
    lines += ["", f"{result['steps']} of {steps} steps in {result['train_seconds']:.1f} s", ""]
    total = max(1, result["tokens_reported_by_engines"])
    lines.append(f"{'tokens sampled':24}{result['tokens_reported_by_engines']:>10}")
    lines += [f"  {name:22}{tokens:>10}{tokens / total:>10.1%}" for name, tokens in used.items()]
    return "\n".join(lines)
