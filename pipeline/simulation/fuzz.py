"""Many small runs with faults, each from a seed: what may never be is looked for in all.

Four modes. `chaos`: faults to the end, and an engine may die once too often; the books hold
at every event, and the run ends, done or for a reason that has happened to it. `heal`: faults
for a while, then none; every step is done. `dead`: at some moment nothing that dies comes
back, and engines or learner die; the run stops and says why. `hang`: as `heal`, and engines,
rewards, learner and disk also stop to answer without an end; limits of waits bring it over that.
A seed that fails is played again with fewer faults, as few as still fail, and its log printed.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import msgspec

from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.state import Plugins, Settings
from pipeline.coordinator.timeouts import Timeouts
from pipeline.hardware.costs import EngineCost, LearnerCost, Machines
from pipeline.plugins import registry
from pipeline.simulation.extra_candidates import (
    COLUMN,
    MoreCandidates,
    SomeVariants,
    solutions_of,
)
from pipeline.simulation.fault_plan import Fault, What, draw_faults
from pipeline.simulation.faults import Faulty, Memory, Rules
from pipeline.simulation.invariants import Violation
from pipeline.simulation.policy import Policy
from pipeline.simulation.subject import SMALL_TOKENS, Subject
from pipeline.simulation.tracebacks import plugin_traceback
from pipeline.simulation.workload import Lengths, Parametric


class Mode(StrEnum):
    CHAOS = "chaos"
    HEAL = "heal"
    DEAD = "dead"
    HANG = "hang"


MODES = tuple(Mode)
_STOP = 1
_LAST_LINES = 60
_LIVES = 50
"""Starts of one stage, resumes included; the faults of a plan are fewer."""
_LONG_S = 20.0
"""Longer than most of these runs."""
_MOST = 2
"""Candidates that the budgets below give at most, in group sizes."""


SHORT = Timeouts(
    join_s=40.0,
    load_s=4.0,
    abort_s=2.0,
    sampling_s=3.0,
    no_token_s=2.5,
    reward_s=3.0,
    learner_s=8.0,
    close_s=0.5,
    checkpoint_s=2.0,
)
"""For runs of seconds."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One seed."""

    seed: int
    mode: Mode
    violation: str = ""  # '' where everything held
    faults: tuple[int, ...] = ()  # of the plan, those played
    events: int = 0
    log: tuple[str, ...] = ()  # the last lines before the violation
    traceback: str = ""  # of what a plug-in raised
    arguments: str = ""  # that name the plug-ins, if they are not the house's

    @property
    def command(self) -> str:
        """Plays it again."""
        chosen = ",".join(map(str, self.faults))
        own = f" {self.arguments}" if self.arguments else ""
        return f"darts simulate{own} --seed {self.seed} --mode {self.mode} --faults '{chosen}'"


class World(msgspec.Struct, frozen=True, kw_only=True):
    """The run, its machines and its faults, as they follow from a seed."""

    settings: Settings
    machines: Machines
    rules: Rules
    faults: tuple[Fault, ...]
    make: Callable[[], Plugins]
    lengths: Lengths
    tags: tuple[str, ...] = ()  # kind of each prompt
    variants: dict[str, list[int]]  # column -> tokens, for each prompt
    solutions: list[bytes] = []  # the data's response to each prompt


def world(seed: int, mode: Mode, subject: Subject | None = None) -> World:
    """The same for the same seed, mode and subject; without one its plug-ins are drawn, too."""
    rng = random.Random(f"{seed}/{mode}")
    size, engines = rng.choice((2, 3, 4)), rng.choice((1, 2, 3))
    stale = rng.choice((0, 0, 1, 2))
    settings = Settings(
        seed=seed,
        steps=rng.choice((2, 3, 3, 6)),
        need=rng.choice((1, 2, 3)),
        reserve=rng.choice((0, 0, 1)),
        tries=rng.choice((2.0, 6.0)),
        size=size,
        max_tokens=SMALL_TOKENS,
        ranks=rng.choice((1, 1, 2)),
        overlap=rng.choice(("group", "off")),
        stream=rng.random() < 0.3,
        prompts=40,
        held_out=rng.choice((0, 0, 2)),
        eval_every=2,
        eval_samples=2,
        checkpoint_every=rng.choice((0, 1, 1, 2)),
        stop_tokens=frozenset({_STOP}),
        log_wait_s=2.0,
        gap_limit=1e-3,
        max_staleness=stale,
        stale=rng.choice(("wait", "drop")),
        audit_every=rng.choice((0, 0, 0, 2)),
    )
    if not settings.held_out:
        settings = msgspec.structs.replace(settings, eval_every=0)
    scale, most = 1.0, _MOST * size
    if subject is not None:
        settings = subject.settings_in(settings)
        scale, most = subject.scale, settings.most_candidates
    machines = Machines(
        engines=engines,
        slots=rng.choice((2, 4, 8)),
        engine=EngineCost(
            points=((1, 0.01 / scale), (8, 0.015 / scale)),
            kv_s=1e-6 / scale**2,
            prefill_s=1e-4,
            load_s=rng.uniform(0.01, 0.3),
        ),
        learner=LearnerCost(
            train_s=1e-4 / scale,
            forward_s=5e-5 / scale,
            group_s=rng.uniform(0.001, 0.1),
            step_s=0.02,
        ),
        ranks=settings.ranks,
        chunk_tokens=round(rng.choice((2, 4, 8)) * scale),
        delay_s=rng.choice((1e-4, 5e-3, 3e-2)),
        reward_s=rng.choice((0.0, 0.05, 0.5)),
        save_s=rng.choice((0.0, 0.2)),
    )
    until = _LONG_S if mode is Mode.CHAOS else rng.uniform(0.5, 4.0)
    many = rng.randint(8, 40) if mode is Mode.CHAOS else rng.randint(1, 8)
    faults = draw_faults(rng, many, until, engines, hangs=mode is Mode.HANG)
    rules = Rules(most=most)
    if mode is Mode.CHAOS:
        rules = Rules(most=most, restarts=rng.choice((2, 5, 1000)))
    if mode is Mode.DEAD:
        rules = Rules(most=most, doomed_at=until)
        last = [What.LEARNER_DIES] if rng.random() < 0.3 else [What.ENGINE_DIES] * engines
        faults += [Fault(at=until, what=what, target=n) for n, what in enumerate(last)]
        settings = msgspec.structs.replace(settings, steps=1000)  # it is not done before
    if mode is Mode.HANG:
        settings = msgspec.structs.replace(settings, limits=SHORT)
    make = _plugins(rng, seed, settings) if subject is None else partial(subject.make, seed)
    lengths = Lengths(median=rng.choice((5, 10)) * scale, between=0.4, within=0.7)
    more = random.Random(f"{seed}/{mode}/members")  # not `rng`, whose draws are to stay as they are
    if more.random() < 0.4 and subject is None:
        make = _with_more(make, _MOST * size)
    grouped = more.random() < 0.25 and subject is None
    if grouped and not getattr(make().selector.wants, "reward", False):
        settings = msgspec.structs.replace(settings, group_reward=True)
    return World(
        settings=settings,
        machines=msgspec.structs.replace(machines, remaining=more.random() < 0.3),
        rules=rules,
        faults=tuple(faults),
        make=make,
        lengths=lengths,
        tags=() if subject is None else ("a", "b") * (settings.prompts // 2),
        variants={
            column: [prompt % 4 for prompt in range(settings.prompts)]
            for column in (subject.columns if subject is not None else (COLUMN,))
        },
        solutions=solutions_of(settings.prompts) if subject is None or subject.solved else [],
    )


def _with_more(make: Callable[[], Plugins], most: int) -> Callable[[], Plugins]:
    """The same plug-ins, which ask for variants, forks and foreign responses besides."""

    def made() -> Plugins:
        inside = make()
        return msgspec.structs.replace(
            inside,
            budget=SomeVariants(inside.budget),
            selector=MoreCandidates(inside.selector, most),
        )

    return made


def _plugins(rng: random.Random, seed: int, settings: Settings) -> Callable[[], Plugins]:
    """A way to make the plug-ins anew; which ones is drawn once."""

    def drawn(kind: str, *choices: tuple[str, dict[str, Any]], **extra: Any) -> Callable[[], Any]:
        name, options = rng.choice(choices)
        cls = registry.find_plugin(kind, name)
        return lambda: cls(registry.options_type(cls)(**options), **extra)

    selectors = [
        ("all", {}),
        ("first_m", {}),
        ("shortest", {}),
        ("dual_end", {"long_wait": "group"}),
        ("dual_end", {"long_wait": "step", "prune_at": 2.0}),
        ("concise_confident", {"depth": "step"}),
        ("concise_confident", {"depth": "stop"}),
        ("concise_confident", {"depth": "none"}),
    ]
    budgets = [
        ("uniform", {"redundancy": 1.0}),
        ("uniform", {"redundancy": 1.5}),
        ("uniform", {"redundancy": 1.0, "top_up": "fewest"}),
        ("length_variance", {"top_up": "fewest"}),
        ("length_variance", {"mean": 1.5}),
    ]
    prompts = drawn(
        "prompt_order", ("shuffled", {}), ("sequential", {}), ("tail_batching", {}), seed=seed
    )
    budget, selector = drawn("budget", *budgets), drawn("selector", *selectors)
    quorum = {"share": 0.5, "size": min(2, settings.size)}
    batch = drawn("batch", ("fifo", {}), ("quorum", quorum))
    advantage = drawn("advantage", ("grpo", {}), ("grpo", {"drop_equal": True}))
    return lambda: Plugins(
        prompt_order=prompts(),
        budget=budget(),
        selector=selector(),
        batch=batch(),
        advantage=advantage(),
    )


def play(
    seed: int, mode: Mode, chosen: Sequence[int] | None = None, subject: Subject | None = None
) -> Outcome:
    """One seed, with all faults of its plan or those chosen."""
    here = world(seed, mode, subject)
    numbers = tuple(range(len(here.faults)) if chosen is None else chosen)
    log: deque[str] = deque(maxlen=_LAST_LINES)
    life: list[Faulty] = []
    violation, where, events = "", "", 0
    try:
        events = _live(here, [here.faults[n] for n in numbers], mode, log, life)
    except Exception as error:  # whatever a coordinator raises is what is looked for
        violation, where = f"{type(error).__name__}: {error}", plugin_traceback(error)
        events = life[-1].events if life else 0
    return Outcome(
        seed=seed,
        mode=mode,
        violation=violation,
        faults=numbers,
        events=events,
        log=tuple(log) if violation else (),
        traceback=where,
        arguments="" if subject is None else subject.arguments,
    )


def recorded(seed: int, mode: Mode) -> list[str]:
    """Every event of a seed that holds, a line each. Raises what is found."""
    log: deque[str] = deque()
    here = world(seed, mode)
    _live(here, here.faults, mode, log, [])
    return list(log)


def acted(seed: int, mode: Mode, limits: Timeouts) -> Counter[str]:
    """Counts how often these limits were acted on in a seed, by kind of wait."""
    here, life = world(seed, mode), list[Faulty]()
    settings = msgspec.structs.replace(here.settings, limits=limits)
    here = msgspec.structs.replace(here, settings=settings)
    _live(here, here.faults, mode, deque(), life)
    return sum((one.coordinator.watchdog.acted for one in life), Counter[str]())


def _live(
    here: World, faults: Sequence[Fault], mode: Mode, log: deque[str], life: list[Faulty]
) -> int:
    """Lives of the stage until the run is over. Raises what is found; returns the events."""
    memory, now, events = Memory(), 0.0, 0
    prompt_tokens = [5] * here.settings.prompts
    for number in range(_LIVES):
        log.append(
            f"{now:9.3f} life {number + 1}, from step {memory.saved.step if memory.saved else 0}"
        )
        one = Faulty(
            Coordinator(
                here.settings,
                here.make(),
                prompt_tokens,
                here.tags,
                here.variants,
                here.solutions,
            ),
            here.machines,
            Parametric(here.lengths, Policy(0.0), seed=here.settings.seed),
            prompt_tokens,
            plan=faults,
            rules=here.rules,
            memory=memory,
            log=lambda at, line: log.append(f"{at:9.3f} {line}"),
            begin_at=now,
        )
        life.append(one)
        one.start()
        while one.over is None and not one.fallen:
            one.step()
        events += one.events
        now = one.now + 1e-6
        if one.over is not None and not one.over.error:
            break
        if not one.excused:
            raise Violation(f"it gave up without a reason: {one.over.error if one.over else ''}")
        halted = one.over is not None and "engine.restarts" in one.over.error
        if one.over is not None and (now >= here.rules.doomed_at or halted):
            return events  # it has stopped, and said why
    else:
        raise Violation(f"{_LIVES} lives were not enough")
    last = life[-1]
    if mode is Mode.DEAD:
        raise Violation("everything is dead, and the run says that it is done")
    if not last.alone:
        raise Violation("something was left behind at the end")
    if last.coordinator.core.step != here.settings.steps:
        raise Violation(f"the run ended at step {last.coordinator.core.step}")
    return events


def shrink(outcome: Outcome, attempts: int = 200, subject: Subject | None = None) -> Outcome:
    """Leaves out one fault after another while the run still fails."""
    best, changed = outcome, True
    plan = world(outcome.seed, outcome.mode, subject)
    while changed and attempts > 0:
        changed = False
        for fault in best.faults:
            if plan.faults[fault].at >= plan.rules.doomed_at:
                continue  # without it nothing is dead
            attempts -= 1
            fewer = [number for number in best.faults if number != fault]
            again = play(best.seed, best.mode, fewer, subject)
            if again.violation:
                best, changed = again, True
                break
    return best
