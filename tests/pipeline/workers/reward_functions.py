"""Rewards as users write them, good and bad, for the tests of the pool."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from typing import Any

from pipeline.plugins.interfaces import RewardOptions
from pipeline.plugins.views import Sampled


class UnpicklableError(Exception):
    """Does not unpickle: its constructor takes two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


class DyingOptions(RewardOptions, frozen=True, kw_only=True):
    marks: str
    """A file with a mark for each worker that was started."""
    times: int
    """Number of workers that die before they have built it."""


class DiesWhileItIsBuilt:
    """A reward whose first workers are killed, as by a kernel that is short of memory."""

    Options = DyingOptions

    def __init__(self, options: DyingOptions) -> None:
        with open(options.marks, "a") as file:
            file.write("x")
        if os.path.getsize(options.marks) <= options.times:
            os.kill(os.getpid(), signal.SIGKILL)

    def score(self, sample: Sampled) -> float:
        return 1.0


def by_response(sample: Sampled) -> Any:
    """Does what the response says."""
    word, _, rest = sample.response.partition(" ")
    match word:
        case "raise":
            raise ValueError("no such unit")
        case "unpicklable":
            raise UnpicklableError("a", "b")
        case "exit":
            os._exit(3)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "crash_once":
            if not os.path.exists(rest):
                open(rest, "w").close()
                os._exit(3)
            return 0.5
        case "hang":
            while True:
                time.sleep(1)
        case "hang_with_child":
            child = subprocess.Popen(["sleep", "600"])
            with open(rest, "w") as file:
                file.write(f"{child.pid} {os.getpid()}")
            time.sleep(600)
        case "sleep":
            time.sleep(float(rest))
        case "nan":
            return float("nan")
        case "inf":
            return float("inf")
        case "text":
            return "0.5"
        case "none":
            return None
        case "pid":
            return os.getpid()
        case "print":
            print("user code prints \u2192 \ud800")
        case _:
            pass
    return 1.0


async def slow_but_async(sample: Sampled) -> float:
    await asyncio.sleep(0.01)
    return 0.25


_loops: set[Any] = set()


async def loops_each(solution_str: str) -> float:
    """How many event loops it has been called in: what is kept open belongs to the first."""
    _loops.add(asyncio.get_running_loop())
    return float(len(_loops))


async def loops_together(completions: list[str]) -> list[float]:
    return [await loops_each(completion) for completion in completions]


def of_trl(
    prompts: list[str], completions: list[str], terms: list[int], **columns: Any
) -> list[float]:
    assert "prompt" not in columns
    return [float(len(p) + len(c) + t) for p, c, t in zip(prompts, completions, terms, strict=True)]


def of_messages(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    assert [prompt[-1]["role"] for prompt in prompts] == ["user"]
    return [float(completion[0]["content"] == "#3") for completion in completions]


def of_verl(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
    return {
        "score": solution_str == ground_truth,
        "length": len(solution_str),
        "source": data_source,
    }


def of_something_else(first: str, second: str) -> float:
    return 0.0


def together(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """Tells how many it was called with; some responses are bad for all that go with them."""
    if "raise" in completions:
        raise ValueError("one of these")
    if "exit" in completions:
        os._exit(3)
    if "hang" in completions:
        time.sleep(600)
    return [None if text == "none" else float(len(completions)) for text in completions]


class Picky:
    """A reward plug-in that can use no answer but numbers."""

    def complaint(self, sample: Sampled) -> str:
        if sample.answer == "raise":
            raise ValueError("no such unit")
        return "" if sample.answer.isdigit() else f"found {sample.answer!r}, expected digits"

    def score(self, sample: Sampled) -> float:
        return 0.0

    def __init__(self, options: object = None) -> None:
        del options


class FailsToBuild:
    """A reward plug-in whose constructor raises."""

    def __init__(self, options: object = None) -> None:
        raise UnpicklableError("no licence", "file")

    def score(self, sample: Sampled) -> float:
        return 0.0


class Ranks:
    """A reward over a group: how many are shorter; of one alone its length."""

    def __init__(self, options: object = None) -> None:
        del options

    def score(self, sample: Sampled) -> float:
        return float(len(sample.response))

    def score_group(self, samples: list[Sampled]) -> list[float | None]:
        words = [sample.response for sample in samples]
        if "raise" in words:
            raise ValueError("no such unit")
        if "hang" in words:
            time.sleep(3600)
        return [
            None if word == "silent" else float(sum(len(other) < len(word) for other in words))
            for word in words
        ]
