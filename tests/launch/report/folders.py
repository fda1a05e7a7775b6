"""Folders of runs as `darts train` leaves them, made up: lengths, rewards and times are drawn."""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config.load import dump, load
from pipeline.observability.rollout_files import RolloutFiles, RolloutLine
from tests.launch.jobs.jobs import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
TOKEN_S = 0.01
SIZE = 8
AUDIT = {
    "groups": 8, "signal_lost": 1, "reward_shift": 0.0625, "tokens_shift": -12.5,
    "advantage_moved": 0.125,
    "advantage_shift_by_kind": {"right_short": -0.125, "right_long": -0.25, "wrong_short": 0.5},
    "members_by_kind": {"right_short": 40, "right_long": 6, "wrong_short": 10},
}  # fmt: skip


class Response(msgspec.Struct):
    trajectory: int
    group: int
    prompt: int
    tokens: int
    state: str
    trained: bool
    reward: float
    slot: int = 0
    start: float = 0.0
    end: float = 0.0


class Made(msgspec.Struct, kw_only=True):
    """A run to be written: `steps` of `groups` with `members` candidates each."""

    path: Path
    steps: int = 12
    groups: int = 8
    members: int = 12
    slots: int = 24  # of each of two engines
    traced: int = 3
    timing: bool = True
    audited: bool = True  # every other step
    finished: bool = True
    settings: tuple[str, ...] = ()
    seed: int = 0

    def write(self) -> Path:
        """Makes the folder; gives it back."""
        self.path.mkdir(parents=True)
        for name in ("samples", "rollouts"):
            (self.path / name).mkdir()
        own = [f"seed={self.seed}", f"step.count={self.steps}", f"step.prompts={self.groups}"]
        own += ["learner.warmup_steps=0"]  # some of them are of few steps
        config = load(QUICKSTART, [*own, *self.settings])
        (self.path / "config.yaml").write_text(dump(config))
        about = {"started": "2026-01-01 00:00:00 +0000", "revision": "abcdef0"}
        (self.path / "about.json").write_text(json.dumps(about))
        _Writer(self).write()
        return self.path


class _Writer:
    def __init__(self, made: Made) -> None:
        self._made = made
        self._random = random.Random(made.seed)
        self._now = 0.0
        self._next = self._group = 0
        self._ledger: dict[str, int] = dict.fromkeys(
            ("trained", "redundant", "aborted", "eval", "lost"), 0
        )
        self._events: list[dict[str, Any]] = []

    def write(self) -> None:
        made = self._made
        with (
            open(made.path / "metrics.jsonl", "w") as metrics,
            open(made.path / "decisions.jsonl", "w") as decisions,
        ):
            for number in range(made.steps + 1):
                if number % max(1, made.steps // 3) == 0:
                    self._line(metrics, self._evaluation(number))
                if number == made.steps:
                    break
                for line in self._step(number, decisions):
                    self._line(metrics, line)
        if made.traced:
            names = {
                1: "stage",
                2: "rewards",
                100: "learner rank 0",
                1000: "engine e0",
                1001: "engine e1",
            }
            named = [
                {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
                for pid, name in names.items()
            ]
            text = json.dumps({"traceEvents": [*named, *self._events]})
            (made.path / "trace.json").write_text(text)
        if made.finished:
            result = {"steps": made.steps, "train_seconds": self._now, "tokens": self._ledger}
            result["tokens_reported_by_engines"] = sum(self._ledger.values())
            (made.path / "result.json").write_text(json.dumps(result))

    @staticmethod
    def _line(file: Any, line: dict[str, Any]) -> None:
        file.write(msgspec.json.encode(line).decode() + "\n")

    def _evaluation(self, step: int) -> dict[str, Any]:
        learned = 1 - math.exp(-4 * step / self._made.steps)
        accuracy = 0.4 + 0.5 * learned + self._random.gauss(0, 0.01)
        path = self._made.path / "samples" / f"step-{step:06d}.jsonl"
        with path.open("w") as file:
            for i, prompt in enumerate(("1+7+6+9+7=", "2+6+8+2=", "1+9=", "4+6+1+3+8+5=")):
                reward = float(self._random.random() < accuracy)
                response = f"{'thinking, ' * 3}#{i}"
                self._line(
                    file, dict(prompt=prompt, response=response, reward=reward, answer=str(i))
                )
        return {"what": "eval", "step": step, "accuracy": accuracy, "reward": accuracy,
                "tokens_mean": 40.0, "tokens_p95": 110.0, "samples": 4}  # fmt: skip

    def _responses(self, step: int) -> list[Response]:
        """Of one step: lengths with long tails, shorter as training goes on."""
        shrink = 1 - 0.4 * step / self._made.steps
        found: list[Response] = []
        for _ in range(self._made.groups):
            middle = 60 * shrink * math.exp(self._random.gauss(0, 0.4))
            lengths = [
                max(2, int(middle * math.exp(self._random.gauss(0, 0.6))))
                for _ in range(self._made.members)
            ]
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            chosen = {*order[: SIZE - 1], order[SIZE]}
            for place, tokens in enumerate(lengths):
                aborted = place == order[-1]
                found.append(
                    Response(
                        trajectory=self._next, group=self._group, prompt=self._group % 1000,
                        tokens=tokens, state="aborted" if aborted else "finished",
                        trained=place in chosen, reward=float(self._random.random() < 0.6),
                    )
                )  # fmt: skip
                self._next += 1
            self._group += 1
        return found

    def _schedule(self, responses: Sequence[Response]) -> None:
        """Onto the slot that is free first."""
        free = [(self._now, slot) for slot in range(2 * self._made.slots)]
        for response in responses:
            response.start, response.slot = heapq.heappop(free)
            response.end = response.start + response.tokens * TOKEN_S
            heapq.heappush(free, (response.end, response.slot))

    def _step(self, number: int, decisions: Any) -> Iterator[dict[str, Any]]:
        responses, since = self._responses(number), self._now
        self._schedule(responses)
        late = max((r for r in responses if r.trained), key=lambda r: r.end)
        for response in responses:  # the barrier: what still runs is stopped
            if response.end > late.end:
                response.end, response.state = late.end, "aborted"
                response.tokens = max(0, int((late.end - response.start) / TOKEN_S))
        path: list[list[Any]] = [
            [f"engine e{late.slot // self._made.slots}", "queued", late.start - since, ""],
            [f"engine e{late.slot // self._made.slots}", "decoding", late.end - late.start,
             f"trajectory {late.trajectory}, {late.tokens} tokens"],
            ["rewards", "scoring", 0.02, f"trajectory {late.trajectory}"],
            ["learner rank 0", "forward and backward", 0.1, f"group {late.group}"],
            ["learner rank 0", "optimizer, publish", 0.06, ""],
        ]  # fmt: skip
        self._now = since + sum(part[2] for part in path)
        if number < self._made.traced:
            self._trace(number, since, responses, late)
        for line in self._groups(number, responses):
            self._line(decisions, line)
        lines = b"".join(msgspec.json.encode(_rollout(number, r)) + b"\n" for r in responses)
        RolloutFiles(self._made.path / "rollouts", 1 << 30).append(number, lines)
        yield self._metrics(number, self._now - since, late.end - since, responses)
        if self._made.timing:
            spread = {
                "count": 100,
                "p50": 0.01,
                "p95": 0.02 + number * 1e-4,
                "p99": 0.05,
                "max": 0.2,
            }
            yield {
                "what": "timing", "step": number, "seconds": self._now - since,
                "since_s": 50 + since,
                "critical_path": path,
                "percentiles": {"time_to_first_token_s": spread, "inter_token_s": spread},
                "lives": [],
            }  # fmt: skip

    @staticmethod
    def _groups(number: int, responses: Sequence[Response]) -> Iterator[dict[str, Any]]:
        by_group: dict[int, list[Response]] = {}
        for response in responses:
            by_group.setdefault(response.group, []).append(response)
        for group, some in by_group.items():
            yield {
                "what": "decision", "step": number, "group": group, "prompt": group % 1000,
                "action": "Finalize", "ids": [], "why": "7 shortest and 1 longest",
            }  # fmt: skip
            yield {
                "what": "group", "step": number, "version": number, "group": group,
                "kind": "train", "prompt": group % 1000, "attempt": 0, "fate": "trained",
                "why": "7 shortest and 1 longest",
                "members": [
                    [r.trajectory, r.state, r.tokens, -0.1,
                     r.reward if r.state == "finished" else None, r.trained, [number]]
                    for r in some
                ],
            }  # fmt: skip

    def _metrics(
        self, number: int, seconds: float, generation: float, responses: Sequence[Response]
    ) -> dict[str, Any]:
        fates = dict.fromkeys(self._ledger, 0)
        for response in responses:
            fates[_fate(response)] += response.tokens
        for fate, tokens in fates.items():
            self._ledger[fate] += tokens
        sampled = sum(fates.values())
        return {
            "what": "step", "step": number, "seconds": seconds, "generation_s": generation,
            "reward": 0.5 + 0.4 * number / self._made.steps,
            "tokens_mean": sampled / len(responses),
            "tokens_p95": 120, "tokens_max": 200, "tokens_sampled": sampled,
            "tokens_trained": fates["trained"], "sampled_per_trained": sampled / fates["trained"],
            "depth": 2.5, "bubble_engine": 0.2, "bubble_learner": 0.7,
            "ledger": {"sampled": sum(self._ledger.values()), "open": 0, **self._ledger},
            "learner": {"loss": -0.1, "entropy": 0.5, "clipped": 0.01, "grad_norm": 0.3,
                        "lr": 1e-4, "mismatch": 2e-6},
            **({"audit": AUDIT} if number % 2 and self._made.audited else {}),
        }  # fmt: skip

    def _trace(
        self, number: int, since: float, responses: Sequence[Response], late: Response
    ) -> None:
        def span(pid: int, tid: int, name: str, start: float, end: float, **args: Any) -> None:
            start_us = round(start * 1e6)
            self._events.append(
                {"ph": "X", "cat": "darts", "name": name, "pid": pid, "tid": tid, "ts": start_us,
                 "dur": max(1, round(end * 1e6) - start_us), "args": args}
            )  # fmt: skip

        for pid in (1000, 1001):
            span(pid, 0, "weights", since, since + 0.01, version=number)
        for r in responses:
            pid, slot = 1000 + r.slot // self._made.slots, 1 + r.slot % self._made.slots
            if r.end > r.start:
                span(pid, slot, _fate(r), r.start, r.end, trajectory=r.trajectory, group=r.group,
                     prompt=r.prompt, tokens=r.tokens, finish="stop", reward=r.reward)  # fmt: skip
        for place, group in enumerate(sorted({r.group for r in responses})):
            at = max(r.end for r in responses if r.group == group and r.trained)
            span(1, 2, "Finalize", at, at, why="7 shortest and 1 longest", group=group)
            span(2, 1 + place % 3, "reward", at, at + 0.015, trajectory=late.trajectory, reward=1.0)
        span(100, 1, "forward and backward", late.end + 0.02, late.end + 0.12, group=late.group)
        span(100, 1, "optimizer, publish", late.end + 0.12, self._now, step=number)
        span(1, 1, f"step {number + 1}", since, self._now)


def _rollout(step: int, of: Response) -> RolloutLine:
    return RolloutLine(
        step=step,
        group=of.group,
        prompt=of.prompt,
        id=of.trajectory,
        fate=_fate(of),
        group_fate="trained",
        state=of.state,
        finish="stop" if of.state == "finished" else of.state,
        reward=of.reward if of.state == "finished" else None,
        tokens=of.tokens,
        prompt_text=f"{of.prompt}+1=",
        answer=str(of.prompt + 1),
        pieces=((f"thinking, {of.trajectory} times;#{of.prompt + 1}", True),),
    )


def _fate(response: Response) -> str:
    if response.trained:
        return "trained"
    return "aborted" if response.state == "aborted" else "redundant"
