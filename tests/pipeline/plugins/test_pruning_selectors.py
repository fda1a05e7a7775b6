"""Selectors that prune while members run: whom they abort, whom they leave, whom they weigh.

Worked numbers are those of the project's notes on the methods, named by their section.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.plugins.actions import Abort, AnyAction, Drop, Finalize, Sample
from pipeline.plugins.interfaces import Every
from pipeline.plugins.selectors.arrol import Arrol, ArrolOptions, calibrated, survivors
from pipeline.plugins.selectors.duet import Duet, DuetOptions
from pipeline.plugins.selectors.echo import Echo, EchoOptions, weak, width
from pipeline.plugins.testing import Recent, group_of, option_problems
from pipeline.plugins.views import EndedView
from tests.pipeline.plugins.deciding import chosen, decide

GONE = EndedView(prompt=1, tokens=1, tag="", lengths=(), censored=(), group=1)


# --- arrol -------------------------------------------------------------------------------------


def test_arrol_leaves_half_right_and_half_wrong():
    """ARRoL: .9 goes first (mean .5667), then .7 (.5)."""
    assert survivors([0.9, 0.8, 0.7, 0.2], [False] * 4, 2, 0.5) == [1, 3]
    assert survivors([0.9, 0.8, 0.7, 0.2], [False] * 4, 3, 0.5) == [1, 2, 3]


def test_arrol_prunes_at_a_tie_what_runs_before_what_has_ended_and_the_last_before_others():
    assert survivors([0.5, 0.5, 0.5, 0.5], [False] * 4, 3, 0.5) == [0, 1, 2]
    assert survivors([0.5, 0.5, 0.5, 0.5], [False, False, True, True], 3, 0.5) == [0, 2, 3]


PRUNES = Arrol(ArrolOptions(checkpoint=50))


def test_arrol_prunes_once_all_have_reached_the_checkpoint_or_ended():
    score = {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.2}
    early = group_of(size=2, running={1: 60, 2: 60, 3: 49, 4: 70}, score=score)
    assert decide(PRUNES, early, Every(trajectory=4)) == []
    group = group_of(size=2, running={1: 60, 2: 60, 3: 50, 4: 70}, score=score)
    assert decide(PRUNES, group, Every(trajectory=3)) == [
        Abort(ids=(1, 3), why="predicted mean 0.50 of 2 left", kind="pruned")
    ]
    pruned = group_of(size=2, running={2: 60, 4: 70}, score=score, budget=4)
    assert decide(PRUNES, pruned, Every(trajectory=2)) == []


def test_arrol_takes_the_reward_of_what_has_ended_as_its_prediction():
    given: dict[str, Any] = {"running": {2: 60, 3: 60}, "score": {2: 0.9, 3: 0.3}}
    unscored = group_of(size=2, finished={1: 20}, **given)
    assert decide(PRUNES, unscored, Every(trajectory=3)) == []
    right = group_of(size=2, finished={1: 20}, rewards={1: 1.0}, **given)
    # without it .6, without the others .65 and .95
    [abort] = decide(PRUNES, right)
    assert isinstance(abort, Abort)
    assert abort.ids == (1,)
    wrong = group_of(size=2, finished={1: 20}, rewards={1: 0.0}, **given)
    [abort] = decide(PRUNES, wrong)
    assert isinstance(abort, Abort)
    assert abort.ids == (3,)


def test_arrol_chooses_by_rewards_where_nothing_was_pruned_in_time():
    ended: dict[str, Any] = {"size": 2, "finished": {1: 20, 2: 20, 3: 20}}
    assert decide(PRUNES, group_of(**ended, rewards={1: 1.0, 2: 1.0})) == []
    rewards = {1: 1.0, 2: 1.0, 3: 0.0}
    assert chosen(decide(PRUNES, group_of(**ended, rewards=rewards))) == (1, 3)


def test_arrol_ends_a_group_whose_runners_are_all_pruned():
    group = group_of(
        size=2, finished={1: 9, 2: 9}, rewards={1: 1.0, 2: 0.0}, running={3: 60}, score={3: 0.9}
    )
    [abort, final] = decide(PRUNES, group)
    assert isinstance(abort, Abort)
    assert isinstance(final, Finalize)
    assert (abort.ids, final.ids) == ((3,), (1, 2))


def test_arrol_reads_success_from_confidence_where_the_engine_gives_no_score():
    levels = [-1 + i / 1000 for i in range(1000)]
    recent = Recent(confidences=levels, rewards=[1.0, 0.0, 0.0, 0.0])
    assert calibrated(-2.0, recent) == 0.0  # the least of the run: 1/4 - 1/4
    assert calibrated(0.0, recent) == 0.5  # the surest: 1/4 + 1/4
    mean = sum(calibrated(level, recent) or 0.0 for level in levels) / len(levels)
    assert mean == pytest.approx(0.25, abs=0.02)
    assert calibrated(-0.5, Recent(confidences=levels)) is None
    assert calibrated(-0.5, Recent(rewards=[1.0])) is None
    confidence = {1: -0.1, 2: -0.5, 3: -0.9}
    group = group_of(
        size=2, running={1: 60, 2: 60, 3: 60}, confidence=confidence, statistics=recent
    )
    [abort] = decide(PRUNES, group, Every(trajectory=1))
    assert isinstance(abort, Abort)
    assert abort.ids == (3,)  # all are below a half: the worst goes
    unknown = group_of(size=2, running={1: 60, 2: 60, 3: 60}, confidence=confidence)
    assert decide(PRUNES, unknown, Every(trajectory=1)) == []


def test_arrol_refuses_options_out_of_range():
    assert option_problems(ArrolOptions, checkpoint=0, target=1.5) == [
        "checkpoint: found 0, expected at least 1",
        "target: found 1.5, expected from 0 to 1",
    ]


# --- duet --------------------------------------------------------------------------------------


def passed_by(selector: Duet, ids: range, **given: Any) -> list[int]:
    """Those of these that are not aborted at the checkpoint, asked about one after another."""
    left: list[int] = []
    for trajectory in ids:
        running = dict.fromkeys(ids, 60)
        group = group_of(size=8, running=running, **given)
        if not decide(selector, group, Every(trajectory=trajectory)):
            left.append(trajectory)
    return left


def test_duet_stops_candidates_at_the_checkpoint_by_the_chance_it_was_given():
    options = DuetOptions(checkpoint=50, keep=0.5)
    left = passed_by(Duet(options), range(400))
    assert 160 < len(left) < 240
    assert passed_by(Duet(options), range(400)) == left  # a replay draws the same
    assert passed_by(Duet(options), range(400), seed=1) != left
    assert passed_by(Duet(DuetOptions(keep=1.0)), range(9)) == list(range(9))


def test_duet_draws_for_a_candidate_once_and_weighs_what_has_passed():
    """DUET, kappa .5: survivors have weight 2, those that ended before the checkpoint 1."""
    selector = Duet(DuetOptions(checkpoint=50, keep=0.5))
    left = passed_by(selector, range(8))
    survivor = left[0]
    again = group_of(size=8, running={survivor: 120})
    assert decide(selector, again, Every(trajectory=survivor)) == []
    resumed = Duet(DuetOptions(checkpoint=50, keep=0.5))
    resumed.restore(selector.state())
    group = group_of(size=4, finished={20: 30, 21: 40, survivor: 130})
    for each in (selector, resumed):
        [final] = decide(each, group)
        assert isinstance(final, Finalize)
        assert (final.ids, final.weights) == ((20, 21, survivor), (1.0, 1.0, 2.0))
    resumed.ended(GONE)
    assert resumed.state() == {"version": 2, "passed": [], "spared": []}
    with pytest.raises(ValueError, match="version 0, not 2"):
        resumed.restore({"version": 0})


def test_duet_spares_what_has_shown_a_marker_of_its_answer():
    """DUET: marked ones are not drawn for, and weigh 1; kappa 1e-9 would stop them all."""
    selector = Duet(DuetOptions(checkpoint=50, keep=1e-9))
    assert passed_by(selector, range(8), marked={2: 40, 5: 12}) == [2, 5]
    resumed = Duet(DuetOptions(checkpoint=50, keep=1e-9))
    resumed.restore(selector.state())
    for each in (selector, resumed):
        later = group_of(size=8, running={2: 120, 5: 120})  # twice the checkpoint
        assert decide(each, later, Every(trajectory=5)) == []
        [final] = decide(each, group_of(size=2, finished={2: 130, 5: 140}))
        assert isinstance(final, Finalize)
        assert (final.ids, final.weights, final.kind) == ((2, 5), (1.0, 1.0), "marked")


def test_duet_ends_a_group_whose_last_runner_is_stopped():
    selector = Duet(DuetOptions(checkpoint=50, keep=0.5))
    stopped = next(i for i in range(9) if i not in passed_by(Duet(), range(9)))
    group = group_of(size=3, finished={20: 30, 21: 40}, running={stopped: 60})
    [abort, final] = decide(selector, group, Every(trajectory=stopped))
    assert isinstance(abort, Abort)
    assert isinstance(final, Finalize)
    assert (abort.ids, abort.kind, final.weights) == ((stopped,), "gated", (1.0, 1.0))
    lone = group_of(size=3, finished={20: 30}, running={stopped: 60})
    [_, drop] = decide(selector, lone, Every(trajectory=stopped))
    assert isinstance(drop, Drop)


def test_duet_refuses_options_out_of_range():
    assert option_problems(DuetOptions, checkpoint=0, keep=0.0) == [
        "checkpoint: found 0, expected at least 1",
        "keep: found 0.0, expected above 0 and at most 1",
    ]


# --- echo --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entropy,confidence,wide", [(2.25, 1.2, 2), (3.5, 1.2, 3), (3.5, 0.12, 4), (0.5, 1.2, 1)]
)
def test_echo_branches_the_wider_the_less_is_decided(entropy: float, confidence: float, wide: int):
    """ECHO, undecided from an entropy of 3.5 and up to a confidence of 1.2."""
    assert width(entropy, confidence, 3.5, 1.2) == wide


def test_echo_prunes_what_falls_three_times_in_a_row_or_below_the_floor():
    """ECHO: of [2, .9, .8, .7] the fourth is pruned."""
    tail = EchoOptions(tail=1.0)
    assert weak([2, 0.9, 0.8], [], tail) == ""
    assert weak([2, 0.9, 0.8, 0.7], [], tail) == "confidence fell 3 times, to 0.70"
    assert weak([2, 0.9, 0.8, 0.8], [], tail) == ""
    assert weak([0.9, 0.85, 0.8, 0.75], [], EchoOptions()) == ""  # still above .7
    assert weak([0.39], [], EchoOptions()) == "confidence 0.39 is below 0.4"
    assert weak([], [], EchoOptions()) == ""


def test_echo_prunes_what_becomes_ever_less_certain():
    assert weak([0.9], [0.1, 0.2, 0.6], EchoOptions()) == "entropy rose 3 times, at last by 0.60"
    for rises in ([0.1, 0.2, 0.5], [0.0, 0.2, 0.6], [0.2, 0.6]):
        assert weak([0.9], rises, EchoOptions()) == ""


def look(
    selector: Echo, tokens: int, confidence: float, entropy: float | None = None, spare: int = 2
) -> list[AnyAction]:
    """Member 7 has passed a window of 10 tokens; so many others run beside it, M is 2."""
    others = {20 + i: 5 for i in range(spare)}
    group = group_of(
        size=2,
        running={7: tokens, **others},
        confidence={7: confidence},
        entropy={} if entropy is None else {7: entropy},
    )
    return decide(selector, group, Every(trajectory=7))


def test_echo_judges_each_window_by_itself_also_after_a_resume():
    selector = Echo(EchoOptions(window=10))
    assert look(selector, 10, -0.1) == []
    resumed = Echo(EchoOptions(window=10))
    resumed.restore(selector.state())
    # a mean of -.55 over 20 tokens: the last 10 are at -1, a probability of .368
    for each in (selector, resumed):
        [abort] = look(each, 20, -0.55)
        assert abort == Abort(ids=(7,), why="confidence 0.37 is below 0.4", kind="weak")
    resumed.ended(GONE)
    assert resumed.state() == {"version": 1, "windows": []}
    with pytest.raises(ValueError, match="version None, not 1"):
        resumed.restore({})


def test_echo_leaves_m_members_and_ends_a_group_whose_last_runner_it_prunes():
    assert look(Echo(), 10, -2.0, spare=1) == []
    group = group_of(size=2, finished={1: 5, 2: 6}, running={7: 64}, confidence={7: -2.0})
    [abort, final] = decide(Echo(), group, Every(trajectory=7))
    assert isinstance(abort, Abort)
    assert isinstance(final, Finalize)
    assert (abort.ids, final.ids) == ((7,), (1, 2))


def test_echo_samples_siblings_of_an_undecided_member_if_it_was_asked_to():
    options = EchoOptions(window=10, branch=True, entropy=2.0, most=4)
    selector = Echo(options)
    assert selector.wants.entropy
    assert not Echo().wants.entropy
    for window, entropy in enumerate((1.0, 1.0, 1.0, 1.0), 1):
        assert look(selector, 10 * window, -0.5, entropy) == []
    [action] = look(selector, 50, -0.5, 2.0)
    # 1 + 2 + (.7 - .607) / .7 = 3.1: itself and two more
    why = "entropy 2.00, confidence 0.61"
    assert action == Sample(n=2, fork=(7, 50), why=why, kind="branch")


@pytest.mark.parametrize(
    "entropy,confidence,changes",
    [
        (2.0, -0.5, {"branch": False}),
        (1.9, -0.5, {}),
        (2.0, -0.5, {"rise": 1.1}),
        (2.0, -0.3, {}),  # .74, sure enough
        (2.0, -0.5, {"most": 1.5}),  # three candidates are all
    ],
)
def test_echo_samples_no_siblings_otherwise(
    entropy: float, confidence: float, changes: dict[str, Any]
):
    given: dict[str, Any] = {"window": 10, "branch": True, "entropy": 2.0, "most": 4, **changes}
    selector = Echo(EchoOptions(**given))
    for window in range(1, 5):
        assert look(selector, 10 * window, confidence, 1.0) == []
    assert look(selector, 50, confidence, entropy) == []


def test_echo_refuses_options_out_of_range():
    assert option_problems(EchoOptions, window=0, floor=2.0, entropy=1.0, most=0.5) == [
        "window: found 0, expected at least 1",
        "floor: found 2.0, expected from 0 to 1",
        "entropy: found 1.0, expected above 1",
        "most: found 0.5, expected from 1 to 64",
    ]
