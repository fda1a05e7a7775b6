"""Renders a run as a panel: for `darts top`, and for `darts train` on a terminal.

Turns a run's status (`pipeline.observability.live_status.RunStatus`) and its newest steps into
something that rich can print at any width. Reads no file and no clock.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.observability.live_status import EngineStatus, PeerStatus, RunStatus
from pipeline.system.terminal_text import printable

POINTS = 40
"""Largest number of steps in a sparkline."""
_ENGINES_SHOWN = 6
_WAITS_SHOWN = 4
SHORTEST_WAIT_S = 1.0
"""Waits below this are no news: every token is waited for."""
_SILENT_S = 2.0  # a peer reports once a second; after this it is shown as silent
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII = str.maketrans("▁▂▃▄▅▆▇█░·…", "_.,-:=+#.|~")
_JOINED = ("joined", "welcomed")  # the stage's words for a peer that has not reported yet
_OF_A_GROUP = re.compile(r"(?:step \d+ waits for )?(\w+) group (\d+), which waits for (.*)")
# account -> colour; their order and names distinguish them without colours
_ACCOUNTS = {
    "trained": "green",
    "redundant": "cyan",
    "aborted": "yellow",
    "dropped": "magenta",
    "stale": "red",
    "failed": "red",
    "lost": "red",
    "eval": "blue",
    "open": "bright_black",
    "parked": "bright_black",
}


def clock(seconds: float) -> str:
    """Formats seconds as 1:02:03, or 2:03 below an hour.

    >>> clock(123)
    '2:03'
    """
    minutes, second = divmod(int(max(0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def count(tokens: float) -> str:
    """Shortens thousands and millions.

    >>> count(12_345)
    '12.3k'
    """
    if tokens >= 1e6:
        return f"{tokens / 1e6:.2f}M"
    return f"{tokens / 1e3:.1f}k" if tokens >= 1e4 else f"{tokens:.0f}"


def score_name(found: Mapping[str, Any]) -> str:
    """`accuracy` where every reward was 0 or 1, so that it equals the mean reward; else `reward`.

    >>> score_name({"reward": 0.5, "accuracy": 0.5}), score_name({"reward": 0.7, "accuracy": 0.2})
    ('accuracy', 'reward')
    """
    accuracy = found.get("accuracy")
    return "accuracy" if found.get("reward", accuracy) == accuracy else "reward"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draws the last `width` values, scaled between their lowest and highest.

    >>> sparkline([0, 1, 2, 4], 3)
    '▁▃█'
    """
    shown = values[-width:] if width > 0 else ()
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    if not span:
        return _LEVELS[0] * len(shown)
    return "".join(_LEVELS[int((v - low) / span * (len(_LEVELS) - 1))] for v in shown)


class History:
    """The newest steps and evaluations, for sparklines and the remaining time."""

    def __init__(self) -> None:
        self.steps: deque[Mapping[str, Any]] = deque(maxlen=POINTS)
        self.evals: deque[Mapping[str, Any]] = deque(maxlen=POINTS)

    def add_line(self, what: str, fields: Mapping[str, Any]) -> None:
        """Keeps a line of `metrics.jsonl` if it is a step or an evaluation."""
        if what == "step":
            self.steps.append(fields)
        elif what == "eval":
            self.evals.append(fields)

    def left_s(self, now: RunStatus) -> float | None:
        """Estimate the seconds that the run still takes; None before its first step.

        The steps that are left, each as the last ten, or as those since the last checkpoint but
        one where that is longer (a checkpoint holds up the step beside it); the evaluations that
        are left, each as the last one; and the last checkpoint, which the run waits for.
        """
        if not self.steps:
            return None
        recent = [line["seconds"] for line in self.steps][-max(10, now.checkpoint_every) :]
        left_s = (now.steps - self.steps[-1]["step"] - 1) * sum(recent) / len(recent)
        if self.evals:
            left_s += now.evaluations_left * self.evals[-1].get("seconds", 0.0)
        return left_s + (now.checkpoint_s if now.checkpoint_every else 0.0)


class Ending(msgspec.Struct, frozen=True):
    """The end of a run."""

    word: str  # for the title
    advice: str = ""  # what to do next


class Legible:
    """Turns a renderable into ASCII if the terminal's encoding has nothing else."""

    def __init__(self, whole: RenderableType) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._whole, options):
            if options.ascii_only and not segment.text.isascii():
                text = segment.text.translate(_ASCII).encode("ascii", "replace").decode()
                yield Segment(text, segment.style, segment.control)
            else:
                yield segment


def render_panel(
    name: str,
    now: RunStatus,
    history: History,
    *,
    width: int,
    note: str = "",
    ending: Ending | None = None,
) -> RenderableType:
    """Draws the panel.

    Args:
        name: name of the run, for the title.
        width: columns of the terminal.
        note: shown at the lower edge: the age of the data, or how the run ended.
        ending: how the run ended; None: it is not over.
    """
    parts: list[RenderableType] = [_newest(history), _learning(now, history, width - 4)]
    if ending is None and now.phase != "over" and (now.engines or now.peers):
        parts += [Text(), _processes(now, width - 4)]
    parts += [Text(), _rest(now, ending)]
    word = now.phase if ending is None else ending.word
    title = " · ".join(filter(None, (name, word, _place(now, ending))))
    if now.paced:
        title += f" · paced: {now.paced}"
    left = history.left_s(now)
    if left and ending is None and now.phase in ("training", "evaluating"):
        title += f" · about {clock(left)} left"
    return Legible(
        Panel(
            Group(*parts),
            title=Text(title, "bold"),
            title_align="left",
            subtitle=Text(printable(note)) if note else None,
            subtitle_align="right",
            width=width,
            padding=(0, 1),
        )
    )


def _place(now: RunStatus, ending: Ending | None) -> str:
    """Names the current step, counted from 1, or the number of finished steps."""
    if ending is None and now.phase == "training" and now.step < now.steps:
        return f"step {now.step + 1} of {now.steps}"
    return f"{now.step} of {_many(now.steps, 'step')} done"


def _newest(history: History) -> Text:
    """Names the step and the evaluation of the metrics shown."""
    if not history.steps:
        return Text("no step has ended yet", "bright_black")
    text = f"step {history.steps[-1]['step'] + 1}"
    if history.evals:
        found = history.evals[-1]
        text += f", {score_name(found)} of the evaluation at step {found['step']}"
    return Text(f"metrics of {text}", "bright_black", no_wrap=True, overflow="ellipsis")


# --- the parts --------------------------------------------------------------------------


def _learning(now: RunStatus, history: History, width: int) -> Table:
    """Draws two columns of metrics with their sparklines."""
    step = {**now.newest_step, **(history.steps[-1] if history.steps else {})}
    found = {**now.newest_eval, **(history.evals[-1] if history.evals else {})}
    length = _form(step, "tokens_mean", ".0f")
    if "tokens_p95" in step:
        length += f" p95 {step['tokens_p95']:.0f}"
    score = score_name(found)
    evaluated = score if score == "accuracy" else "held out"  # "reward" is that of steps
    room = max(4, width // 2 - 26)
    rows = (
        ("reward", _form(step, "reward", ".3f"), _curve(history.steps, "reward", room)),
        ("tokens", length, _curve(history.steps, "tokens_mean", room)),
        (evaluated, _form(found, score, ".3f"), _curve(history.evals, score, room)),
        ("step", _form(step, "seconds", ".2f s"), _curve(history.steps, "seconds", room)),
    )
    table = Table.grid(padding=(0, 1))
    for _ in range(2):
        table.add_column(no_wrap=True, style="bright_black")
        table.add_column(no_wrap=True, min_width=13)
        table.add_column(no_wrap=True, min_width=room)
    for left, right in zip(rows[::2], rows[1::2], strict=True):
        table.add_row(*left[:2], Text(left[2], "cyan"), *right[:2], Text(right[2], "cyan"))
    engines, learner = _form(step, "bubble_engine", ".0%"), _form(step, "bubble_learner", ".0%")
    spent = _form(step, "sampled_per_trained", ".2f per trained one")
    table.add_row("idle", f"engines {engines}", f"learner {learner}", "sampled", spent)
    return table


def _form(metrics: Mapping[str, Any], name: str, form: str) -> str:
    """Formats one metric; `form` may end in a unit: `.2f s`."""
    value = metrics.get(name)
    number, _, unit = form.partition(" ")
    return "-" if value is None else f"{value:{number}}{' ' + unit if unit else ''}"


def _curve(lines: Iterable[Mapping[str, Any]], name: str, width: int) -> str:
    return sparkline([line[name] for line in lines if line.get(name) is not None], width)


def _processes(now: RunStatus, width: int) -> Table:
    """Lists engines with their used slots, then learner ranks, with the activity of each."""
    peers = {peer.name: peer for peer in now.peers}
    engines = sorted(now.engines, key=_use)[:_ENGINES_SHOWN]
    table = Table.grid(padding=(0, 1))
    for narrowest in (3, None, 7, None):
        table.add_column(no_wrap=True, min_width=narrowest)
    room = max(6, min(32, width - 50))
    for engine in sorted(engines, key=lambda engine: engine.name):
        share, doing = _use(engine), _weights(engine)
        peer = peers.get(engine.name)
        said_before = engine.running and peer is not None and peer.activity == "idle"
        if peer is not None and (not said_before or peer.heard_s >= _SILENT_S):
            doing += f", {_says(peer.activity, peer.heard_s)}"
        table.add_row(
            engine.name, _bar(share, room), f"{engine.running}/{engine.slots}", Text(doing)
        )
    if more := len(now.engines) - len(engines):
        slots = sum(engine.slots for engine in now.engines)
        rest = f"all {len(now.engines)} engines; {more} busier ones are not listed"
        share = now.running / max(1, slots)
        table.add_row("", _bar(share, room), f"{now.running}/{slots}", Text(rest))
    for peer in now.peers:
        if peer.role == "learner":
            table.add_row(peer.name, "", "", Text(_learns(peer, now)))
    return table


def _use(engine: EngineStatus) -> float:
    return engine.running / max(1, engine.slots)


def _weights(engine: EngineStatus) -> str:
    if engine.loading >= 0:
        return f"loading version {engine.loading}"
    return f"version {engine.version}" if engine.version >= 0 else "no weights yet"


def _learns(peer: PeerStatus, now: RunStatus) -> str:
    """Describes a rank; one that has got groups since it reported `idle` is not idle."""
    groups = now.at_rank.get(peer.name.removeprefix("l"), 0)
    if not groups:
        return _says(peer.activity, peer.heard_s)
    waiting = f"{_many(groups, 'group')} to train on"
    if peer.activity == "idle" and peer.heard_s < _SILENT_S:
        return waiting
    return f"{_says(peer.activity, peer.heard_s)}; {waiting}"


def _says(activity: str, heard_s: float) -> str:
    doing = "has joined, no report of its work yet" if activity in _JOINED else printable(activity)
    return doing if heard_s < _SILENT_S else f"{doing}, silent for {heard_s:.0f} s"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _bar(share: float, width: int) -> Text:
    full = round(max(0.0, min(1.0, share)) * width)
    return Text("█" * full, "green").append("░" * (width - full), "bright_black")


def _rest(now: RunStatus, ending: Ending | None) -> Table:
    """Lists queues, token accounts and waits; for a run that has ended, what to do next."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="bright_black")
    table.add_column()
    if ending is not None:
        table.add_row("sampled", _ledger(now))
        if ending.advice:
            table.add_row("next", Text(ending.advice, overflow="fold"))
        return table
    groups = ", ".join(f"{n} {stage}" for stage, n in now.groups.items() if n)
    queues = [f"{now.queued} queued for a slot", f"groups: {groups or 'none'}"]
    if now.rewards_queued or now.rewards_running:
        queues.insert(1, f"rewards: {now.rewards_running} running, {now.rewards_queued} queued")
    if now.evaluating:
        queues.append(f"{now.evaluating} held-out prompts left")
    table.add_row("queues", "; ".join(queues))
    table.add_row("sampled", _ledger(now))
    if refused := ", ".join(f"{n} {what}" for what, n in now.refused.items() if n):
        table.add_row("refused", f"frames and chunks: {refused}")
    long = [wait for wait in now.waits if wait.seconds >= SHORTEST_WAIT_S]
    for wait in long[:_WAITS_SHOWN]:
        line = f"{wait.seconds:.1f} s for {printable(_for_whom(wait.what))}"
        table.add_row("waiting", Text(line, no_wrap=True, overflow="ellipsis"))
    return table


def _for_whom(what: str) -> str:
    """Shortens the sentence of a wait.

    >>> _for_whom("step 5 waits for train group 4, which waits for trajectory 9, queued")
    'group 4 (trajectory 9, queued)'
    """
    found = _OF_A_GROUP.fullmatch(what)
    if found is None:
        return what
    kind, group, why = found.groups()
    return f"{'held-out ' if kind == 'eval' else ''}group {group} ({why})"


def _ledger(now: RunStatus) -> Text:
    total = max(1, sum(now.ledger.values()))
    text = Text(f"{count(now.sampled)} tokens")
    for account, colour in _ACCOUNTS.items():
        if tokens := now.ledger.get(account, 0):
            text.append("  ").append(f"{account} {tokens / total:.0%}", colour)
    return text
