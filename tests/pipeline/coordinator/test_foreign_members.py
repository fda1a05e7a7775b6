"""Members that were not sampled for their group: counted apart, never stale, kept over a resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import Report, RequestReward, TrainGroup
from pipeline.coordinator.foreign import Success
from pipeline.coordinator.groups import TrajectoryState
from pipeline.coordinator.snapshot import Snapshot
from pipeline.coordinator.state import PluginFault
from pipeline.plugins.actions import AnyAction, Finalize, Include, Sample
from pipeline.plugins.interfaces import Finish, Rewarded, SelectorEvent
from pipeline.plugins.views import GroupView
from pipeline.wire.messages import floats
from tests.pipeline.coordinator.bench import Bench, Scripted, only

SOLUTION = np.array([7, 8, 9, 1], "<i4").tobytes()


class InTurn(Scripted):
    """Gives the answers that were said for a group one after another."""

    def __init__(self, **wants: Any) -> None:
        super().__init__(**wants)
        self._later: dict[int, deque[Sequence[AnyAction]]] = {}

    def say(self, group: int, *actions: AnyAction) -> None:
        self._later.setdefault(group, deque()).append(actions)

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        self.seen.append((group, event))
        later = self._later.get(group.id)
        return later.popleft() if later else ()


def begun(selector: Scripted | None = None, **changes: Any) -> Bench:
    """Group 0 with members 0, 1; the data has a solution for every prompt."""
    settings: dict[str, Any] = {"steps": 4, "tries": 30.0, **changes}
    bench = Bench(
        selector or InTurn(reward=True, stored=4),
        candidates=2,
        solutions=[SOLUTION] * 50,
        **settings,
    )
    bench.begin()
    return bench


def failed(bench: Bench, group: int, *then: AnyAction) -> None:
    """Both members of a group end and fail; what the selector says to the last reward, and
    to what it is asked next."""
    members = [m.id for m in bench.core.groups[group].members]
    for member in members:
        bench.tokens(member, 3, "stop")
    bench.reward(members[0], 0.0)
    for action in then:
        bench.selector.say(group, action)
    bench.reward(members[1], 0.0)


def trained_with_success(**changes: Any) -> Bench:
    """Group 0 was trained on: member 0 was right. The next group is of the same prompt."""
    bench = begun(prompts=1, **changes)
    bench.learn(bench.train_one(0))
    bench.serve()
    return bench


def last_step(bench: Bench) -> dict[str, Any]:
    return [r.fields for r in only(bench.everything, Report) if r.what == "step"][-1]


def test_the_solution_is_a_member_that_has_finished_is_scored_and_not_sampled() -> None:
    bench = begun()
    failed(bench, 0, Include("solution", why="all failed"))
    member = bench.core.groups[0].members[-1]
    assert (member.state, bytes(member.tokens)) == (TrajectoryState.FINISHED, SOLUTION)
    assert (member.versions, bytes(member.logprobs), member.own) == ([], b"", 0)
    [asked] = [c for c in only(bench.everything, RequestReward) if c.trajectory == member.id]
    assert (asked.tokens, asked.finish) == (SOLUTION, "stop")
    view, event = bench.selector.seen[-1]
    assert event == Finish(member.id), "the selector hears of it at once"
    assert (view.members[-1].foreign, view.foreign, view.budget) == ("solution", (), 2)
    bench.selector.say(0, Finalize((0, 1, member.id)))
    bench.reward(member.id, 1.0)
    assert bench.selector.seen[-1][1] == Rewarded(member.id)
    [train] = only(bench.everything, TrainGroup)
    assert [(m.foreign, len(m.behaviour) // 4) for m in train.members] == [
        (False, 3),
        (False, 3),
        (True, 0),
    ]


def test_its_tokens_are_counted_apart_and_its_reward_is_no_candidates() -> None:
    bench = begun()
    before = len(bench.everything)
    failed(bench, 0, Include("solution"))
    bench.selector.say(0, Finalize((0, 1, 2)))
    bench.reward(2, 1.0)
    bench.learn(bench.everything[before:])
    assert bench.core.ledger.sampled == 6 == bench.core.ledger.accounts["trained"]
    assert bench.core.ledger.foreign == 4
    step = last_step(bench)
    assert step["foreign"] == {"members": 1, "tokens": 4}
    assert (step["reward"], step["samples"], step["tokens_trained"]) == (0.0, 2, 6)
    assert step["trained_tokens_mean"] == 3 and step["depth"] == 1
    assert bench.coordinator.steps.report.mechanisms()["foreign"] == {"members": 1, "tokens": 4}
    [group] = [r.fields for r in only(bench.everything, Report) if r.what == "group"]
    assert group["foreign"] == {"2": "solution"}
    assert group["members"][-1][5:] == [True, []], "trained on, of no version"
    decisions = [r.fields for r in only(bench.everything, Report) if r.what == "decision"]
    [included] = [d for d in decisions if d["action"] == "Include"]
    assert (included["ids"], included["source"]) == ([2], "solution")


def test_the_newest_success_that_was_trained_on_is_kept_and_used_where_all_fail() -> None:
    bench = trained_with_success()
    group = max(bench.core.groups)
    first, before = bench.core.groups[group].members[0].id, len(bench.everything)
    failed(bench, group, Include("stored"), Finalize((first, bench.core.next_trajectory)))
    stored = bench.core.groups[group].members[-1]
    assert (stored.held, stored.reward, stored.scored) == (3, 1.0, True)
    assert stored.confidence == -0.5, "as it was sampled"
    assert stored.id not in bench.coordinator.group_manager.awaiting_reward
    [train] = only(bench.everything[before:], TrainGroup)
    own, other = train.members
    assert other.foreign and other.old == other.behaviour, "the ratio is policy over behaviour"
    assert floats(other.behaviour).tolist() == [-0.5] * 3
    assert not own.foreign and other.advantage > 0 > own.advantage


def test_a_foreign_member_is_never_too_old() -> None:
    bench = trained_with_success()
    group = max(bench.core.groups)
    members = [m.id for m in bench.core.groups[group].members]
    members.append(bench.core.next_trajectory)
    before = len(bench.everything)
    failed(bench, group, Include("stored"), Finalize(tuple(members)))
    assert bench.selector.seen[-1][0].members[-1].versions == ()
    [train] = only(bench.everything[before:], TrainGroup)
    assert len(train.members) == 3, "sampled by version 0, on-policy with version 1"


def test_only_whole_successes_with_weight_are_kept_and_only_so_many() -> None:
    bench = begun(Scripted(reward=True, stored=1, right=1.0))
    bench.learn(bench.train_one(0))
    kept = bench.coordinator.group_manager.foreign.stored
    assert list(kept) == [0] and kept[0].reward == 1.0
    bench.serve()
    bench.learn(bench.train_one(max(bench.core.groups)))
    assert list(kept) == [1], "of more prompts the newest"
    none = begun(Scripted(reward=True))
    none.learn(none.train_one(0))
    assert not none.coordinator.group_manager.foreign.stored, "no plug-in wants any"
    high = begun(Scripted(reward=True, stored=1, right=2.0))
    high.learn(high.train_one(0))
    assert not high.coordinator.group_manager.foreign.stored


@pytest.mark.parametrize(
    "action, why",
    [
        (Include("teacher"), "no response of source 'teacher' .*; there are: solution"),
        (Include("stored"), "no response of source 'stored'"),
    ],
)
def test_a_source_without_a_response_is_refused(action: AnyAction, why: str) -> None:
    with pytest.raises(PluginFault, match=rf"^selector InTurn, group 0: .*{why}"):
        begun().ask(0, action)


def test_each_source_is_included_once_and_forked_by_nobody() -> None:
    bench = begun()
    bench.tokens(0, 3, "stop")
    bench.ask(0, Include("solution"))
    with pytest.raises(PluginFault, match="there are: none"):
        bench.ask(0, Include("solution"))
    bench = begun()
    bench.ask(0, Include("solution"))
    with pytest.raises(PluginFault, match="of which none can be continued"):
        bench.ask(0, Sample(1, fork=(2, 1)))


def test_a_checkpoint_holds_successes_and_foreign_members() -> None:
    bench = trained_with_success()
    group = max(bench.core.groups)
    failed(bench, group, Include("stored"), Include("solution"))
    bytes_ = msgspec.msgpack.encode(snapshot.take(bench.coordinator))
    saved = msgspec.msgpack.decode(bytes_, type=Snapshot)
    assert [type(kept) for kept in saved.stored] == [Success]
    again = Coordinator(
        bench.settings, bench.core.plugins, [5] * bench.settings.prompts, solutions=[SOLUTION]
    )
    asked = snapshot.restore(again, saved, now=1.0)
    members = again.core.groups[group].members
    assert [m.foreign for m in members] == ["", "", "stored", "solution"]
    assert [c.trajectory for c in asked if isinstance(c, RequestReward)] == [members[3].id]
    assert again.group_manager.foreign.stored == bench.coordinator.group_manager.foreign.stored
    assert again.group_manager.foreign.sources(again.core.groups[group]) == ()
