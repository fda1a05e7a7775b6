"""The builder of groups: what a test of a plug-in can say of a group, the plug-in sees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.plugins.testing import group_of
from pipeline.plugins.views import GroupView, MemberView


def test_every_field_of_a_member_can_be_set():
    group = group_of(
        size=2,
        finished={7: 12},
        waiting_env={8: 5},
        rewards={7: 0.5},
        parts={7: {"step_1": 0.25}},
        confidence={7: -0.125},
        entropy={7: 0.75},
        score={7: 0.625},
        remaining={8: 40.0},
        versions={7: (2, 3)},
        variants={7: "hint"},
        forks={8: 7},
        included={7: "stored"},
    )
    assert group.members == (
        MemberView(
            id=7,
            state="finished",
            tokens=12,
            confidence=-0.125,
            entropy=0.75,
            reward=0.5,
            parts={"step_1": 0.25},
            versions=(2, 3),
            variant="hint",
            foreign="stored",
            score=0.625,
        ),
        MemberView(id=8, state="waiting_env", tokens=5, confidence=-0.5, remaining=40.0, fork=7),
    )
    assert group.unended == group.members[1:]


def test_every_field_of_a_group_can_be_set():
    given: dict[str, Any] = {
        "prompt": 4,
        "tag": "code",
        "note": "pilots",
        "attempt": 2,
        "step": 9,
        "opened": 5,
        "version": 8,
        "max_staleness": 3,
        "due": True,
        "held": True,
        "seed": 11,
        "now": 2.5,
        "max_tokens": 64,
        "budget": 6,
        "foreign": ("solution",),
    }
    group = group_of(size=3, group=21, **given)
    assert {name: getattr(group, name) for name in given} == given
    assert (group.id, group.size) == (21, 3)
    set_by_name = {*given, "id", "size", "members", "statistics"}
    assert set_by_name == {field.name for field in msgspec.structs.fields(GroupView)}


def test_a_group_was_opened_in_the_open_step_unless_more_is_said():
    assert group_of(size=2, step=7).opened == 7


def test_a_member_in_two_states_is_refused():
    with pytest.raises(ValueError, match=r"a member is given in two states: \[3, 3\]"):
        group_of(size=2, finished={3: 1}, running={3: 2})
