"""Responses and what training makes of them: the policy gradient of the model itself."""

from __future__ import annotations

import math

import pytest

from pipeline.simulation.policy import Kind, Lesson, Numbers, Policy
from pipeline.simulation.recorded_workload import Recorded, RecordedMember
from pipeline.simulation.workload import Lengths, Parametric, Request

VERBOSE = Kind(deep=False, middle=math.log(100), spread=0.5, right=0.3, slope=-0.7)
DEEP = Kind(deep=True, middle=math.log(100), spread=0.5, right=0.3, slope=0.7)


def log_probability(lesson: Lesson, own: Numbers) -> float:
    """Of (length, reward), up to what the numbers do not move."""
    kind = lesson.kind
    u = (math.log(lesson.tokens) - kind.middle) / kind.spread
    z = (u - own.shift) * math.exp(-own.scale)
    if lesson.truncated:
        return math.log(0.5 * math.erfc(z / math.sqrt(2)))
    right = 1 / (1 + math.exp(-(kind.right + own.skill + kind.slope * u)))
    return -0.5 * z * z - own.scale + math.log(right if lesson.reward else 1 - right)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("kind", [VERBOSE, DEEP])
def test_a_step_goes_along_the_gradient_of_the_log_probability(kind: Kind, truncated: bool):
    lesson = Lesson(kind=kind, tokens=170, truncated=truncated, reward=0.0, advantage=-0.6)
    policy = Policy(rate=1e-4)
    start = Numbers(shift=0.2, scale=-0.3, skill=0.4)
    policy.versions[0] = (start, start)
    policy.learn(0, 1, [lesson])
    moved, step = policy.numbers(1, kind.deep), 1e-5
    for name in ("shift", "scale", "skill"):
        more, less = (
            log_probability(lesson, Numbers(**{**_values(start), name: getattr(start, name) + d}))
            for d in (step, -step)
        )
        slope = (more - less) / (2 * step)
        assert (getattr(moved, name) - getattr(start, name)) / 1e-4 == pytest.approx(
            -0.6 * slope, abs=1e-4
        ), name
    assert policy.numbers(1, not kind.deep) == start, "the other kind has learned nothing"


def _values(numbers: Numbers) -> dict[str, float]:
    return {"shift": numbers.shift, "scale": numbers.scale, "skill": numbers.skill}


def taught(kind: Kind, steps: int = 60) -> tuple[Numbers, float, float]:
    """Plain group advantages on all responses: (numbers, accuracy before, after)."""
    import random

    rng, policy = random.Random(0), Policy(rate=1.0)

    def worth(version: int) -> float:
        draws = [policy.respond(kind, random.Random(i).gauss(0, 1), version)[1] for i in range(500)]
        return sum(draws) / len(draws)

    before = worth(0)
    for version in range(steps):
        lessons: list[Lesson] = []
        for _ in range(8):
            answers = []
            for _ in range(8):
                tokens, right = policy.respond(kind, rng.gauss(0, 1), version)
                answers.append((tokens, float(rng.random() < right)))
            mean = sum(reward for _, reward in answers) / 8
            lessons += [
                Lesson(kind=kind, tokens=t, truncated=False, reward=r, advantage=r - mean)
                for t, r in answers
            ]
        policy.learn(version, version + 1, lessons)
    return policy.numbers(steps, kind.deep), before, worth(steps)


def test_responses_shorten_where_verbosity_is_wrong_and_lengthen_where_depth_is_right():
    verbose, before, after = taught(VERBOSE)
    assert verbose.shift < -0.1 and after > before
    deep, before, after = taught(DEEP)
    assert deep.shift > 0.1 and after > before


def test_a_rate_of_zero_changes_nothing():
    policy = Policy(rate=0.0)
    policy.learn(0, 1, [Lesson(kind=DEEP, tokens=9, truncated=False, reward=1.0, advantage=1.0)])
    assert policy.numbers(1, True) == Numbers()


def request(**given: int) -> Request:
    values = {"prompt": 3, "group": 7, "member": 0, "seed": 11, "version": 0, **given}
    return Request(kind="train", **values)


def test_a_response_follows_from_its_seed_and_a_prompt_keeps_its_nature():
    law = Lengths(median=100, between=0.5, within=0.5, uneven=0.3)
    one, other = (Parametric(law, Policy(0.0), seed=5) for _ in range(2))
    assert one.response(request()) == other.response(request())
    assert one.response(request()) != one.response(request(seed=12))
    assert one.kind("train", 3) == other.kind("train", 3) != one.kind("eval", 3)


def known(tokens: int, reward: float) -> RecordedMember:
    return RecordedMember(tokens=tokens, whole=True, reward=reward)


def test_recorded_responses_come_back_by_prompt_opening_and_member():
    groups = [
        (3, [known(10, 1.0), RecordedMember(tokens=20, whole=False)]),
        (4, [known(30, 0.0), known(60, 0.0)]),
        (3, [known(40, 1.0), known(50, 0.0)]),
    ]
    recorded = Recorded(groups, limit=100)
    assert recorded.response(request(group=1)).tokens == 10
    cut = recorded.response(request(group=1, member=1)).tokens
    assert cut in (40, 50), "cut at 20: as long as some longer one of its prompt"
    assert recorded.response(request(group=2, member=1)).tokens == 50, "its second opening"
    more = {recorded.response(request(group=2, member=m)).tokens for m in range(2, 60)}
    assert more == {10, 40, 50}, "like those that were recorded"
    assert recorded.response(request(prompt=4, group=5)).tokens == 30


def test_what_was_cut_longer_than_all_others_reaches_the_limit():
    cut = RecordedMember(tokens=90, whole=False)
    recorded = Recorded([(3, [cut, known(20, 1.0)])], limit=100)
    assert recorded.response(request()).tokens > 100
