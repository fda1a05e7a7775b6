"""Every built-in selector against any group: legal actions, a reason each, nothing left open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plugins import interfaces, registry
from pipeline.plugins.actions import Drop, Enough, Finalize, Stop
from pipeline.plugins.interfaces import (
    Barrier,
    Every,
    Finish,
    Relaxed,
    Rewarded,
    SelectorEvent,
    Ticked,
    WeightsPublished,
)
from pipeline.plugins.selectors._choosing import settled
from pipeline.plugins.selectors.all import All
from pipeline.plugins.selectors.concise_confident import ConciseConfident, ConciseConfidentOptions
from pipeline.plugins.selectors.dual_end import DualEnd, DualEndOptions
from pipeline.plugins.testing import Recent, group_of
from pipeline.plugins.views import GroupView
from tests.pipeline.plugins.deciding import decide

EVENT = Finish(trajectory=1)
HUNDRED = Recent(confidences=[-i / 100 for i in range(100)])

HOUSE = ("all", "concise_confident", "dual_end", "first_m", "shortest")  # remember nothing
EVERY: list[interfaces.Selector] = [
    *(registry.find_plugin("selector", name)() for name in HOUSE),
    DualEnd(DualEndOptions(long_wait="step")),
    DualEnd(DualEndOptions(longest=3)),
    DualEnd(DualEndOptions(prune_at=1.5)),
    ConciseConfident(ConciseConfidentOptions(depth="none")),
    ConciseConfident(ConciseConfidentOptions(depth="stop")),
]
PUBLISHED = [name for name in registry.builtin_names("selector") if name not in HOUSE]


@st.composite
def groups(draw: st.DrawFn, ended: bool = False) -> GroupView:
    states = ["finished", "truncated", *([] if ended else ["running", "queued", "parked"])]
    members = draw(st.lists(st.tuples(st.sampled_from(states), st.integers(0, 40)), max_size=12))
    given_ids = draw(st.permutations(range(len(members))))
    by_state: dict[str, dict[int, int]] = {state: {} for state in states}
    for id_, (state, tokens) in zip(given_ids, members, strict=True):
        by_state[state][id_] = tokens
    scored = sorted({*by_state["finished"], *by_state["truncated"]})  # no other is ever scored
    failed = draw(st.sets(st.sampled_from(scored))) if scored else set[int]()
    known = [id_ for id_ in scored if id_ not in failed]
    return group_of(
        size=draw(st.integers(2, 9)),
        finished=by_state["finished"],
        truncated=by_state["truncated"],
        running=by_state.get("running"),
        queued=by_state.get("queued"),
        parked=by_state.get("parked"),
        failed=failed,
        confidence={id_: draw(st.floats(-3, 0)) for id_ in given_ids},
        rewards=dict.fromkeys(known[: draw(st.integers(0, 12))], draw(st.sampled_from([0, 1]))),
        versions=dict.fromkeys(given_ids, (draw(st.integers(0, 3)),)),
        version=3,
        max_staleness=draw(st.integers(0, 2)),
        due=draw(st.booleans()),
        held=draw(st.booleans()),
        statistics=draw(st.sampled_from([Recent(), HUNDRED])),
    )


@pytest.mark.parametrize("selector", EVERY, ids=lambda s: type(s).__name__)
@given(group=groups(), event=st.sampled_from([EVENT, Barrier(), Relaxed(), Ticked()]))
def test_any_group_gets_legal_verbs_and_no_member_whose_reward_failed(
    selector: interfaces.Selector, group: GroupView, event: SelectorEvent
):
    actions = decide(selector, group, event)
    assert len(actions) <= 1 + isinstance(actions[0] if actions else None, Stop)
    failed = {member.id for member in group.members if member.reward_failed}
    for action in actions:
        assert action.why
        if isinstance(action, Finalize):
            assert not failed & set(action.ids)
            if not isinstance(selector, All):
                assert len(action.ids) <= group.size
    assert decide(selector, group, event) == actions  # remembers nothing


@pytest.mark.parametrize("selector", EVERY, ids=lambda s: type(s).__name__)
@given(group=groups(ended=True), event=st.sampled_from([EVENT, Barrier(), Relaxed()]))
def test_a_group_whose_members_have_all_ended_is_always_decided(
    selector: interfaces.Selector, group: GroupView, event: SelectorEvent
):
    [action] = decide(selector, group, event)
    assert isinstance(action, Finalize | Drop)
    usable = [member for member in group.ended if not member.reward_failed]
    assert isinstance(action, Drop) == (len(usable) < 2)


@pytest.mark.parametrize("selector", EVERY, ids=lambda s: type(s).__name__)
@given(group=groups())
def test_a_group_that_is_enough_is_finalized_at_the_barrier(
    selector: interfaces.Selector, group: GroupView
):
    if any(isinstance(action, Enough) for action in decide(selector, group)):
        [action] = decide(selector, group, Barrier())
        assert isinstance(action, Finalize)
        assert len(action.ids) == group.size


@pytest.mark.parametrize("name", PUBLISHED)
@given(
    group=groups(),
    event=st.sampled_from([EVENT, Barrier(), Relaxed(), Rewarded(0), WeightsPublished()]),
    grown=st.integers(0, 12),
)
def test_a_published_selector_answers_any_group_with_legal_actions_and_a_reason(
    name: str, group: GroupView, event: SelectorEvent, grown: int
):
    selector = registry.find_plugin("selector", name)()
    running = [Every(member.id) for member in group.members if member.state == "running"]
    for each in (event, *running[:grown]):
        actions = decide(selector, group, each)
        failed = {member.id for member in group.members if member.reward_failed}
        for action in actions:
            assert action.why
            assert not (isinstance(action, Finalize) and failed & set(action.ids))


@pytest.mark.parametrize("name", PUBLISHED)
@given(group=groups(ended=True))
def test_a_published_selector_leaves_no_group_undecided_whose_rewards_are_known(
    name: str, group: GroupView
):
    if settled(group) and not group.held:
        assert decide(registry.find_plugin("selector", name)(), group)
