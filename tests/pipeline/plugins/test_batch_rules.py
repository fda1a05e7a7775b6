"""Batch rules `sorted`, `oldest_first` and `replay`: worked numbers, and whole runs with each."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from pipeline.plugins.actions import BatchAction, Close, Leave, Replay, Take
from pipeline.plugins.batch_rules.fifo import Fifo
from pipeline.plugins.batch_rules.oldest_first import OldestFirst, OldestFirstOptions
from pipeline.plugins.batch_rules.replay import Replay as ReplayRule
from pipeline.plugins.batch_rules.replay import ReplayOptions, eligible, pool_weights
from pipeline.plugins.batch_rules.sorted import Sorted
from pipeline.plugins.prompt_orders.sorted_load import SortedLoad, SortedLoadOptions
from pipeline.plugins.testing import batch_view, facts_of, kept_view, option_problems
from pipeline.plugins.views import GroupFacts
from tests.pipeline.coordinator.world import World, ran

# --- sorted ----------------------------------------------------------------------------------


def test_sorted_takes_groups_in_the_order_of_becoming_ready():
    rule, needed = Sorted(), dict[str, Any](need=2, ahead=1, taken=2, closing=True)
    later = [facts_of(5), facts_of(3, "open"), facts_of(4)]
    assert list(rule.decide(batch_view(*later, **needed))) == []
    third = [facts_of(3), facts_of(4), facts_of(5)]
    assert list(rule.decide(batch_view(*third, need=2, ahead=1))) == [Take(groups=(5, 4)), Close()]
    assert next(iter(Fifo().decide(batch_view(*third, need=2, ahead=1)))) == Take(groups=(3, 4))


def test_sorted_goes_on_from_its_state_and_keeps_the_place_of_what_a_resume_gives_back():
    rule, again = Sorted(), Sorted()
    list(rule.decide(batch_view(facts_of(5), facts_of(3, "open"))))
    list(rule.decide(batch_view(facts_of(5, "taken"), facts_of(3), taken=1)))
    again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(rule.state())))
    resumed = batch_view(facts_of(3), facts_of(5), need=1, ahead=1)
    assert next(iter(again.decide(resumed))) == Take(groups=(5,))
    list(again.decide(batch_view(facts_of(7))))
    assert again.state()["order"] == [7], "what has ended is forgotten"
    with pytest.raises(ValueError, match="state of sorted: version 0, not 1"):
        again.restore({"version": 0})


def test_groups_that_would_be_too_old_come_first_in_whatever_order():
    rule = Sorted()
    list(rule.decide(batch_view(facts_of(5), taken=1)))
    view = batch_view(facts_of(3), facts_of(5), facts_of(9), need=2, ahead=1, due=(9,))
    assert next(iter(rule.decide(view))) == Take(groups=(9, 5))


# --- oldest_first ----------------------------------------------------------------------------

A, B, C, D, E, F, G = range(7)


def rolled(c: str, *, d: str = "ready", taken: tuple[int, ...] = ()) -> list[GroupFacts]:
    """The groups of the worked number: a, b, c of step 4, d to g of step 5."""
    states = {A: "ready", B: "ready", C: c, D: d, E: "ready", F: "open", G: "open"}
    return [
        facts_of(group, "taken" if group in taken else state, opened=4 if group <= C else 5)
        for group, state in states.items()
    ]


def decided(*groups: GroupFacts, alpha: float = 1.0, **given: Any) -> list[BatchAction]:
    view = batch_view(*groups, step=5, **({"ahead": 1} | given))
    return list(OldestFirst(OldestFirstOptions(alpha=alpha)).decide(view))


def test_oldest_first_waits_for_a_group_of_the_step_before_as_in_the_section_roll():
    assert decided(*rolled("open")) == [Take(groups=(A, B))], "certain; c is waited for"
    assert decided(*rolled("ready", taken=(A, B))) == [Take(groups=(C, D)), Close()]
    assert decided(*rolled("ready")) == [Take(groups=(A, B, C, D)), Close()]
    assert decided(*rolled("ready", taken=(A, B)), alpha=0)[0] == Take(groups=(C, D)), "of the run"


def test_oldest_first_takes_no_later_group_before_an_earlier_step_has_given_its_share():
    assert decided(*rolled("ready", d="open"), need=6) == [Take(groups=(A, B, C, E))]
    assert decided(*rolled("chosen")) == [Take(groups=(A, B, D)), Close()], "c is coming"
    assert decided(*rolled("enough")) == [Take(groups=(A, B, D)), Close()], "at the barrier"
    assert decided(*rolled("enough"), closing=True) == [Take(groups=(A, B, D))]


def test_of_a_fraction_of_a_step_only_its_share_is_waited_for():
    groups = [
        facts_of(n, "open" if n == C else "ready", opened=4 if n <= C else 5) for n in range(7)
    ]
    assert decided(*groups, alpha=0.5) == [Take(groups=(A, B, D, E)), Close()]
    assert decided(*groups, alpha=2) == [Take(groups=(A, B))], "s0 is 3: c is waited for"


def test_groups_that_are_held_or_asleep_or_teach_nothing_are_not_waited_for():
    still = [
        facts_of(0, "open", opened=2, held=True),
        facts_of(1, "dead", opened=4),
        facts_of(2, "open", opened=4, asleep=True),
    ]
    assert decided(*still, facts_of(3), facts_of(4), need=2) == [Take(groups=(3, 4)), Close()]


def test_oldest_first_takes_what_would_be_too_old_beside_the_batch():
    assert decided(*rolled("open"), due=(E,)) == [Take(groups=(A, B, E))]


def test_on_policy_what_is_beyond_the_number_needed_goes_back():
    ready = [facts_of(n, opened=5) for n in range(5)]
    assert decided(*ready, ahead=0, alpha=0) == [
        Take(groups=(0, 1, 2, 3)),
        Close(),
        Leave(groups=(4,), why="beyond the number needed", kind="surplus"),
    ]
    assert decided(need=0) == [Close()], "no prompts left to open"


# --- replay ----------------------------------------------------------------------------------

KEPT = (
    kept_view(10, 1, 0.5),
    kept_view(11, 2, 1.0),
    kept_view(12, 1, 0.25),
    kept_view(13, 3, 0.75),
)


def test_eligible_are_those_of_the_section_difficulty_targeted_selection():
    assert [(g.prompt, g.reward) for g in eligible(KEPT)] == [(1, 0.25), (3, 0.75)]
    solved = (*KEPT, kept_view(14, 3, 1.0))
    assert [g.prompt for g in eligible(solved)] == [1], "the older group of a solved prompt neither"


def test_weights_of_a_pool_are_those_of_the_section_tti():
    assert pool_weights(["A", "A", "B"], 1.0) == pytest.approx([0.208333, 0.291667, 0.5], abs=1e-6)
    assert pool_weights(["A", "A", "B"], 0.0) == pytest.approx([7 / 24, 7 / 24, 5 / 12])


def test_replay_gives_a_step_its_share_of_kept_groups_once_and_first():
    rule = ReplayRule(ReplayOptions(fresh=0.5))
    first = batch_view(facts_of(20), facts_of(21, "open"), need=4, kept=KEPT)
    replayed, taken = rule.decide(first)
    assert isinstance(replayed, Replay)
    assert sorted(replayed.groups) == [12, 13] and replayed.why == "2 of 4 kept"
    assert taken == Take(groups=(20,))
    again = facts_of(22, "sent", replay=True)
    later = batch_view(again, facts_of(21), need=4, kept=KEPT, taken=3)
    assert list(rule.decide(later)) == [Take(groups=(21,)), Close()]
    resumed = batch_view(facts_of(22, replay=True), facts_of(21, "open"), need=4, kept=KEPT)
    assert list(rule.decide(resumed)) == [Take(groups=(22,))], "given back by a resume"


def test_replay_counts_replayed_groups_and_closes_when_the_fresh_ones_are_there():
    rule = ReplayRule(ReplayOptions(fresh=0.5))
    view = batch_view(facts_of(20), facts_of(21, "enough"), need=4, kept=KEPT)
    assert list(rule.decide(view))[1:] == [Take(groups=(20,)), Close()]


def test_replay_without_anything_kept_is_fifo():
    for options in (ReplayOptions(), ReplayOptions(fresh=1.0)):
        kept = KEPT if options.fresh == 1.0 else KEPT[1:2]
        view = batch_view(facts_of(20), facts_of(21, "open"), kept=kept)
        assert list(ReplayRule(options).decide(view)) == list(Fifo().decide(view))


def test_draws_follow_from_seed_and_step_and_a_pool_prefers_new_groups_and_rare_tags():
    many = tuple(kept_view(n, n, 0.5, tag="b" if n % 10 == 9 else "a") for n in range(100))

    def drawn(step: int, **options: Any) -> tuple[int, ...]:
        rule = ReplayRule(ReplayOptions(**options))
        [action] = rule.decide(batch_view(need=40, step=step, kept=many))
        assert isinstance(action, Replay)
        assert len(set(action.groups)) == 20
        return action.groups

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) != drawn(1, seed=1)
    pooled = [n for step in range(60) for n in drawn(step, draw="pool", power=3.0)]
    uniform = [n for step in range(60) for n in drawn(step)]
    assert sum(pooled) / len(pooled) > 58 > 52 > sum(uniform) / len(uniform)
    rare = Counter(n % 10 == 9 for n in pooled)[True] / len(pooled)
    assert rare > 0.2 > Counter(n % 10 == 9 for n in uniform)[True] / len(uniform)


@pytest.mark.parametrize(
    "options, given, complaint",
    [
        (OldestFirstOptions, {"alpha": -1.0}, "alpha: found -1.0, expected at least 0"),
        (ReplayOptions, {"fresh": 0.0}, "fresh: found 0.0, expected above 0 and at most 1"),
        (ReplayOptions, {"power": -1.0}, "power: found -1.0, expected at least 0"),
        (ReplayOptions, {"seed": -1}, "seed: found -1, expected at least 0"),
        (ReplayOptions, {"draw": "best"}, "expected one of uniform, pool"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, given: dict[str, Any], complaint: str):
    [found] = option_problems(options, **given)
    assert complaint in found


# --- whole runs ------------------------------------------------------------------------------


def fates(world: World) -> Counter[str]:
    return Counter(report.fields["fate"] for report in world.reports if report.what == "group")


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_runs_with_each_rule_train_what_every_step_needs(seed: int, ahead: int):
    for rule in (Sorted(), OldestFirst(), ReplayRule()):
        world = ran(seed, dict(steps=6, max_staleness=ahead, reserve=2), batch=rule)
        assert fates(world)["trained"] >= 6 * 3


def test_a_run_with_replay_trains_kept_groups_again_beside_fresh_ones():
    world = ran(3, dict(steps=8, need=4, keep=16), batch=ReplayRule())
    found = fates(world)
    assert found["replayed"] >= 7, "two a step, once two are kept"
    assert found["trained"] + found["replayed"] >= 8 * 4


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_sorted_load_trains_each_prompt_once(ahead: int):
    order = SortedLoad(SortedLoadOptions(load=6, epochs=1), seed=4)
    changes = dict(steps=20, reserve=3, prompts=24, max_staleness=ahead)
    world = ran(4, changes, batch=Sorted(), prompt_order=order)
    ended = Counter(
        report.fields["prompt"]
        for report in world.reports
        if report.what == "group" and report.fields["fate"] in ("trained", "dropped")
    )
    assert ended == Counter(range(24))
